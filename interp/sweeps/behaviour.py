"""Is there a behaviour to explain: does corrupting a prompt lower its metric?"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from interp.metrics import WORDS, Metric
from interp.result import Finding
from interp.stats.estimate import Estimate, estimate, ratio
from interp.stats.groups import Groups

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Behaviour:
    """A metric of clean prompts and of their corrupted twins, both [prompt], in its own unit."""

    clean_values: Array
    corrupted_values: Array
    metric: Metric
    groups: Groups | None = None
    seed: int = 0

    @property
    def gap_values(self) -> Array:
        """Return the metric of the clean prompt less that of its twin [prompt]."""
        gaps: Array = self.clean_values - self.corrupted_values
        return gaps

    @property
    def clean(self) -> Estimate:
        """Return the mean metric of clean prompts."""
        return estimate(self.clean_values, groups=self.groups, seed=self.seed)

    @property
    def corrupted(self) -> Estimate:
        """Return the mean metric of corrupted prompts."""
        return estimate(self.corrupted_values, groups=self.groups, seed=self.seed)

    @cached_property
    def gap(self) -> Estimate:
        """Return the mean of clean less corrupted: what nodes and circuits can carry."""
        return estimate(self.gap_values, groups=self.groups, seed=self.seed)

    @property
    def is_absent(self) -> bool:
        """Tell whether the gap's 95 % interval holds 0 or is negative; without one, the gap."""
        return not (self.gap.low if self.gap.has_interval else self.gap.value) > 0

    def share(self, carried: Array) -> Estimate:
        """Return Σ carried / Σ gap [prompt], whose interval resamples both; NaN if absent."""
        if self.is_absent:
            return Estimate(np.nan, n=len(carried))
        return ratio(carried, self.gap_values, groups=self.groups, seed=self.seed)

    def __str__(self) -> str:
        return f"Clean {self.clean:.3g}, corrupted {self.corrupted:.3g}, a gap of {self.gap:.3g}."

    def finding(self) -> Finding:
        """Return what is said where it is absent, instead of shares of the gap."""
        return Finding(
            f"No behaviour to explain: corrupting takes {self.gap:.2g} from {WORDS[self.metric]}.",
            self.gap,
            f"clean less corrupted {self.metric}",
            note=str(self),
        )
