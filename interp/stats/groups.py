"""Prompts that were not drawn independently: those of one group share a fact, a name or a text."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Groups = NDArray[np.int64]  # a number per prompt; equal numbers are one group
FEWEST = 5  # groups (or prompts) that an interval needs
FEW = 10  # with fewer groups, intervals are those of Student's t


@dataclass(frozen=True)
class Grouping:
    """Which of `n_groups` groups, numbered from 0, each prompt belongs to."""

    codes: Groups
    n_groups: int

    @classmethod
    def of(cls, n_prompts: int, groups: ArrayLike | None) -> "Grouping":
        """Number the groups; without any, every prompt is a group of its own."""
        if groups is None:
            return cls(np.arange(n_prompts), n_prompts)
        given = np.asarray(groups)
        if given.shape != (n_prompts,):
            raise ValueError(f"groups of shape {given.shape} for {n_prompts} prompts")
        names, codes = np.unique(given, return_inverse=True)
        return cls(codes.astype(np.int64), len(names))

    def sums(self, values: Array) -> Array:
        """Return the sum of values [prompt ...] over each group [group ...]."""
        if self.n_groups == len(values):
            return values
        sums = np.zeros((self.n_groups, *values.shape[1:]))
        np.add.at(sums, self.codes, values)
        return sums

    def half(self, *, seed: int = 0) -> NDArray[np.bool_]:
        """Return which prompts [prompt] are in the first of two halves; no group is in both."""
        order = np.random.default_rng(seed).permutation(self.n_groups)
        sizes = np.bincount(self.codes, minlength=self.n_groups)[order]
        middle = sizes.cumsum() - sizes / 2 <= len(self.codes) / 2
        in_first = np.zeros(self.n_groups, bool)
        in_first[order] = middle
        half: NDArray[np.bool_] = in_first[self.codes]
        return half
