"""What the lens reads, as curves over depth, and the effective depths made of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.logit_lens.measures import (
    COSINE,
    FINAL_LENS,
    FIRST,
    LENS_FINAL,
    OF_ANSWER,
    PROBABILITY,
    at_positions,
    effective_depths,
    over_positions,
)
from interp.figures.plots import Axes, grid_below, lines_over_depth
from interp.result import Finding, Result
from interp.stats.bootstrap import interval_of, resampled_means
from interp.stats.estimate import Estimate, estimates
from interp.sweeps.positions import first_read, positions_read

if TYPE_CHECKING:
    from interp.analyses.logit_lens import LogitLens

_DEPTHS = {
    "KL": "the KL divergence from the final prediction",
    "overlap": "the overlap of the most probable tokens",
    "cosine": "the cosine of writes",
}


@dataclass(frozen=True, repr=False)
class LogitLensResult(Result):
    """Readings [prompt tap pos reading], aligned at the end, and cosines [prompt layer part]."""

    analysis: "LogitLens"
    readings: np.ndarray
    cosines: np.ndarray

    @property
    def n_layers(self) -> int:
        """Return the number of layers; there is one tap more."""
        return len(self.cosines[0])

    @property
    def _overlap(self) -> str:
        return f"top-{self.analysis.top_k} overlap"

    @cached_property
    def _at_positions(self) -> dict[str, np.ndarray]:
        """Return every measure [prompt tap pos]."""
        return at_positions(self.readings, overlap=self._overlap)

    @cached_property
    def _per_prompt(self) -> dict[str, np.ndarray]:
        """Return every measure [prompt tap], averaged over positions; the answer's at the last."""
        n_pad = self.readings.shape[2] - self._n_pos
        first = n_pad if first_read(self.analysis.first_position) else None
        values = over_positions(self._at_positions, left_out=first)
        return values | {COSINE: self.cosines.mean(2)}

    @property
    def _n_pos(self) -> np.ndarray:
        return np.asarray((~np.isnan(self.readings[:, 0, :, 0])).sum(1))

    def _weights(self, measure: str) -> np.ndarray:
        """Return every prompt's weight in a mean: 1, or its tokens for means over tokens."""
        if self.analysis.weighting == "token" and measure not in OF_ANSWER:
            return self._n_pos - float(first_read(self.analysis.first_position))
        return np.ones(len(self._per_prompt[measure]))

    @cached_property
    def _estimates(self) -> dict[str, dict[str, np.ndarray]]:
        """Return every measure's mean, low and high [tap]."""
        return {
            name: estimates(values, weights=self._weights(name), seed=self.analysis.seed)
            for name, values in self._per_prompt.items()
        }

    @property
    def curves(self) -> dict[str, np.ndarray]:
        """Return every measure's mean over prompts [tap]; the cosine has none behind the last."""
        return {name: columns["mean"] for name, columns in self._estimates.items()}

    @property
    def effective_depths(self) -> dict[str, int | None]:
        """Return the three effective depths, as 0-based layers; None where never reached."""
        return self._depths_of(*(self.curves[name] for name in self._depth_measures))

    @property
    def _depth_measures(self) -> tuple[str, str, str]:
        return LENS_FINAL, self._overlap, COSINE

    def _depths_of(self, *curves: np.ndarray) -> dict[str, int | None]:
        kl, overlap, cosine = (curve[: self.n_layers] for curve in curves)
        asked = {name: getattr(self.analysis, name) for name in ("kl_share", "overlap_above")}
        return effective_depths(kl=kl, overlap=overlap, cosine=cosine, **asked)

    @cached_property
    def _depth_intervals(self) -> dict[str, tuple[float, float]]:
        """Return the 95 % interval of each effective depth's share of the depth."""
        seed = self.analysis.seed
        resampled = [
            resampled_means(self._per_prompt[name], weights=self._weights(name), seed=seed)
            for name in self._depth_measures
        ]
        drawn = [self._depths_of(*curves) for curves in zip(*resampled, strict=True)]
        return {name: interval_of(self._share(d[name]) for d in drawn) for name in _DEPTHS}

    def _share(self, layer: int | None) -> float:
        """Return a layer's share of the depth, as published; infinite if never reached."""
        return np.inf if layer is None else (layer + 1) / self.n_layers

    def to_frame(self) -> pd.DataFrame:
        """Return columns measure, layer, position, mean, median, low, high, n_prompts.

        Layer `n_layers` is behind the last layer. Position -1 is the last, -2 the one before it.
        Without a position a row is the mean over positions (of answers: the last position), with
        its 95 % bootstrap interval. "answer rank" counts the tokens more probable than the answer's
        first. "effective depth (…)": `layer` is the 0-based layer, missing where never reached, and
        `mean` the share of depth, (layer + 1) / n_layers.
        """
        rows = [*self._curve_rows(), *self._position_rows(), self._depth_rows()]
        return pd.concat(rows, ignore_index=True).astype({"layer": "Int64", "position": "Int64"})

    def _curve_rows(self) -> Iterator[pd.DataFrame]:
        for measure, columns in self._estimates.items():
            values = self._per_prompt[measure]
            keys = {"measure": measure, "layer": np.arange(values.shape[1]), "position": pd.NA}
            numbers = {"mean": columns["mean"], "median": np.median(values, axis=0)}
            interval = {"low": columns["low"], "high": columns["high"]}
            yield pd.DataFrame(keys | numbers | interval | {"n_prompts": len(values)})

    def _position_rows(self) -> Iterator[pd.DataFrame]:
        for measure, values in self._at_positions.items():
            _, n_taps, n_pos = values.shape
            taps, positions = (axis.ravel() for axis in np.mgrid[:n_taps, -n_pos:0])
            keys = {"measure": measure, "layer": taps, "position": positions}
            mean, median = (f(values, axis=0).ravel() for f in (np.nanmean, np.nanmedian))
            numbers = {"mean": mean, "median": median, "low": np.nan, "high": np.nan}
            yield pd.DataFrame(keys | numbers | {"n_prompts": (~np.isnan(values)).sum(0).ravel()})

    def _depth_rows(self) -> pd.DataFrame:
        rows = [
            {"measure": f"effective depth ({name})", "layer": pd.NA if layer is None else layer}
            | {"position": pd.NA, "mean": self._share(layer), "median": np.nan}
            | dict(zip(("low", "high"), self._depth_intervals[name], strict=True))
            | {"n_prompts": len(self.readings)}
            for name, layer in self.effective_depths.items()
        ]
        return pd.DataFrame(rows).replace([np.inf], np.nan)

    def plot(self) -> go.Figure:
        """Draw the curves and the effective depths; below, the answer's probability by position."""
        panels = dict.fromkeys((LENS_FINAL, FINAL_LENS), "KL, nats")
        panels |= dict.fromkeys((PROBABILITY, FIRST), "answer, last position")
        panels |= {self._overlap: self._overlap, COSINE: COSINE}
        frame = pd.concat(self._curve_rows(), ignore_index=True)
        frame["panel"] = frame["measure"].map(panels)
        title = (
            "What the stream predicts in front of every layer, mean over"
            f" {positions_read(self.analysis.first_position)} (dotted: effective depth)"
        )
        figure = lines_over_depth(
            frame.dropna(subset="panel"), y="mean", groups="measure", panels="panel", title=title
        )
        shown = list(dict.fromkeys(frame["panel"].dropna()))
        for name, panel in (("KL", "KL, nats"), ("overlap", self._overlap), ("cosine", COSINE)):
            layer = self.effective_depths[name]
            if layer is not None:
                figure.add_vline(x=layer, line_dash="dot", row=1, col=shown.index(panel) + 1)
        if (of_answer := self._at_positions.get(PROBABILITY)) is None:
            return figure
        grid = np.nanmean(of_answer, axis=0)
        x, y = "position (−1: the prompt's last token)", "in front of layer"
        axes = Axes(x, y, of="probability of the answer")
        return grid_below(figure, grid, axes=axes, x_first=-grid.shape[1], top=1.0)

    def findings(self) -> tuple[Finding, ...]:
        """Return how deep the stream agrees with the prediction, by the definitions reached."""
        reached = [name for name in _DEPTHS if self.effective_depths[name] is not None]
        return tuple(map(self._depth_finding, reached)) or (
            Finding("None of the three effective depths is reached."),
        )

    def _depth_finding(self, name: str) -> Finding:
        layer = self.effective_depths[name]
        depth = Estimate(self._share(layer), *self._depth_intervals[name], len(self.readings))
        return Finding(
            f"By {_DEPTHS[name]}, the effective depth is layer {layer}, {depth:.0%} of all layers.",
            depth,
            f"effective depth by {name}, (layer + 1) / layers",
        )
