"""Up to which depth a stream is needed, from the effects of erasing it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.figures.plots import grids_over_positions
from interp.result import Compared, Finding, Result
from interp.stats.align import Aligned
from interp.stats.estimate import Estimate, estimate_of

if TYPE_CHECKING:
    from interp.analyses.residual_erasure import ResidualErasure

Erasing = Literal["position", "prefix"]
_SHOWN = {"position": "one position erased", "prefix": "all up to a position erased, but the first"}
_ERASED = {
    "position": "the most important token between the first and the last",
    "prefix": "all tokens between the first and the last",
}
_COLUMNS = ["scope", "effect", "layer", "position", "mean", "low", "high", "max", "n_prompts"]


@dataclass(frozen=True, repr=False)
class ResidualErasureResult(Result):
    """Effects [prompt tap column] by name, such as "position.output"."""

    analysis: "ResidualErasure"
    effects: dict[str, Aligned]
    taps: np.ndarray  # the numbers of those looked at, the last after all layers

    def to_frame(self) -> pd.DataFrame:
        """Return one row per scope, effect, layer (tap) and position; statistics over prompts.

        Effects: "output" (L2 change of the probabilities, at most 1.41) and "answer" (fall of the
        answer's probability). `position` counts from the prompt's end: "-1" is its last token,
        "+1" after it; "first" is the first token.
        """
        frames = []
        for key, aligned in self.effects.items():
            scope, effect = key.split(".")
            rows = self._rows(aligned).assign(scope=scope, effect=effect)
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
            y="erased before layer (top: after all)",
            title=(
                "How much the answer's probabilities change"
                " when the stream is erased (mean over prompts)"
            ),
            colour="L2 change",
        )

    def _rows(self, aligned: Aligned) -> pd.DataFrame:
        frame = aligned.to_frame(seed=self.analysis.seed, groups=self.prompt_groups)
        return frame.assign(layer=self.taps[frame["layer"]])

    def findings(self) -> tuple[Finding, ...]:
        """Return for every scope up to which share of the depth erasing matters."""
        return tuple(self._finding(scope) for scope in self.analysis.scopes)

    def _finding(self, scope: Erasing) -> Finding:
        depth, first = self._depth(self._largest(scope)), None
        if scope == "position":
            first = self.effects["position.output"].values[:, :, 0]
        return Finding(
            f"Erasing {_ERASED[scope]} matters up to {depth:.0%} of the depth.",
            depth,
            f"share of layers up to which erasing {_ERASED[scope]} matters",
            rival=None if first is None else Compared("the first token", self._depth(first)),
            note=f"mean L2 change of {self.analysis.matters:g} or more; erasing the last token"
            " matters to the end by construction",
        )

    def _largest(self, scope: Erasing) -> np.ndarray:
        """Return each prompt's largest effect [prompt tap] of a token between first and last.

        Of prefixes, it is that of the longest.
        """
        aligned = self.effects[f"{scope}.output"]
        columns = 1 + np.flatnonzero(aligned.positions < -1)
        largest: np.ndarray = np.nanmax(
            aligned.values[:, :, columns[-1:] if scope == "prefix" else columns], axis=2
        )
        return largest

    def _depth(self, effect: np.ndarray) -> Estimate:
        """Return the share of layers before the last tap where an effect [prompt tap] matters.

        It matters where its mean over prompts is `matters` or more.
        """

        def last_tap(mean: np.ndarray) -> float:
            taps = np.flatnonzero(mean >= self.analysis.matters)
            return float(self.taps[taps[-1]]) / self.taps[-1] if len(taps) else 0.0

        return estimate_of(last_tap, effect, groups=self.prompt_groups, seed=self.analysis.seed)
