"""Intervals for what was picked: chosen on one half of the prompts, measured on the other."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from interp.stats.bootstrap import N_RESAMPLES, chunks, draws, squares_around
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


def ranked(values: ArrayLike, rank: int = 0, *, weights: ArrayLike | None = None) -> Choose:
    """Return a choice of the option with the largest (weighted) mean, or the `rank`-th after it.

    `values` are [prompt option].
    """
    array = np.asarray(values, np.float64)
    below = np.ones(len(array)) if weights is None else np.asarray(weights, np.float64)

    def choose(rows: NDArray[np.bool_]) -> int:
        means = np.average(array[rows], axis=0, weights=below[rows])
        return int(np.argsort(-means, kind="stable")[rank])

    return choose


def picked(
    values: ArrayLike,
    *,
    choose: Choose | None = None,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> Picked:
    """Pick one of the options of values [prompt option], estimate its (weighted) mean crosswise.

    Each half of the groups picks for the other; by default the option with the largest mean.
    `choose` returns the option picked on some prompts (a mask). With one group there are no halves,
    and with fewer than 5 no interval.
    """
    array = np.asarray(values, np.float64)
    grouping = Grouping.of(len(array), groups)
    below = np.ones(len(array)) if weights is None else np.asarray(weights, np.float64)
    pick = choose or ranked(array, weights=below)
    every = np.ones(len(array), bool)
    index = pick(every)
    half = grouping.half(seed=seed)
    if half.all() or not half.any():
        measured, halves = array[:, index], (index, index)
    else:
        first, second = pick(half), pick(~half)
        measured, halves = np.where(half, array[:, second], array[:, first]), (first, second)
    plain = estimate(measured, weights=below, groups=groups, seed=seed)
    return Picked(index, halves, measured, widened(plain))


def widened(plain: Estimate, *, between: tuple[float, float] = (-np.inf, np.inf)) -> Estimate:
    """Return an estimate over `Picked.measured` with its interval widened as that of `picked`.

    `between` are the limits of what is estimated: 0 and 1 for a share, -1 and 1 for a difference.
    """
    ends = (plain.value + _WIDER * (end - plain.value) for end in (plain.low, plain.high))
    low, high = (float(np.clip(end, *between)) for end in ends)
    return replace(plain, low=low, high=high)


def band(
    values: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> tuple[Array, Array]:
    """Return low and high [option] that hold the (weighted) means of all options in 95 %.

    `values` are [prompt option]. The half-width is the 95th percentile over resampled groups of the
    largest |t| of any option (max-statistic); Bonferroni's with fewer than 10 groups, NaN with
    fewer than 5.
    """
    array = np.asarray(values, np.float64)
    grouping = Grouping.of(len(array), groups)
    below = np.ones(len(array)) if weights is None else np.asarray(weights, np.float64)
    n, mean = grouping.n_groups, np.average(array, axis=0, weights=below)
    if n < FEWEST:
        nothing = np.full(mean.shape, np.nan)
        return nothing, nothing
    rest, sizes = grouping.sums((array - mean) * below[:, None]), grouping.sums(below)
    error = np.sqrt((rest**2).sum(0) * n / (n - 1)) / below.sum()
    if n < FEW:
        times = float(stdtrit(n - 1, 1 - 0.025 / max(1, array.shape[1])))
    else:
        largest = _largest(rest, sizes.astype(np.float64), error, seed=seed)
        times = float(np.quantile(largest, 0.95))
    return mean - times * error, mean + times * error


def _largest(rest: Array, sizes: Array, error: Array, *, seed: int) -> Array:
    """Return the largest |t| of any option [resample], from residuals by group [group option].

    A resample without the few groups in which an option moves has an error near 0: a quarter of the
    observed one is the least. Without any of them it says nothing of that option.
    """
    drawn, largest = draws(len(rest), seed=seed), np.zeros(N_RESAMPLES)
    total, n = (drawn @ sizes)[:, None], len(rest)
    for at in chunks(rest.shape[1]):
        shift = drawn @ rest[:, at] / total
        squares = squares_around(shift, rest[:, at], sizes[:, None], drawn)
        errors = np.maximum(np.sqrt(squares * n / (n - 1)) / total, error[at] / 4)
        moves = (squares > 0) & (errors > 1e-12)
        t = np.divide(np.abs(shift), errors, out=np.zeros_like(shift), where=moves)
        largest = np.maximum(largest, t.max(1, initial=0))
    return largest
