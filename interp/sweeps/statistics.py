"""Statistics over prompts, from per-prompt arrays."""

import numpy as np
from numpy.typing import NDArray


def bootstrap_interval(
    values: NDArray[np.float64], *, share: float = 0.95, n_resamples: int = 1000, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the percentile-bootstrap interval [2 ...] of the mean over the first axis (the prompts)."""
    rng = np.random.default_rng(seed)
    n = len(values)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=n_resamples) / n
    means = np.tensordot(weights, values, axes=1)
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2], axis=0)
    return low, high
