"""What sublayers write, over prompts, with position 0 and without it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.residual_contribution.writes import Writes
from interp.figures.plots import lines_over_depth
from interp.figures.words import ALL, ALL_BUT_FIRST, halves_pick, how_picked, layers_named
from interp.result import Compared, Finding, Result
from interp.sweeps.positions import positions_read

if TYPE_CHECKING:
    from interp.analyses.residual_contribution import ResidualContribution


@dataclass(frozen=True, repr=False)
class ResidualContributionResult(Result):
    """Arrays per prompt: mean, max, the same "_without_first" [prompt layer measure], and n_pos.

    Findings and figure are of the positions that the analysis asks for, the frame of both.
    """

    analysis: "ResidualContribution"
    arrays: dict[str, np.ndarray]

    @property
    def positions(self) -> str:
        """Return which positions findings and figure are of, in words."""
        return positions_read(self.analysis.first_position)

    def writes(self, positions: str = "") -> Writes:
        """Return what is written at some positions, by default those of the findings."""
        positions = positions or self.positions
        first, suffix = (0, "") if positions == ALL else (1, "_without_first")
        n_tokens, groups = self.arrays["n_pos"] - first, self.prompt_groups
        kept = n_tokens > 0
        return Writes(
            self.arrays[f"mean{suffix}"][kept],
            self.arrays[f"max{suffix}"][kept],
            n_tokens[kept],
            groups=None if groups is None else groups[kept],
            seed=self.analysis.seed,
        )

    def to_frame(self) -> pd.DataFrame:
        """Return columns positions, measure, component, layer, mean, low, high, max, n_prompts.

        `positions` are all, or all but the first. Means are over tokens, with their 95 % intervals
        over groups of prompts; maxima are over all tokens.
        """
        return pd.concat(self._frames(), ignore_index=True)

    def _frames(self) -> Iterator[pd.DataFrame]:
        for positions in (ALL, ALL_BUT_FIRST):
            if (writes := self.writes(positions)).n_prompts:
                yield writes.to_frame().assign(positions=positions)

    def plot(self) -> go.Figure:
        """Draw norms, ratios and cosines over depth."""
        return lines_over_depth(
            self.writes().to_frame(),
            y="mean",
            groups="component",
            panels="measure",
            title=f"What each sublayer writes to the residual stream, mean over {self.positions}",
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return what the second half of the layers writes, who writes most, and who erases."""
        return self._halves(), self._most(), self._erasing()

    @property
    def _left_out(self) -> str:
        return ", position 0 left out" if self.positions == ALL_BUT_FIRST else ""

    @property
    def _other(self) -> tuple[str, Writes] | None:
        """Return the positions that findings are not of, and what is written there."""
        positions = ALL if self.positions == ALL_BUT_FIRST else ALL_BUT_FIRST
        writes = self.writes(positions)
        return (positions, writes) if writes.n_prompts else None

    def _halves(self) -> Finding:
        writes = self.writes()
        if writes.n_layers < 2:
            return Finding("The model has one layer, so there are no halves to compare.")
        share = writes.second_half
        return Finding(
            "Relative to the stream, the second half's median layer writes"
            f" {share:.2f} times what the first half's does{self._left_out}.",
            share,
            "relative write of the second half's median layer, as a multiple of the first half's",
            control=Compared("writes of one length, by the stream's growth", writes.by_growth),
            rival=self._other and Compared(self._other[0], self._other[1].second_half),
        )

    def _most(self) -> Finding:
        writes, rival = self.writes(), None
        most = writes.largest()
        note = f"{how_picked(most.estimate)}{halves_pick(most)}"
        if writes.n_layers > 1:
            second = writes.largest(1)
            next_one = f"layer {second.index}, the next" if second.is_stable else "the next"
            rival = Compared(next_one, second.estimate)
        if self._other:
            other = self._other[1].largest()
            which = f"layer {other.index}" if other.is_stable else "the largest"
            note = f"{note}; {self._other[0]}: {which}, {other.estimate.value:.2f}"
        who = f"Layer {most.index} writes most:"
        if not most.is_stable:
            who = "The layer that writes most on half of the prompts writes"
        return Finding(
            f"{who} {most.estimate:.2f} times the stream's length{self._left_out}.",
            most.estimate,
            "write of the layer that writes most, relative to the stream",
            rival=rival,
            note=note,
        )

    def _erasing(self) -> Finding:
        writes = self.writes()
        erasing, has_band = writes.erasing
        who = layers_named(erasing, of=writes.n_layers)
        verb = "writes" if len(erasing) < 2 else "write"
        many = f"all {writes.n_layers} layers tested at once (max-statistic)"
        return Finding(
            f"{who.capitalize()} {verb} against the stream (negative cosine){self._left_out}.",
            note=many if has_band else "means alone: fewer than 5 groups of prompts",
        )
