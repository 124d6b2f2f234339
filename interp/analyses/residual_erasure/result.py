"""Up to which depth a stream is needed, from the effects of erasing it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.figures.plots import grids_over_positions
from interp.result import Finding, Result
from interp.stats.align import Aligned
from interp.stats.bootstrap import resampled_means
from interp.stats.estimate import estimate_of

if TYPE_CHECKING:
    from interp.analyses.residual_erasure import ResidualErasure

Erasing = Literal["position", "prefix"]
_SHOWN = {"position": "one position erased", "prefix": "all up to a position erased, but the first"}
_ERASED = {
    "position": "one token between the first and the last",
    "prefix": "all tokens between the first and the last",
}
_COLUMNS = ["scope", "effect", "layer", "position", "mean", "low", "high", "max", "n_prompts"]


@dataclass(frozen=True, repr=False)
class ResidualErasureResult(Result):
    """Effects [prompt tap column] by name, such as "position.output"."""

    analysis: "ResidualErasure"
    effects: dict[str, Aligned]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per scope, effect, layer (tap) and position; statistics over prompts.

        Effects: "output" (L2 change of the probabilities, at most 1.41) and "answer" (fall of the
        answer's probability). `position` counts from the prompt's end: "-1" is its last token,
        "+1" behind it; "first" is the first token.
        """
        frames = []
        for key, aligned in self.effects.items():
            scope, effect = key.split(".")
            rows = aligned.to_frame(seed=self.analysis.seed).assign(scope=scope, effect=effect)
            frames.append(rows if scope == "position" else rows[rows["position"] != "first"])
        return pd.concat(frames, ignore_index=True)[_COLUMNS]

    def plot(self) -> go.Figure:
        """Draw the mean change of the probabilities by tap and position.

        The first token does not set the colours.
        """
        frame = self.to_frame()
        frame = frame[frame["effect"] == "output"]
        return grids_over_positions(
            frame.assign(scope=frame["scope"].map(_SHOWN)),
            panels="scope",
            y="erased in front of layer (top: behind all)",
            title=(
                "How much the answer's probabilities change"
                " when the stream is erased (mean over prompts)"
            ),
            colour="L2 change",
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return for every scope up to which share of the depth erasing matters."""
        return tuple(self._finding(scope) for scope in self.analysis.scopes)

    def _finding(self, scope: Erasing) -> Finding:
        values = self.effects[f"{scope}.output"].values[:, :, self._columns(scope)]
        depth = estimate_of(
            self._depth(np.nanmean(values, axis=0).max(1)),
            map(self._depth, self._resampled(scope)),
            n=len(values),
        )
        return Finding(
            f"Erasing {_ERASED[scope]} matters up to {depth:.0%} of the depth.",
            depth,
            f"share of layers up to which erasing {_ERASED[scope]} matters",
        )

    def _depth(self, largest: np.ndarray) -> float:
        """Return the share of layers in front of the last tap where the effect [tap] matters."""
        taps = np.flatnonzero(largest >= self.analysis.matters)
        return float(taps[-1]) / (len(largest) - 1) if len(taps) else 0.0

    def _resampled(self, scope: str) -> np.ndarray:
        """Return the largest mean effect over positions [resample tap] of resampled prompts."""
        aligned, seed = self.effects[f"{scope}.output"], self.analysis.seed
        largest = np.zeros(0)
        for column in self._columns(scope):
            values = aligned.values[:, :, column].astype(np.float64)
            has_value = ~np.isnan(values)
            total, share = (
                resampled_means(x, seed=seed)
                for x in (np.nan_to_num(values), has_value.astype(np.float64))
            )
            mean = np.divide(total, share, out=np.zeros_like(total), where=share > 0)
            largest = np.maximum(largest, mean) if largest.size else mean
        return largest

    def _columns(self, scope: str) -> list[int]:
        """Return the columns before the last position; of prefixes, only the longest."""
        columns = [
            i for i, at in enumerate(self.effects[f"{scope}.output"].positions, 1) if at < -1
        ]
        return columns[-1:] if scope == "prefix" else columns
