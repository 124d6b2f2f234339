"""Bootstrap over groups of prompts: studentised for means and ratios, percentiles for the rest."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri, stdtrit

from interp.stats.groups import FEW, FEWEST, Array, Grouping

QUANTILES = [0.025, 0.975]  # a 95 % interval's ends
N_RESAMPLES = 1000
_FARTHEST = 5  # times as far as Student's end, which no interval exceeds
_COLUMNS = 2048  # of values resampled at once, so that memory stays bounded


def draws(n_groups: int, *, seed: int = 0) -> Array:
    """Return how often each group is drawn [resample group]; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    drawn: Array = rng.multinomial(
        n_groups, np.full(n_groups, 1 / n_groups), size=N_RESAMPLES
    ).astype(np.float64)
    return drawn


def interval_of_ratio(
    above: Array, below: Array, grouping: Grouping, *, seed: int = 0
) -> tuple[Array, Array, Array]:
    """Return Σ above / Σ below over prompts and its interval's ends, each [column].

    `above` and `below` are [prompt column]. Bootstrap-t over groups (Efron & Tibshirani 1993,
    chapter 12.5), at most 5 times as far as Student's t; Student's t with fewer than 10 groups and
    where a resample has no variance; NaN with fewer than 5 groups.
    """
    over, under = grouping.sums(above), grouping.sums(below)
    total = under.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = over.sum(0) / total
    n = grouping.n_groups
    if n < FEWEST:
        nothing = np.full(ratio.shape, np.nan)
        return ratio, nothing, nothing
    rest = over - ratio * under
    error = _error((rest**2).sum(0), total, n)
    t = float(stdtrit(n - 1, QUANTILES[1]))
    low, high = ratio - t * error, ratio + t * error
    if n >= FEW:
        drawn = draws(n, seed=seed)
        for at in chunks(ratio.shape[0]):
            lowest, highest = _studentised(rest[:, at], under[:, at], drawn)
            for ends, quantile in ((low, highest), (high, lowest)):
                # where a resample hardly varies, t is huge
                times = np.clip(quantile, -_FARTHEST * t, _FARTHEST * t)
                good = np.isfinite(quantile)
                ends[at] = np.where(good, ratio[at] - times * error[at], ends[at])
    return ratio, low, high


def _studentised(rest: Array, under: Array, drawn: Array) -> tuple[Array, Array]:
    """Return the quantiles [column] of (resampled - observed ratio) / resampled error."""
    # most denominators are the same for all columns
    shared = under[:, :1] if (under == under[:, :1]).all() else under
    total = drawn @ shared
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = (drawn @ rest) / total
        squares = squares_around(shift, rest, shared, drawn)
        statistic = shift / _error(squares, total, len(rest))
    # 0 / 0: nothing moved; x / 0 stays infinite, and Student's end is kept
    statistic = np.where(np.isnan(statistic), 0.0, statistic)
    low, high = np.quantile(statistic, QUANTILES, axis=0, method="nearest")
    return low, high


def squares_around(shift: Array, rest: Array, under: Array, drawn: Array) -> Array:
    """Return Σ (rest - shift · under)² [resample column] of `drawn`; 0 where only rounding is left.

    `rest` and `under` are [group column], or [group 1].
    """
    first = drawn @ rest**2
    squares = first - 2 * shift * (drawn @ (rest * under)) + shift**2 * (drawn @ under**2)
    exact: Array = np.where(squares <= 1e-9 * first, 0.0, squares)
    return exact


def _error(squares: Array, total: Array, n: int) -> Array:
    """Return the standard error of a ratio from its residuals' sum of squares."""
    error: Array = np.sqrt(squares * n / (n - 1)) / np.abs(total)
    return error


def chunks(n: int) -> Iterator[slice]:
    """Yield slices of `n` columns that can be resampled at once."""
    return (slice(i, i + _COLUMNS) for i in range(0, n, _COLUMNS))


def resampled_means(
    values: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> Array:
    """Return the (weighted) mean [resample ...] of groups of prompts drawn with replacement."""
    array = np.asarray(values, np.float64)
    grouping = Grouping.of(len(array), groups)
    below = np.ones(len(array)) if weights is None else np.asarray(weights, np.float64)
    drawn = draws(grouping.n_groups, seed=seed)
    above = array * below.reshape(-1, *[1] * (array.ndim - 1))
    sums = np.tensordot(drawn, grouping.sums(above), axes=1)
    totals = drawn @ grouping.sums(below)
    means: Array = sums / totals.reshape(-1, *[1] * (array.ndim - 1))
    return means


def corrected_interval(value: float, resampled: NDArray[np.float64]) -> tuple[float, float]:
    """Return the bias-corrected percentile interval of a number per resample.

    Infinite ones count as largest. NaN where all resamples lie on one side of the value, which then
    was picked as an extreme, and no interval of its resamples would hold it.
    """
    below = float(((resampled < value).mean() + (resampled <= value).mean()) / 2)
    if not 0 < below < 1:
        same = bool((resampled == value).all())
        return (value, value) if same else (float("nan"), float("nan"))
    shares = ndtr(2 * ndtri(below) + ndtri(np.array(QUANTILES)))
    low, high = np.quantile(resampled, shares, method="nearest")
    return float(low), float(high)
