"""The gain of blocks, the gradient and the likeness of writes over depth."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.block_gain.findings import findings_of
from interp.analyses.block_gain.measures import DIRECTIONS, SIZES
from interp.figures.plots import Axes, grid_below, lines_over_depth
from interp.figures.words import ALL_BUT_FIRST
from interp.result import Finding, Result
from interp.stats.estimate import estimates
from interp.stats.groups import Array

if TYPE_CHECKING:
    from interp.analyses.block_gain import BlockGain

GRADIENT = "gradient of the loss, nats per unit"
COSINES = ("cosine of writes to one token", "cosine of writes to different tokens")
_GAINS = tuple(f"gain along {name}" for name in ("a random direction", "the previous write", "h"))
_MOST_TICKS = 6


@dataclass(frozen=True, repr=False)
class BlockGainResult(Result):
    """Arrays: gains and sizes [prompt layer measure], gradient [prompt tap], and cosines.

    "cosines" are [prompt layer layer 2], "n_pos" and "rounding" [prompt].
    """

    analysis: "BlockGain"
    arrays: dict[str, np.ndarray]

    def gain(self, direction: str = DIRECTIONS[0]) -> Array:
        """Return the mean gain [layer] along one of `DIRECTIONS`; NaN where there is none."""
        return self._mean(self.arrays["gains"][..., DIRECTIONS.index(direction)])

    def gradient(self) -> Array:
        """Return the mean norm of the gradient [tap], in nats per unit of the stream."""
        mean: Array = self.arrays["gradient"].mean(0)
        return mean

    def cosines(self) -> Array:
        """Return the mean cosine of what two layers write to one token [layer layer]."""
        return self._mean(self.arrays["cosines"][..., 0])

    def _mean(self, values: np.ndarray) -> Array:
        mean: Array = np.average(values, axis=0, weights=self.arrays["n_pos"])
        return mean

    def to_frame(self) -> pd.DataFrame:
        """Return columns measure, layer, other (layer, of a cosine), mean, low and high.

        Means are over tokens but each prompt's first; those of the gradient over prompts. A
        gradient at layer `n_layers` is after the last. low and high are a 95 % interval over
        groups of prompts.
        """
        frame = pd.concat([*self._depth_rows(), *self._pair_rows()], ignore_index=True)
        return frame.astype({"layer": "Int64", "other": "Int64"})

    def _depth_rows(self) -> Iterator[pd.DataFrame]:
        for name, values in zip(_GAINS, np.moveaxis(self.arrays["gains"], -1, 0), strict=True):
            known = ~np.isnan(values).any(0)
            keys = {"measure": name, "layer": np.flatnonzero(known)}
            yield pd.DataFrame(keys | self._columns(values[:, known]))
        for name, values in zip(SIZES, np.moveaxis(self.arrays["sizes"], -1, 0), strict=True):
            keys = {"measure": name, "layer": np.arange(values.shape[1])}
            yield pd.DataFrame(keys | self._columns(values))
        gradient = self.arrays["gradient"]
        columns = estimates(gradient, groups=self.prompt_groups, seed=self.analysis.seed)
        keys = {"measure": GRADIENT, "layer": np.arange(gradient.shape[1])}
        yield pd.DataFrame(keys | {name: columns[name] for name in ("mean", "low", "high")})

    def _pair_rows(self) -> Iterator[pd.DataFrame]:
        layer, other = np.triu_indices(self.arrays["cosines"].shape[1], k=1)
        for i, name in enumerate(COSINES):
            values = self.arrays["cosines"][..., i]
            values = (values[:, layer, other] + values[:, other, layer]) / 2
            keys = {"measure": name, "layer": layer, "other": other}
            yield pd.DataFrame(keys | self._columns(values))

    def _columns(self, values: np.ndarray) -> dict[str, np.ndarray]:
        columns = estimates(
            values,
            weights=self.arrays["n_pos"],
            groups=self.prompt_groups,
            seed=self.analysis.seed,
        )
        return {name: columns[name] for name in ("mean", "low", "high")}

    def plot(self) -> go.Figure:
        """Draw gains and write sizes, the gradient, and the cosines of what layers write.

        Dashed: what the gain would be if it went with 1 / stream alone.
        """
        frame = self.to_frame()
        panels = dict.fromkeys((*_GAINS, SIZES[0]), _PANELS[0]) | {GRADIENT: _PANELS[1]}
        frame = frame[frame["measure"].isin(panels)]
        frame = frame.assign(panel=frame["measure"].map(panels), line=frame["measure"].map(_LINES))
        frame["layer"] = frame["layer"].astype(int)
        title = f"What a small step of its input changes in a block's write, {ALL_BUT_FIRST}"
        figure = lines_over_depth(frame, y="mean", groups="line", panels="panel", title=title)
        look = {"line": {"dash": "dash", "color": "#666666"}, "name": "as 1 / ‖h‖ predicts"}
        predicted = self._predicted().astype(np.float32)
        figure.add_scatter(x=np.arange(len(predicted)), y=predicted, **look, row=1, col=1)
        figure.data[-1].mode = "lines"
        drawn = (frame[frame["measure"] != GRADIENT]["mean"], self.gradient())
        for col, values in enumerate(drawn, 1):
            figure.update_yaxes(**_by_orders(np.asarray(values, float)), row=1, col=col)
        titles = [each for each in figure.layout.annotations if each.text in _PANELS]
        figure.layout.annotations = titles  # by orders of magnitude nothing is cut off
        grid = np.where(np.tri(len(self.cosines()), k=-1, dtype=bool), self.cosines(), np.nan)
        top = float(np.nanmax(np.abs(grid)))
        axes = Axes("layer", "later layer", of="cosine of what two layers write to one token")
        return grid_below(figure, grid, axes=axes, top=top, zmin=-top, colorscale="RdBu_r")

    def _predicted(self) -> Array:
        """Return 1 / stream [layer], scaled so that the median layer has its gain."""
        inverse = self._mean(self.arrays["sizes"][..., 1])
        predicted: Array = inverse * np.median(self.gain() / inverse)
        return predicted

    def findings(self) -> tuple[Finding, ...]:
        """Return how gain and gradient go with depth, and whether layers write alike."""
        return findings_of(self)


_PANELS = ("gain, ‖ΔF‖ / ‖Δh‖", "gradient, ‖∂L/∂h‖")
_LINES = {
    _GAINS[0]: "random direction",
    _GAINS[1]: "previous write",
    _GAINS[2]: "h itself",
    SIZES[0]: "size of the write, ‖F‖ / ‖h‖",
    GRADIENT: _PANELS[1],
}


def _by_orders(values: Array) -> dict[str, Any]:
    """Return an axis by orders of magnitude whose ticks are written in full."""
    known = np.log10(values[values > 0])
    low, high = float(known.min(initial=9)) - 0.1, float(known.max(initial=-9)) + 0.1
    at = [m * 10.0**k for k in range(int(low) - 1, int(high) + 2) for m in (1, 2, 5)]
    ticks = [tick for tick in at if low <= np.log10(tick) <= high]
    if len(ticks) > _MOST_TICKS:
        ticks = [tick for tick in ticks if np.isclose(np.log10(tick) % 1, 0)]
    names = [f"{tick:.10g}" for tick in ticks]
    return {"type": "log", "range": [low, high], "tickvals": ticks, "ticktext": names}
