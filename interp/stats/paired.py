"""The same prompts scored twice: the difference of the means, and whether it could be chance."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from interp.stats.estimate import Estimate, estimate
from interp.stats.groups import Array, Grouping

_FLIPS = 4999


@dataclass(frozen=True)
class PairedDifference:
    """The mean of paired differences as an Estimate, and the p-value of `paired_p`."""

    estimate: Estimate
    p: float

    @classmethod
    def of(
        cls,
        differences: ArrayLike,
        *,
        weights: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        seed: int = 0,
    ) -> "PairedDifference":
        """Return the (weighted) mean of paired differences [prompt]."""
        array = np.asarray(differences, np.float64)
        p = float(paired_p(array, groups=groups, seed=seed))
        return cls(estimate(array, weights=weights, groups=groups, seed=seed), p)


def paired_p(differences: ArrayLike, *, groups: ArrayLike | None = None, seed: int = 0) -> Array:
    """Return the two-sided p-value [...] of paired differences [prompt ...]; 1 if all are 0.

    By flipping the signs of whole groups at random (4,999 times): if neither way is better, either
    sign was as likely. Differences are rounded to 0.0001, so that sums computed in another order do
    not count as different.
    """
    rounded = np.asarray(differences, np.float64).round(4)
    sums = Grouping.of(len(rounded), groups).sums(rounded)
    flat = sums.reshape(len(sums), -1)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(_FLIPS, len(sums)))
    reached = np.abs(signs @ flat) >= np.abs(flat.sum(0)) - 1e-9
    p: Array = ((1 + reached.sum(0)) / (1 + _FLIPS)).reshape(sums.shape[1:])
    return p
