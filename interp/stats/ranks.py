"""Rank correlations over a few units or layers: Spearman's, given others, and their intervals.

The units are few, and other ones would give another correlation: intervals count both the draw of
prompts and that of units.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.special import ndtri
from scipy.stats import rankdata

from interp.stats.bootstrap import QUANTILES, corrected_interval, draws, resampled_means
from interp.stats.estimate import NAN, Estimate
from interp.stats.groups import FEWEST, Array, Grouping

_RESAMPLES = 400
_ROUNDING = 1e-5  # of the largest value: so little does not make two values different
_OF_RANKS = 1.06  # a rank correlation's variance on Fisher's scale, times n - 3 (Fieller 1957)


def rank_correlation(
    one: Float[np.ndarray, "*rows unit"], other: Float[np.ndarray, "*rows unit"]
) -> Float[np.ndarray, "*rows"]:
    """Return Spearman's correlation over the last axis; NaN where one side is constant."""
    return partial_rank_correlation(one, other, np.zeros((0, one.shape[-1])))


def partial_rank_correlation(
    one: Float[np.ndarray, "*rows unit"],
    other: Float[np.ndarray, "*rows unit"],
    given: Float[np.ndarray, "column unit"],
) -> Float[np.ndarray, "*rows"]:
    """Return the correlation of ranks over the last axis, without what `given` explains of them.

    Neighbours that differ by less than 0.00001 of the largest value have one rank. NaN where
    nothing is left of one side, as where as many columns are given as there are units.
    """
    n = one.shape[-1]
    basis, _ = np.linalg.qr(np.vstack([np.ones(n), given]).T)
    ranks = (rankdata(_without_rounding(values), axis=-1) for values in (one, other))
    rest = [rows - rows @ basis @ basis.T for rows in ranks]
    squares = [(rows**2).sum(-1) for rows in rest]
    known = np.minimum(*squares) > 1e-9 * n**3
    size = np.where(known, np.sqrt(squares[0] * squares[1]), 1.0)
    correlation = np.clip((rest[0] * rest[1]).sum(-1) / size, -1.0, 1.0)
    return np.asarray(np.where(known, correlation, NAN))


def _without_rounding(values: Float[np.ndarray, "*rows unit"]) -> Float[np.ndarray, "*rows unit"]:
    """Return numbers in the same order, equal where neighbours differ by rounding alone."""
    order = values.argsort(-1, kind="stable")
    ordered = np.take_along_axis(values, order, -1)
    least = _ROUNDING * np.abs(values).max(-1, keepdims=True)
    numbers = np.zeros(values.shape)
    numbers[..., 1:] = (np.diff(ordered, axis=-1) > least).cumsum(-1)
    np.put_along_axis(numbers, order, numbers.copy(), -1)
    return numbers


def partial_estimate(
    values: ArrayLike,
    given: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> Estimate:
    """Return the rank correlation over units of mean values [prompt 2 unit] given [column unit].

    Its interval is Fisher's, with the variance over units (1.06 / (units less columns less 3)) and
    that over resampled groups of prompts; none with fewer than 5 groups, or too few units.
    """
    array, columns = np.asarray(values, np.float64), np.asarray(given, np.float64)
    grouping = Grouping.of(len(array), groups)
    value = float(partial_rank_correlation(array[:, 0].mean(0), array[:, 1].mean(0), columns))
    free = array.shape[2] - len(columns) - 3
    if grouping.n_groups < FEWEST or free < 1 or np.isnan(value):
        return Estimate(value, n=len(array), n_groups=grouping.n_groups)
    means = resampled_means(array, groups=groups, seed=seed)[:_RESAMPLES]
    drawn = partial_rank_correlation(means[:, 0], means[:, 1], columns)
    spread = np.nanvar(_fisher(drawn))
    error = float(np.sqrt(_OF_RANKS / free + spread))
    low, high = np.tanh(_fisher(np.array([value])) + error * ndtri(np.array(QUANTILES)))
    ends = min(float(low), value), max(float(high), value)
    return Estimate(value, *ends, len(array), grouping.n_groups)


def _fisher(correlation: Array) -> Array:
    scaled: Array = np.arctanh(np.clip(correlation, -0.999, 0.999))
    return scaled


class Resamples:
    """Statistics of mean values over all prompts and units, then over resamples of both.

    `values` maps kinds of units to [prompt row unit]; a statistic makes one number of each of one
    kind's means [resample row unit], of which the first is of all prompts and units. Groups of
    prompts and units are drawn with replacement, independently (Owen 2007).
    """

    def __init__(
        self,
        values: dict[str, Array],
        statistics: dict[str, Callable[[Array], Array]],
        *,
        groups: ArrayLike | None = None,
        seed: int = 0,
    ) -> None:
        n = len(next(iter(values.values())))
        grouping = Grouping.of(n, groups)
        self.n, self.n_groups = n, grouping.n_groups
        rng = np.random.default_rng(seed)
        n_resamples = _RESAMPLES * (grouping.n_groups >= FEWEST)
        prompts = draws(grouping.n_groups, seed=seed)[:n_resamples, grouping.codes]
        self.columns: dict[tuple[str, str], Array] = {}
        for kind, array in values.items():
            n_units = array.shape[2]
            weights = np.vstack([np.ones(n), prompts])
            means = np.tensordot(weights / weights.sum(1, keepdims=True), array, axes=1)
            which = rng.integers(n_units, size=(len(means), 1, n_units))
            which[0] = np.arange(n_units)
            means = np.take_along_axis(means, which, axis=2)
            for name, statistic in statistics.items():
                self.columns[kind, name] = statistic(means)

    def estimate(self, column: Array) -> Estimate:
        """Return a column, of all and of each resample, as an estimate."""
        value, known = float(column[0]), column[1:][np.isfinite(column[1:])]
        low, high = corrected_interval(value, known) if len(known) else (NAN, NAN)
        return Estimate(value, low, high, self.n, self.n_groups)
