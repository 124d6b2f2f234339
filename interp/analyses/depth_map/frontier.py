"""How many layers of the target the first layers of the source are worth, by answers."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from numpy import ndarray
from plotly.subplots import make_subplots

from interp.figures.plots import COLOURS, heatmap, titled
from interp.numerals import number
from interp.result import Compared, Finding
from interp.stats.estimate import Estimate, estimate_of, estimates
from interp.stats.groups import Groups
from interp.stats.shares import share, shares
from interp.sweeps.layers import every_nth

_NAMES = {"permuted": "maps of permuted tokens", "untrained": "an untrained source"}


@dataclass(frozen=True)
class Frontier:
    """Answers of held-out prompts: `onward` [prompt grid source target], `itself`, `own`.

    `sources` and `targets` are the taps; a state "still answers" where it reaches a `share` of the
    model's own accuracy.
    """

    onward: Float[ndarray, "prompt grid source target"]
    itself: Float[ndarray, "prompt source source2"]
    own: Float[ndarray, "prompt 2"]
    sources: tuple[int, ...]
    targets: tuple[int, ...]
    share: float
    groups: Groups | None
    seed: int

    @classmethod
    def of(
        cls, held: Mapping[str, ndarray], *, every: int, share: float, seed: int
    ) -> "Frontier | None":
        """Return what is known of held-out prompts; None if no states were continued."""
        if "onward" not in held:
            return None
        _, n_sources, n_targets = held["error"].shape  # and the constant among the sources
        return cls(
            *(held["onward"], held["itself"], held["own"]),
            sources=tuple(every_nth(n_sources - 1, every)),
            targets=tuple(every_nth(n_targets, every)),
            share=share,
            groups=held.get("drawn"),
            seed=seed,
        )

    @property
    def names(self) -> list[str]:
        """Return the grids that were measured."""
        return ["measured", *_NAMES][: self.onward.shape[1]]

    @cached_property
    def _whole(self) -> ndarray:
        parts = [self.own, self.onward.reshape(len(self.own), -1)]
        return np.concatenate([*parts, self.itself.reshape(len(self.own), -1)], axis=1)

    def _reach(self, grid: ndarray, own: float, taps: tuple[int, ...]) -> ndarray:
        """Return by source the furthest tap that still answers; 0 where none does."""
        reaches = (grid >= self.share * own - 1e-9) & (own > 0)
        furthest: ndarray = np.where(reaches, np.array(taps), 0).max(1)
        return furthest

    def _grids(self, means: ndarray) -> tuple[ndarray, ndarray]:
        """Return the grids [grid source target] and the source in itself [source source]."""
        n_itself = len(self.sources) ** 2
        onward = means[2:-n_itself].reshape(self.onward.shape[1:])
        return onward, means[-n_itself:].reshape(len(self.sources), -1)

    def reached(self, means: ndarray, name: str) -> ndarray:
        """Return the frontier [source] of a grid by its name, or of "itself"."""
        onward, itself = self._grids(means)
        if name == "itself":
            return self._reach(itself, float(means[0]), self.sources)
        return self._reach(onward[self.names.index(name)], float(means[1]), self.targets)

    def frontier(self, name: str = "measured") -> dict[str, ndarray]:
        """Return the furthest tap that still answers, by source, with its interval."""
        each = [
            estimate_of(
                lambda means, i=i: float(self.reached(means, name)[i]),  # type: ignore[misc]
                self._whole,
                groups=self.groups,
                seed=self.seed,
            )
            for i in range(len(self.sources))
        ]
        return {
            "value": np.array([one.value for one in each]),
            "low": np.array([one.low for one in each]),
            "high": np.array([one.high for one in each]),
        }

    def slope(self, name: str = "measured") -> Estimate:
        """Return target layers that a layer of the source is worth.

        It is the least-squares slope through 0 of the frontier on that of the source in itself: 1
        where the target is the source, 2 where the target does the same in twice the layers.
        """

        return self._slope(lambda worth: worth[name], name)

    def slope_beyond(self, control: str) -> Estimate:
        """Return what a layer is worth beyond what it is under a control's maps."""
        return self._slope(lambda worth: worth["measured"] - worth[control], "measured", control)

    def _slope(self, statistic: Callable[[dict[str, float]], float], *names: str) -> Estimate:
        """Return a statistic of the slopes of grids by their names."""

        def slopes(means: ndarray) -> float:
            x = self.reached(means, "itself")
            below = max(1e-9, float((x * x).sum()))
            worth = {each: float((x * self.reached(means, each)).sum()) / below for each in names}
            return statistic(worth)

        return estimate_of(slopes, self._whole, groups=self.groups, seed=self.seed)

    def finding(self, name: str) -> Finding:
        """Return what a layer of the source is worth in layers of the target."""
        source, target = (share(answered, groups=self.groups) for answered in self.own.T)
        if not self.own.any(0).all():
            return Finding(
                f"No answers to compare depths by: {source:.0%} of this model's are right,"
                f" {target:.0%} of {name}'s.",
                source,
                "share of right answers of the source; where one of two models has none, no depth"
                " is compared",
            )
        slope, n_source, n_target = self.slope(), self.sources[-1], self.targets[-1]
        even = n_target / n_source
        controls = [Compared(_NAMES[each], self.slope(each)) for each in reversed(self.names[1:])]
        own = self.own.mean(0)
        return Finding(
            f"Judged by answers, a layer of this model is worth {slope:.2f} layers of {name}; in"
            f" proportion to depth it would be {even:.2g}.",
            slope,
            "layers of the target that a layer of the source is worth, by answers",
            control=controls[0],
            rival=controls[1] if len(controls) > 1 else None,
            note=f"accuracy {number(own[0], '.0%')} and {number(own[1], '.0%')}; still answers:"
            f" {number(self.share, '.0%')} of that",
        )

    def rows(self) -> Iterator[pd.DataFrame]:
        """Yield rows of the frame: "continued", its controls, "frontier" and the slope."""
        grids = {f"continued_{name}": self.onward[:, i] for i, name in enumerate(self.names)}
        for measure, values in (grids | {"continued_itself": self.itself}).items():
            found = shares(values, groups=self.groups)
            shape = found["mean"].shape
            taps = self.sources if measure.endswith("itself") else self.targets
            i, j = (axis.ravel() for axis in np.indices(shape))
            keys: dict[str, Any] = {
                "source": np.array(self.sources)[i],
                "target": np.array(taps)[j],
            }
            columns = {"value": "mean", "low": "low", "high": "high"}
            numbers = {column: found[key].ravel() for column, key in columns.items()}
            rows: dict[str, Any] = {"measure": measure, **keys, **numbers}
            yield pd.DataFrame(rows)
        for name in ("measured", "itself"):
            keys = {"measure": f"frontier_{name}", "source": np.array(self.sources)}
            yield pd.DataFrame(keys | self.frontier(name))
        for name in self.names:
            slope = self.slope(name)
            row = {"measure": f"slope_{name}", "value": [slope.value]}
            yield pd.DataFrame(row | {"low": slope.low, "high": slope.high})
        own = estimates(self.own, groups=self.groups, seed=self.seed)
        of_own: dict[str, Any] = {"value": own["mean"], "low": own["low"], "high": own["high"]}
        yield pd.DataFrame({"measure": ["accuracy_source", "accuracy_target"], **of_own})

    def plot(self, name: str) -> go.Figure:
        """Draw accuracy by where a state comes from and where it is continued, and frontiers."""
        titles = ["accuracy, continued in the target", "furthest layer that still answers"]
        shape = {"column_widths": [0.55, 0.45], "horizontal_spacing": 0.22}
        figure = make_subplots(rows=1, cols=2, subplot_titles=titles, **shape)
        axes = {"x": "continued at layer of the target", "y": "layers of this model run"}
        bar = {"x": 0.44, "tickformat": ".0%"}
        grid = self.onward[:, 0].mean(0)
        heatmap(figure, grid, at=(1, 1), zmin=0, zmax=1, colorbar=bar, **axes)
        traces = figure.data[0]
        traces.update(x=list(self.targets), y=list(self.sources))
        reached = self.frontier()
        mark = {"mode": "markers", "marker": {"color": COLOURS[1], "size": 9}}
        at = {"row": 1, "col": 1, "showlegend": False}
        figure.add_scatter(x=reached["value"], y=self.sources, **mark, **at)
        even = self.targets[-1] / self.sources[-1]
        lines = {"in the target": reached["value"]}
        lines["in itself, stretched"] = even * self.frontier("itself")["value"]
        lines |= {
            f"control: {_NAMES[each]}": self.frontier(each)["value"] for each in self.names[1:]
        }
        for i, (line, y) in enumerate(lines.items()):
            look = {"name": line, "line_color": COLOURS[(1, 0, 2, 3)[i]], "mode": "lines+markers"}
            bars = {"error_y": _bars(reached)} if i == 0 else {}
            figure.add_scatter(x=self.sources, y=y, **look, **bars, row=1, col=2)
        figure.update_xaxes(title_text="layers of this model run", row=1, col=2)
        figure.update_yaxes(rangemode="tozero", title_text="layer of the target", row=1, col=2)
        figure.update_layout(legend={"orientation": "h", "y": -0.25}, height=460)
        return titled(figure, f"How far into {name} the first layers reach, by answers")


def _bars(reached: dict[str, ndarray]) -> dict[str, object]:
    value = reached["value"]
    return {"array": reached["high"] - value, "arrayminus": value - reached["low"]}
