"""Statistics over prompts, from per-prompt arrays."""

import numpy as np
from numpy.typing import NDArray


def bootstrap_interval(
    values: NDArray[np.float64],
    *,
    weights: NDArray[np.float64] | None = None,
    share: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the percentile-bootstrap interval [2 ...] of the (weighted) mean over the first axis (the prompts)."""
    rng = np.random.default_rng(seed)
    n = len(values)
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=n_resamples) * (np.ones(n) if weights is None else weights)
    means = np.tensordot(drawn / drawn.sum(1, keepdims=True), values, axes=1)
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2], axis=0)
    return low, high


def interval_of_difference(
    one: NDArray[np.float64], other: NDArray[np.float64], *, share: float = 0.95, n_resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile-bootstrap interval of mean(one) - mean(other), where both are of different prompts."""
    rng = np.random.default_rng(seed)
    means = [rng.multinomial(len(x), np.full(len(x), 1 / len(x)), size=n_resamples) @ x / len(x) for x in (one, other)]
    low, high = np.quantile(means[0] - means[1], [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)
