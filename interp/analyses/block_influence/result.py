"""How far layers turn the stream, over prompts."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.figures.plots import Axes, grid_below, lines_over_depth
from interp.figures.words import ALL, ALL_BUT_FIRST, halves_pick, how_picked
from interp.result import Compared, Finding, Result
from interp.stats.estimate import estimates
from interp.stats.picked import Picked, picked, ranked
from interp.sweeps.cosines import MEASURES

_BEYOND = "BI less that of orthogonal writes"


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
        """Return columns positions, measure, layer, span, mean, low, high (95 % over groups).

        Measures: those of `MEASURES`, "LIM" (BI - 1), "LIM, flattened" and "ZD" of one layer;
        "angular distance" of the last token, in half turns, over `span` layers from `layer` on.
        Those of `MEASURES` are given over all positions and over all but the first.
        """
        rows = [rows.assign(positions=self.positions) for rows in self._layer_rows()]
        rows += [rows.assign(positions=self._other_positions) for rows in self._other_rows()]
        rows += [rows.assign(positions="last") for rows in self._span_rows()]
        return pd.concat(rows, ignore_index=True)

    @property
    def _other_positions(self) -> str:
        return ALL if self.positions == ALL_BUT_FIRST else ALL_BUT_FIRST

    def _other_rows(self) -> Iterator[pd.DataFrame]:
        """Yield `MEASURES` over the other positions; parts of interp 0.1 lack them."""
        if "other_means" not in self.arrays:
            return
        values, n_pos = self.arrays["other_means"], self.arrays["n_pos"]
        n_pos = n_pos + (1 if self.positions == ALL_BUT_FIRST else -1)
        kept, groups = n_pos > 0, self.prompt_groups
        for i, measure in enumerate(MEASURES) if kept.any() else ():
            columns = estimates(
                values[kept][..., i],
                weights=n_pos[kept],
                groups=None if groups is None else groups[kept],
                seed=self.seed,
            )
            yield self._of_columns(measure, columns)

    def _layer_rows(self) -> Iterator[pd.DataFrame]:
        means = np.moveaxis(self.arrays["means"], -1, 0)
        for measure, values in zip(MEASURES, means, strict=True):
            yield self._rows(measure, values, weights=self.arrays["n_pos"])
        lim = self._rows("LIM", means[0], weights=self.arrays["n_pos"])
        yield lim.assign(**{column: lim[column] - 1 for column in ("mean", "low", "high")})
        yield self._rows("LIM, flattened", -self.arrays["flat_cosine"])
        yield self._rows("ZD", self.arrays["large_weights"])

    def _beyond_rows(self) -> pd.DataFrame:
        """Return how much further layers turn the stream than orthogonal writes would."""
        means = self.arrays["means"]
        return self._rows(_BEYOND, means[..., 0] - means[..., 1], weights=self.arrays["n_pos"])

    def _span_rows(self) -> Iterator[pd.DataFrame]:
        for span in range(1, self.n_layers + 1):
            yield self._rows(
                "angular distance", np.diagonal(self.angles, span, axis1=1, axis2=2), span=span
            )

    def _rows(
        self, measure: str, values: np.ndarray, *, weights: np.ndarray | None = None, span: int = 1
    ) -> pd.DataFrame:
        columns = estimates(values, weights=weights, groups=self.prompt_groups, seed=self.seed)
        return self._of_columns(measure, columns, span=span)

    def _of_columns(
        self, measure: str, columns: dict[str, np.ndarray], *, span: int = 1
    ) -> pd.DataFrame:
        keys = {"measure": measure, "layer": np.arange(len(columns["mean"])), "span": span}
        return pd.DataFrame(keys | {name: columns[name] for name in ("mean", "low", "high")})

    def plot(self) -> go.Figure:
        """Draw BI over what lengths alone would give, the difference, and every span's angle."""
        panels = {name: "Block Influence" for name in MEASURES[:2]}
        panels |= {name: name for name in (_BEYOND, "relative magnitude", "ZD")}
        rows = [*self._layer_rows()]
        rows.insert(2, self._beyond_rows())
        frame = pd.concat(rows, ignore_index=True)
        frame["panel"] = frame["measure"].map(panels)
        title = (
            f"How far each layer turns the stream, mean over {self.positions};"
            " below, how far the spans of layers turn the last token"
        )
        figure = lines_over_depth(
            frame.dropna(subset="panel"), y="mean", groups="measure", panels="panel", title=title
        )
        control = {"mode": "lines", "line": {"color": "grey", "dash": "dot"}}
        figure.update_traces(control, selector={"name": MEASURES[1]})
        mean = self.angles.mean(0)
        grid = np.full((self.n_layers, self.n_layers), np.nan)
        for span in range(1, self.n_layers + 1):
            grid[span - 1, : self.n_layers + 1 - span] = np.diagonal(mean, span)
        return grid_below(
            figure,
            grid,
            axes=Axes(
                "first layer of the span",
                "layers in the span",
                of="how far the span turns the last token, half turns",
            ),
            y_first=1,
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return which layers turn the stream least and most, and what lengths alone explain."""
        least = self._finding("least")
        return (least, self._finding("most")) if self.n_layers > 1 else (least,)

    def _finding(self, extreme: str) -> Finding:
        influence, rival = self._pick("BI", extreme), None
        if self.n_layers > 1:
            following = self._pick("BI", extreme, rank=1)
            next_one = f"layer {following.index}, the next" if following.is_stable else "the next"
            rival = Compared(next_one, following.estimate)
        left_out = ", position 0 left out" if self.positions == ALL_BUT_FIRST else ""
        who = f"Layer {influence.index} turns the stream {extreme}: its Block Influence is"
        if not influence.is_stable:
            who = f"The layer that turns the stream {extreme} on half of the prompts has a Block"
            who += " Influence of"
        return Finding(
            f"{who} {influence.estimate:.3f}{left_out}.",
            influence.estimate,
            f"BI of the layer that turns the stream {extreme}",
            control=Compared(
                "orthogonal writes of the same length",
                self._pick("BI if writes were orthogonal", extreme).estimate,
            ),
            rival=rival,
            note=f"{how_picked(influence.estimate)}{halves_pick(influence)}",
        )

    def _pick(self, measure: str, extreme: str, *, rank: int = 0) -> Picked:
        """Return a measure of the layer with the least or most BI, or the `rank`-th after it."""
        values, bi = (self.arrays["means"][..., MEASURES.index(name)] for name in (measure, "BI"))
        weights = self.arrays["n_pos"]
        return picked(
            values,
            choose=ranked(bi if extreme == "most" else -bi, rank, weights=weights),
            weights=weights,
            groups=self.prompt_groups,
            seed=self.seed,
        )
