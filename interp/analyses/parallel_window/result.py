"""How much is lost when windows of layers run side by side, over prompts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.figures.plots import Axes, grid_below, lines_over_depth
from interp.figures.words import PICKED
from interp.result import Compared, Finding, Result
from interp.stats.estimate import Estimate, estimate, estimates
from interp.stats.picked import Picked, picked
from interp.sweeps.positions import positions_read

if TYPE_CHECKING:
    from interp.analyses.parallel_window import ParallelWindow

MEASURES = ("relative error", "cosine")
PAIRS = "pair interaction"
OUTPUT_MEASURES = ("KL(parallel‖final), nats", "KL(final‖parallel), nats", "same first token")


@dataclass(frozen=True, repr=False)
class ParallelWindowResult(Result):
    """Arrays: windows [prompt first last measure], n_pos, outputs [prompt window measure].

    `pairs` [prompt first last] are interactions of two layers.
    """

    analysis: "ParallelWindow"
    arrays: dict[str, np.ndarray]

    def grid(self, measure: str = MEASURES[0]) -> np.ndarray:
        """Return one of `MEASURES` for every first (row) and last layer; NaN without a window."""
        values = self.arrays["windows"][..., MEASURES.index(measure)]
        mean = np.average(values, axis=0, weights=self.arrays["n_pos"])
        return np.where(np.tri(len(mean), k=-1, dtype=bool), np.nan, mean)

    def pairs(self) -> np.ndarray:
        """Return the interaction of every two layers, by the first (row) and the last.

        That is ||F_j(x + F_i(x)) - F_j(x)|| / ||F_j(x)||, with x before layer i and nothing
        between i and j: 0, j reads nothing of what i writes. NaN where j is not behind i.
        """
        mean = np.average(self.arrays["pairs"], axis=0, weights=self.arrays["n_pos"])
        return np.where(np.tri(len(mean), dtype=bool), np.nan, mean)

    def to_frame(self) -> pd.DataFrame:
        """Return columns measure, first, last, layers (in the window), mean, low and high.

        A pair's interaction is in the row of the window that it bounds. Means are over tokens,
        their 95 % intervals over groups of prompts.
        """
        return pd.concat(self._rows(), ignore_index=True)

    def _rows(self) -> Iterator[pd.DataFrame]:
        first, last = np.triu_indices(len(self.grid()))
        for i, measure in enumerate(MEASURES):
            yield self._frame(measure, first, last, self.arrays["windows"][:, first, last, i])
        if "pairs" in self.arrays:  # not in parts of interp 0.1
            first, last = np.triu_indices(len(self.grid()), k=1)
            yield self._frame(PAIRS, first, last, self.arrays["pairs"][:, first, last])
        if "outputs" in self.arrays:
            first, last = np.array(self.analysis.windows).T
            for i, measure in enumerate(OUTPUT_MEASURES):
                yield self._frame(measure, first, last, self.arrays["outputs"][..., i])

    def _frame(
        self, measure: str, first: np.ndarray, last: np.ndarray, values: np.ndarray
    ) -> pd.DataFrame:
        columns = estimates(
            values,
            weights=self.arrays["n_pos"],
            groups=self.prompt_groups,
            seed=self.analysis.seed,
        )
        keys = {"measure": measure, "first": first, "last": last, "layers": last - first + 1}
        return pd.DataFrame(keys | {name: columns[name] for name in ("mean", "low", "high")})

    def plot(self) -> go.Figure:
        """Draw error, cosine and pairs by first layer, and the error of every window."""
        frame = self.to_frame()
        frame = frame[(frame["layers"] > 1) & frame["measure"].isin((*MEASURES, PAIRS))].rename(
            columns={"first": "layer"}
        )
        widths = frame["layers"].unique()
        shown = widths[np.unique(np.linspace(0, len(widths) - 1, 6).round().astype(int))]
        frame = frame[frame["layers"].isin(shown)]
        frame["window"] = frame["layers"].astype(str) + " layers"
        title = (
            "Windows of layers side by side instead of in order, mean over"
            f" {positions_read(self.analysis.first_position)} (error 1: as far off as without them)"
        )
        figure = lines_over_depth(frame, y="mean", groups="window", panels="measure", title=title)
        figure.update_xaxes(title_text="first layer of the window")
        top = max(1.0, float(np.nanquantile(self.grid(), 0.95)))
        return grid_below(
            figure,
            self.grid().T,
            axes=Axes("first layer", "last layer", of="relative error"),
            top=top,
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return how far neighbouring layers, side by side, miss what they do in sequence."""
        errors = self.arrays["windows"][..., 0]
        neighbours = np.diagonal(errors, 1, axis1=1, axis2=2)
        error = self._estimate(neighbours.mean(1))
        note = f"1 by construction without the pair; {positions_read(self.analysis.first_position)}"
        control = rival = None
        if neighbours.shape[1] > 1:
            control = Compared("all layers side by side", self._estimate(errors[:, 0, -1]))
            most = self._pick(neighbours)
            rival = Compared(
                f"layers {most.index} and {most.index + 1}, which miss most", most.estimate
            )
            note = f"{note}; the pair that misses most: {PICKED}"
        first = Finding(
            f"Run side by side, two neighbouring layers miss {error:.0%} of what they do in order,"
            " on average.",
            error,
            "share of what two neighbouring layers do that is missed side by side, mean over pairs",
            control=control,
            rival=rival,
            note=note,
        )
        windows = self.analysis.output_windows if "outputs" in self.arrays else ()
        outputs = [self._output(i, window) for i, window in enumerate(windows[:2])]
        return (first, *outputs)

    def _pick(self, values: np.ndarray) -> Picked:
        return picked(
            values,
            weights=self.arrays["n_pos"],
            groups=self.prompt_groups,
            seed=self.analysis.seed,
        )

    def _output(self, i: int, window: str) -> Finding:
        divergence = self._estimate(self.arrays["outputs"][:, i, 1])
        return Finding(
            f"Layers {window} side by side change the output"
            f" by {divergence:.2f} nats (KL(final‖parallel)).",
            divergence,
            "KL(final‖parallel) at the output of an output window, nats",
        )

    def _estimate(self, values: np.ndarray) -> Estimate:
        return estimate(
            values,
            weights=self.arrays["n_pos"],
            groups=self.prompt_groups,
            seed=self.analysis.seed,
        )
