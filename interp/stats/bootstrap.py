"""Bootstrap intervals of statistics over prompts."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

QUANTILES = [0.025, 0.975]  # a 95 % interval's ends


def bootstrap_interval(
    values: NDArray[np.float64],
    *,
    weights: NDArray[np.float64] | None = None,
    share: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the bootstrap interval's ends [...] for the (weighted) mean of values [prompt ...]."""
    means = resampled_means(values, weights=weights, n_resamples=n_resamples, seed=seed)
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2], axis=0)
    return low, high


def resampled_means(
    values: NDArray[np.float64],
    *,
    weights: NDArray[np.float64] | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return the (weighted) mean [resample ...] of prompts drawn with replacement, per resample.

    With the same seed and number of prompts, every array is resampled by the same prompts.
    """
    rng = np.random.default_rng(seed)
    n = len(values)
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=n_resamples) * (
        np.ones(n) if weights is None else weights
    )
    means: NDArray[np.float64] = np.tensordot(drawn / drawn.sum(1, keepdims=True), values, axes=1)
    return means


def ends_of(resampled: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return low and high [2 ...] of the 95 % percentile interval of numbers [resample ...]."""
    ends: NDArray[np.float64] = np.quantile(resampled, QUANTILES, axis=0)
    return ends


def interval_of(samples: Iterable[float], *, share: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of a number per resample; infinite ones count as largest."""
    low, high = np.quantile(
        np.fromiter(samples, np.float64), [(1 - share) / 2, (1 + share) / 2], method="nearest"
    )
    return float(low), float(high)


def interval_of_difference(
    one: NDArray[np.float64],
    other: NDArray[np.float64],
    *,
    share: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the bootstrap interval of mean(one) - mean(other), over different prompts."""
    rng = np.random.default_rng(seed)
    means = [
        rng.multinomial(len(x), np.full(len(x), 1 / len(x)), size=n_resamples) @ x / len(x)
        for x in (one, other)
    ]
    low, high = np.quantile(means[0] - means[1], [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)
