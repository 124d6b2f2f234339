"""A number of a grid, the same number of resampled prompts, and intervals around it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.special import stdtrit

from interp.analyses.depth_map.grids import Grids, two_halves
from interp.analyses.depth_map.layer_alignment import monotone_alignment
from interp.stats.bootstrap import QUANTILES
from interp.stats.estimate import Estimate
from interp.stats.groups import FEWEST


@dataclass(frozen=True)
class Sampled:
    """A value over `n` prompts, or several [...], and its resampled values [draw ...].

    Resampled grids have the noise of two samples, which pulls correlations down: only their spread
    is used (`depth_gain` gives them centred), around the value, so that no interval misses it.
    """

    value: ndarray
    resampled: ndarray
    n: int
    n_groups: int

    @property
    def variance(self) -> ndarray:
        """Return the squared standard error [...]."""
        return np.asarray(self.resampled.var(0) * self.n_groups / max(1, self.n_groups - 1))

    def margin(self) -> ndarray:
        """Return half the width of the 95 % interval [...]; NaN for fewer than 5 prompts."""
        return _margin(self.variance, float(self.n_groups - 1), n=self.n_groups)

    def estimate(self) -> Estimate:
        """Return the value with its interval."""
        value, margin = float(self.value), float(self.margin())
        return Estimate(value, value - margin, value + margin, self.n, self.n_groups)

    def beyond(self, twins: Sequence["Sampled"]) -> Estimate:
        """Return how far the value is above the mean of untrained twins, over the same prompts.

        The interval is of one more twin against those: it knows the prompts, drawn alike for all,
        and how much twins differ from each other (Welch-Satterthwaite degrees of freedom).
        """
        value = float(self.value - np.mean([twin.value for twin in twins]))
        apart = self.resampled - np.mean([twin.resampled for twin in twins], axis=0)
        of_prompts = float(Sampled(np.array(value), apart, self.n, self.n_groups).variance)
        between = float(np.var([twin.value for twin in twins], ddof=1)) * (1 + 1 / len(twins))
        total = of_prompts + between
        if total < 1e-24:
            return Estimate(value, value, value, self.n, self.n_groups)
        under = of_prompts**2 / max(1, self.n_groups - 1) + between**2 / (len(twins) - 1)
        margin = float(_margin(np.array(total), total**2 / under, n=self.n_groups))
        return Estimate(value, value - margin, value + margin, self.n, self.n_groups)


def _margin(variance: ndarray, freedom: float, *, n: int) -> ndarray:
    if n < FEWEST:
        return np.full(variance.shape, np.nan)
    return np.asarray(stdtrit(freedom, QUANTILES[1]) * np.sqrt(variance))


def sampled(
    grids: Grids, number_of: Callable[[Float[ndarray, "grid source target"]], ndarray]
) -> Sampled:
    """Return a number of the whole grid, nothing in which is picked."""
    return Sampled(
        np.asarray(number_of(grids.whole[None])[0]), number_of(grids.resampled), *_sizes(grids)
    )


def depth_gain(grids: Grids, *, first: int, seed: int) -> Sampled:
    """Return how much less the sources miss that never fall with the target than one for all.

    Both are chosen on one half of the prompts and measured on the other, and the halves' two gains
    are averaged: what was picked by chance gains nothing. Taps before `first` are left out.
    """

    def gain(errors: ndarray, chosen: ndarray) -> ndarray:
        one, path = chosen.mean(1).argmin(), monotone_alignment(chosen)
        gained: ndarray = (errors[..., one, :] - errors[..., path, np.arange(len(path))]).mean(-1)
        return gained

    return _crossfitted(grids, gain, first=first, seed=seed)


def best_error(grids: Grids, *, first: int, seed: int) -> Sampled:
    """Return the targets' mean error at the best source of each, cross-fitted as `depth_gain`."""

    def error(errors: ndarray, chosen: ndarray) -> ndarray:
        best = chosen.argmin(0)
        reached: ndarray = errors[..., best, np.arange(len(best))].mean(-1)
        return reached

    return _crossfitted(grids, error, first=first, seed=seed)


def _crossfitted(
    grids: Grids, measure: Callable[[ndarray, ndarray], ndarray], *, first: int, seed: int
) -> Sampled:
    halves = grids.of(two_halves(grids.grouping, seed=seed))[:, first:, first:]
    resampled = grids.resampled[:, first:, first:]
    one, other = measure(halves, halves[0])[1], measure(halves, halves[1])[0]
    drawn = [measure(resampled, half) for half in halves]
    # every prompt is judged by one of the two choices, so their spreads are not averaged away
    spread = np.concatenate([values - values.mean() for values in drawn])
    return Sampled(np.asarray((one + other) / 2), spread, *_sizes(grids))


def _sizes(grids: Grids) -> tuple[int, int]:
    return grids.n_prompts, grids.grouping.n_groups
