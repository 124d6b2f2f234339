"""How often the answer can be read in an earlier layer than the bridge (arXiv 2601.03542).

By chance that is as often as one prompt's answer comes before another prompt's bridge.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from interp.stats.estimate import NAN, Estimate, estimate
from interp.stats.groups import Groups
from interp.stats.shares import share


@dataclass(frozen=True)
class Inversion:
    """First layers of the answer and of the bridge [prompt], of the prompts that have both."""

    answer: np.ndarray
    bridge: np.ndarray
    groups: Groups | None
    seed: int

    @cached_property
    def _is_earlier(self) -> np.ndarray:
        """Tell of every prompt's answer [prompt other] whether it is before another's bridge."""
        return np.asarray(self.answer[:, None] < self.bridge[None, :], np.float64)

    @property
    def share(self) -> Estimate:
        """Return the share of prompts whose answer comes before their bridge."""
        return share(self._is_earlier.diagonal(), groups=self.groups)

    @property
    def chance(self) -> float:
        """Return that share over all pairs of two prompts; NaN for fewer than two."""
        n = len(self.answer)
        earlier = self._is_earlier
        return float((earlier.sum() - earlier.trace()) / (n * (n - 1))) if n > 1 else NAN

    @property
    def above_chance(self) -> Estimate:
        """Return the share less that of chance.

        Every prompt counts in the chance level twice, with its answer and with its bridge, and the
        interval is that of its whole influence.
        """
        n, own = len(self.answer), self._is_earlier.diagonal()
        if n < 2:
            return Estimate(NAN, n=n)
        others = [(self._is_earlier.sum(axis) - own) / (n - 1) for axis in (0, 1)]
        return estimate(own - sum(others) + self.chance, groups=self.groups, seed=self.seed)
