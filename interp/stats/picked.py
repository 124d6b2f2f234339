"""Intervals for what was picked: chosen on one half of the prompts, measured on the other."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from interp.stats.bootstrap import draws, squares_around
from interp.stats.estimate import Estimate, estimate
from interp.stats.groups import FEW, FEWEST, Array, Grouping

# Where options are alike, both halves' picks are lucky or unlucky together: the error of their mean
# is up to 1.16 times that of one option known in advance. This keeps both cases near 95 %.
_WIDER = 1.1

Choose = Callable[[NDArray[np.bool_]], int]  # which prompts -> the option picked on them


@dataclass(frozen=True)
class Picked:
    """The option picked on all prompts, those picked on each half, and what they give elsewhere.

    `measured` [prompt] is what each prompt gives under the option picked on the other half, and
    `estimate` its mean: it is not too good because it was picked.
    """

    index: int
    halves: tuple[int, int]
    measured: Array
    estimate: Estimate

    @property
    def is_stable(self) -> bool:
        """Tell whether both halves pick what all prompts pick."""
        return self.halves == (self.index, self.index)


def picked(
    values: ArrayLike,
    *,
    choose: Choose | None = None,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> Picked:
    """Pick one of the options of values [prompt option] and estimate its mean by cross-fitting.

    Each half of the groups picks for the other; by default the option with the largest mean.
    `choose` returns the option picked on some prompts (a mask). With one group there are no halves,
    and with fewer than 5 no interval.
    """
    array = np.asarray(values, np.float64)
    grouping = Grouping.of(len(array), groups)
    pick: Choose = choose or (lambda rows: int(array[rows].mean(0).argmax()))
    every = np.ones(len(array), bool)
    index = pick(every)
    half = grouping.half(seed=seed)
    if half.all() or not half.any():
        measured, halves = array[:, index], (index, index)
    else:
        first, second = pick(half), pick(~half)
        measured, halves = np.where(half, array[:, second], array[:, first]), (first, second)
    plain = estimate(measured, groups=groups, seed=seed)
    return Picked(index, halves, measured, widened(plain))


def widened(plain: Estimate, *, between: tuple[float, float] = (-np.inf, np.inf)) -> Estimate:
    """Return an estimate over `Picked.measured` with its interval widened as that of `picked`.

    `between` are the limits of what is estimated: 0 and 1 for a share, -1 and 1 for a difference.
    """
    ends = (plain.value + _WIDER * (end - plain.value) for end in (plain.low, plain.high))
    low, high = (float(np.clip(end, *between)) for end in ends)
    return replace(plain, low=low, high=high)


def band(
    values: ArrayLike, *, groups: ArrayLike | None = None, seed: int = 0
) -> tuple[Array, Array]:
    """Return low and high [option] that hold the means of all options together in 95 %.

    `values` are [prompt option]. The half-width is the 95th percentile over resampled groups of the
    largest |t| of any option (max-statistic); Bonferroni's with fewer than 10 groups, NaN with
    fewer than 5.
    """
    array = np.asarray(values, np.float64)
    grouping = Grouping.of(len(array), groups)
    n, mean = grouping.n_groups, array.mean(0)
    if n < FEWEST:
        nothing = np.full(mean.shape, np.nan)
        return nothing, nothing
    rest, sizes = grouping.sums(array - mean), np.bincount(grouping.codes)
    error = np.sqrt((rest**2).sum(0) * n / (n - 1)) / len(array)
    if n < FEW:
        times = float(stdtrit(n - 1, 1 - 0.025 / max(1, array.shape[1])))
    else:
        drawn = draws(n, seed=seed)
        total = (drawn @ sizes)[:, None]
        shift = drawn @ rest / total
        squares = squares_around(shift, rest, sizes[:, None].astype(np.float64), drawn)
        errors = np.sqrt(squares * n / (n - 1)) / total
        t = np.divide(np.abs(shift), errors, out=np.zeros_like(shift), where=errors > 0)
        times = float(np.quantile(t.max(1), 0.95))
    return mean - times * error, mean + times * error
