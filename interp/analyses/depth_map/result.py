"""Which layer predicts which: grids of errors, and how far they run along their diagonal."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.analyses.depth_map.layer_alignment import (
    alignment_statistics,
    monotone_alignment,
    permuted,
    share_at_least,
)
from interp.figures.plots import COLOURS, heatmap, titled
from interp.result import Compared, Finding, Result
from interp.stats.bootstrap import ends_of
from interp.stats.estimate import Estimate

if TYPE_CHECKING:
    from interp.analyses.depth_map import DepthMap

_PERMUTATIONS = 1000
_AXES = {"residual": "in front of layer", "contribution": "contribution of layer"}


@dataclass(frozen=True, repr=False)
class DepthMapResult(Result):
    """Grids [source target] of "error", "r2", "ridge" and "constant" [1 target], or "similarity".

    `halves` [resample source target] are errors (or similarities) of random halves of the prompts.
    """

    analysis: "DepthMap"
    grids: dict[str, np.ndarray]
    halves: np.ndarray
    n_prompts: int
    n_tokens: int | None

    @property
    def measure(self) -> str:
        """Return which grid is judged."""
        return "similarity" if self.analysis.is_pooled else "error"

    @property
    def _first(self) -> int:
        return 1 if self.analysis.what == "residual" else 0

    @property
    def _targets(self) -> np.ndarray:
        return np.arange(self._first, self.grids[self.measure].shape[1])

    def _judged(self, grid: np.ndarray) -> np.ndarray:
        """Return errors, or 1 minus similarities, without the embeddings, as published."""
        errors = 1 - grid if self.analysis.is_pooled else grid
        judged: np.ndarray = errors[..., self._first :, self._first :]
        return judged

    @cached_property
    def statistics(self) -> pd.DataFrame:
        """Return how strong the diagonal is: value, 95 % interval, and what permuted taps reach.

        `permuted` is their 95th percentile, `p` the p-value.
        """
        errors = self._judged(self.grids[self.measure])
        shuffled = permuted(errors, n=_PERMUTATIONS, seed=self.analysis.seed)
        grids = np.concatenate([errors[None], self._judged(self.halves), shuffled])
        cuts, rows = [1, 1 + len(self.halves)], []
        for name, values in alignment_statistics(grids).items():
            (value,), halves, null = np.split(values, cuts)
            low, high = ends_of(halves)
            chance = {"permuted": np.quantile(null, 0.95), "p": share_at_least(null, value)}
            rows.append({"measure": name, "value": value, "low": low, "high": high, **chance})
        return pd.DataFrame(rows).set_index("measure")

    @property
    def best(self) -> np.ndarray:
        """Return the best source of every target but the embeddings."""
        best: np.ndarray = self._judged(self.grids[self.measure]).argmin(0) + self._first
        return best

    @property
    def aligned(self) -> np.ndarray:
        """Return the best sources that never fall with the target."""
        return monotone_alignment(self._judged(self.grids[self.measure])) + self._first

    def to_frame(self) -> pd.DataFrame:
        """Return one row per measure, source and target, and one per statistic of the whole grid.

        Measures: "error" (mean over held-out tokens of ‖y - ŷ‖ / ‖y‖, with its 95 % interval),
        "r2", "ridge" (in units of trace / d), "constant" (the error of always predicting the mean),
        or "similarity". `is_best` and `is_aligned` mark the best source of a target, freely and in
        order. Statistics have no layers, but the 95th percentile (`permuted`) and p-value (`p`)
        under permuted ones.
        """
        rows = []
        for measure, grid in self.grids.items():
            sources, targets = (axis.ravel() for axis in np.indices(grid.shape))
            cells = pd.DataFrame(
                {"measure": measure, "source": sources, "target": targets, "value": grid.ravel()}
            )
            if measure == "constant":
                cells["source"] = None
            if measure == self.measure:
                cells["low"], cells["high"] = (end.ravel() for end in ends_of(self.halves))
                for column, path in (("is_best", self.best), ("is_aligned", self.aligned)):
                    chosen = np.zeros(grid.shape, bool)
                    chosen[path, self._targets] = True
                    cells[column] = chosen.ravel()
            rows.append(cells)
        frame = pd.concat([*rows, self.statistics.reset_index()], ignore_index=True)
        return frame.astype(
            {"source": "Int64", "target": "Int64", "is_best": "boolean", "is_aligned": "boolean"}
        )

    def plot(self) -> go.Figure:
        """Draw the grid with every target's best source, and next to it what is reached there."""
        grid, axis = self.grids[self.measure], _AXES[self.analysis.what]
        label = "relative error"
        if self.analysis.is_pooled:
            label = f"{self.analysis.method.upper()} similarity"
        titles = [f"{label}, every source and target", f"{label} at the best source"]
        shape = {"column_widths": [0.6, 0.4], "horizontal_spacing": 0.2}
        figure = make_subplots(rows=1, cols=2, subplot_titles=titles, **shape)
        heatmap(
            figure,
            grid,
            at=(1, 1),
            x=f"target ({axis})",
            y=f"source ({axis})",
            reversescale=self.measure == "error",
            zmin=0,
            zmax=max(1.0, float(np.quantile(grid, 0.9))),
            colorbar={"title": {"text": label}, "x": 0.52},
        )
        self._draw_sources(figure)
        figure.update_xaxes(title_text=f"target ({axis})", dtick=max(1, grid.shape[1] // 8))
        figure.update_yaxes(title_text=label, rangemode="tozero", row=1, col=2)
        figure.update_layout(legend={"orientation": "h", "y": -0.25}, height=460)
        name = self.analysis.target or "the model itself"
        return titled(figure, f"Which layer predicts which layer of {name}")

    def _draw_sources(self, figure: go.Figure) -> None:
        dots = {"mode": "markers", "marker": {"color": COLOURS[1], "size": 9}}
        line = {"mode": "lines", "line": {"color": COLOURS[1], "width": 2}}
        for name, path, style in (
            ("best source", self.best, dots),
            ("best sources in order", self.aligned, line),
        ):
            figure.add_scatter(x=self._targets, y=path, name=name, **style, row=1, col=1)
        lines = {"at the best source": (self.grids[self.measure][self.best, self._targets], 0)}
        if "constant" in self.grids:
            lines["always the mean"] = (self.grids["constant"][0, self._targets], 5)
        for name, (y, colour) in lines.items():
            look = {"name": name, "line_color": COLOURS[colour]}
            figure.add_scatter(x=self._targets, y=y.astype(np.float32), **look, row=1, col=2)

    def findings(self) -> tuple[Finding, ...]:
        """Return the strength of the diagonal, what the best sources reach, and how they rise."""
        grid, method = self.grids[self.measure], self.analysis.method.upper()
        reached = Estimate(float(grid[self.best, self._targets].mean()), n=self.n_prompts)
        grows = "Similarity falls" if self.analysis.is_pooled else "Errors grow"
        miss, constant = f"The best sources have a mean {method} of {reached:.2g}.", None
        if not self.analysis.is_pooled:
            miss = f"The best sources miss {reached:.2g} of a held-out token's norm on average."
            mean = Estimate(float(self.grids["constant"][0, self._targets].mean()))
            constant = Compared("always predicting the mean", mean)
        return (
            self._statistic(
                "diagonal",
                f"{grows} with the distance in relative depth, with a correlation of",
                "correlation of errors with the distance in relative depth",
            ),
            Finding(miss, reached, f"mean {self.measure} at the best source", control=constant),
            self._statistic(
                "slope",
                "The depth of the best source rises with the target's, with a slope of",
                "slope of the best source's relative depth against the target's",
            ),
        )

    def _statistic(self, name: str, claim: str, measure: str) -> Finding:
        columns = ["value", "low", "high", "permuted"]
        value, low, high, chance = map(float, self.statistics.loc[name, columns])
        estimate = Estimate(value, n=self.n_prompts)
        if low <= value <= high:  # the halves' can all lie on one side of it
            estimate = Estimate(value, low, high, self.n_prompts)
        control = Compared("permuted layers (95th percentile)", Estimate(chance))
        return Finding(f"{claim} {estimate:.2f}.", estimate, measure, control=control)
