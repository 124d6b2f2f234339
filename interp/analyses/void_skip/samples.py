"""How the numbers of one score are averaged over prompts, and compared between ways of skipping."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from interp.stats.estimate import Estimate, estimate, estimates
from interp.stats.groups import Groups
from interp.stats.paired import PairedDifference, paired_p
from interp.stats.picked import Picked, picked
from interp.stats.shares import share, share_difference

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """The prompts that have a score, which is a share of them (`is_share`) or a mean.

    `weights` and `groups` are [prompt], if any.
    """

    is_share: bool
    weights: Array | None
    groups: Groups | None
    seed: int

    def estimate(self, values: Array) -> Estimate:
        """Return the share or mean of values [prompt]."""
        if self.is_share:
            return share(values, groups=self.groups)
        return estimate(values, weights=self.weights, groups=self.groups, seed=self.seed)

    def more(self, one: Array, other: Array) -> PairedDifference:
        """Return by how much one is more than the other, both [prompt]."""
        if not self.is_share:
            how = {"weights": self.weights, "groups": self.groups}
            return PairedDifference.of(one - other, **how, seed=self.seed)
        p = float(paired_p(one - other, groups=self.groups, seed=self.seed))
        return PairedDifference(share_difference(one, other, groups=self.groups), p)

    def best(self, values: Array) -> Picked:
        """Pick the largest of values [prompt option]."""
        return picked(values, groups=self.groups, seed=self.seed)

    def columns(self, values: Array) -> dict[str, Array]:
        """Return mean, low and high of values [prompt ...]: one number for each way of skipping."""
        flat = values.reshape(len(values), -1)
        return self._means(flat) if not self.is_share else _ends(map(self.estimate, flat.T))

    def compared(self, name: str, one: Array, other: Array) -> dict[str, Array]:
        """Return how much more one is than the other, both [prompt ...], with the p of `more`.

        Columns are NAME, NAME_low, NAME_high and NAME_p.
        """
        first, second = (values.reshape(len(values), -1) for values in (one, other))
        if self.is_share:
            pairs = zip(first.T, second.T, strict=True)
            ends = _ends(share_difference(*pair, groups=self.groups) for pair in pairs)
        else:
            ends = self._means(first - second)
        p = paired_p(first - second, groups=self.groups, seed=self.seed)
        named = {"mean": name, "low": f"{name}_low", "high": f"{name}_high"}
        return {named[of]: values for of, values in ends.items()} | {f"{name}_p": p}

    def _means(self, flat: Array) -> dict[str, Array]:
        columns = estimates(flat, weights=self.weights, groups=self.groups, seed=self.seed)
        return {name: columns[name] for name in ("mean", "low", "high")}


def _ends(each: Iterable[Estimate]) -> dict[str, Array]:
    mean, low, high = np.array([(one.value, one.low, one.high) for one in each]).T
    return {"mean": mean, "low": low, "high": high}
