"""How far layers turn the stream, over prompts."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.figures.plots import Axes, grid_below, lines_over_depth
from interp.figures.words import ALL
from interp.result import Compared, Finding, Result
from interp.stats.estimate import Estimate, estimate, estimates
from interp.sweeps.cosines import MEASURES


@dataclass(frozen=True, repr=False)
class BlockInfluenceResult(Result):
    """Arrays: means [prompt layer measure], flat_cosine [prompt layer], last_cosine, ..."""

    arrays: dict[str, np.ndarray]
    seed: int = 0
    positions: str = ALL

    @property
    def n_layers(self) -> int:
        """Return the number of layers."""
        return len(self.arrays["flat_cosine"][0])

    @property
    def angles(self) -> np.ndarray:
        """Return the last token's angular distance between taps [prompt tap tap], in half turns."""
        angles: np.ndarray = np.arccos(self.arrays["last_cosine"].clip(-1, 1)) / np.pi
        return np.where(np.eye(self.n_layers + 1, dtype=bool), 0.0, angles)

    def of(self, measure: str) -> np.ndarray:
        """Return one of `MEASURES` for every layer, the token-weighted mean."""
        means = self.arrays["means"][..., MEASURES.index(measure)]
        averages: np.ndarray = np.average(means, axis=0, weights=self.arrays["n_pos"])
        return averages

    def to_frame(self) -> pd.DataFrame:
        """Return columns measure, layer, span, mean, low, high (95 % bootstrap over prompts).

        Measures: those of `MEASURES`, "LIM" (BI - 1), "LIM, flattened" and "ZD" of one layer;
        "angular distance" of the last token, in half turns, over `span` layers from `layer` on.
        """
        return pd.concat([*self._layer_rows(), *self._span_rows()], ignore_index=True)

    def _layer_rows(self) -> Iterator[pd.DataFrame]:
        means = np.moveaxis(self.arrays["means"], -1, 0)
        for measure, values in zip(MEASURES, means, strict=True):
            yield self._rows(measure, values, weights=self.arrays["n_pos"])
        lim = self._rows("LIM", means[0], weights=self.arrays["n_pos"])
        yield lim.assign(**{column: lim[column] - 1 for column in ("mean", "low", "high")})
        yield self._rows("LIM, flattened", -self.arrays["flat_cosine"])
        yield self._rows("ZD", self.arrays["large_weights"])

    def _span_rows(self) -> Iterator[pd.DataFrame]:
        for span in range(1, self.n_layers + 1):
            yield self._rows(
                "angular distance", np.diagonal(self.angles, span, axis1=1, axis2=2), span=span
            )

    def _rows(
        self, measure: str, values: np.ndarray, *, weights: np.ndarray | None = None, span: int = 1
    ) -> pd.DataFrame:
        keys = {"measure": measure, "layer": np.arange(values.shape[1]), "span": span}
        columns = estimates(values, weights=weights, seed=self.seed)
        return pd.DataFrame(keys | {name: columns[name] for name in ("mean", "low", "high")})

    def plot(self) -> go.Figure:
        """Draw BI next to what lengths alone would give, its siblings, and every span's angle."""
        panels = {name: "Block Influence (LIM + 1)" for name in MEASURES[:2]}
        panels |= {name: name for name in ("relative magnitude", "LIM, flattened", "ZD")}
        frame = pd.concat(self._layer_rows(), ignore_index=True)
        frame["panel"] = frame["measure"].map(panels)
        title = (
            f"How far each layer turns the stream, mean over {self.positions};"
            " below, how far the spans of layers turn the last token"
        )
        figure = lines_over_depth(
            frame.dropna(subset="panel"), y="mean", groups="measure", panels="panel", title=title
        )
        mean = self.angles.mean(0)
        grid = np.full((self.n_layers, self.n_layers), np.nan)
        for span in range(1, self.n_layers + 1):
            grid[span - 1, : self.n_layers + 1 - span] = np.diagonal(mean, span)
        return grid_below(
            figure,
            grid,
            axes=Axes("first layer of the span", "layers in the span", of="half turns"),
            y_first=1,
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return which layers turn the stream least and most, and what lengths alone explain."""
        order = self.of("BI").argsort().tolist()
        if self.n_layers < 2:
            return (self._finding(0, "least"),)
        next_one = Compared(f"layer {order[1]}, the next", self._estimate("BI", order[1]))
        least = replace(self._finding(order[0], "least"), rival=next_one)
        return least, self._finding(order[-1], "most")

    def _finding(self, layer: int, extreme: str) -> Finding:
        influence = self._estimate("BI", layer)
        return Finding(
            f"Layer {layer} turns the stream {extreme}: its Block Influence is {influence:.3f}.",
            influence,
            f"BI of the layer that turns the stream {extreme}",
            control=Compared(
                "orthogonal writes of the same length",
                self._estimate("BI if writes were orthogonal", layer),
            ),
        )

    def _estimate(self, measure: str, layer: int) -> Estimate:
        values = self.arrays["means"][:, layer, MEASURES.index(measure)]
        return estimate(values, weights=self.arrays["n_pos"], seed=self.seed)
