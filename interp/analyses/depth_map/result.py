"""Which layer predicts which: grids of errors, and what following the depth gains."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.depth_map.figure import AXES, draw
from interp.analyses.depth_map.findings import gained, reached, risen
from interp.analyses.depth_map.frontier import Frontier
from interp.analyses.depth_map.grids import Grids
from interp.analyses.depth_map.layer_alignment import alignment_statistics, monotone_alignment
from interp.analyses.depth_map.sampled import Sampled, depth_gain, sampled
from interp.result import Finding, Result
from interp.stats.estimate import NAN, Estimate

if TYPE_CHECKING:
    from interp.analyses.depth_map import DepthMap

_PICKED = ("spearman", "slope", "order")


@dataclass(frozen=True, repr=False)
class DepthMapResult(Result):
    """What every prompt says of every source and target: `measured`, and towards untrained `twins`.

    There are no twins where none were asked for or could be built. `grids` [source target] are
    "r2", "ridge" and "constant" [1 target], of errors only.
    """

    analysis: "DepthMap"
    measured: Grids
    twins: tuple[Grids, ...]
    grids: dict[str, np.ndarray]
    frontier: Frontier | None = None

    @property
    def n_prompts(self) -> int:
        """Return how many prompts are held out, or compared."""
        return self.measured.n_prompts

    @property
    def measure(self) -> str:
        """Return which grid is judged."""
        return "similarity" if self.analysis.is_pooled else "error"

    @property
    def first(self) -> int:
        """Return the first tap that is judged: embeddings are not, as published."""
        return 1 if self.analysis.what == "residual" else 0

    @cached_property
    def errors(self) -> np.ndarray:
        """Return the errors, or 1 minus the similarities, of all taps [source target]."""
        return self.measured.whole

    @property
    def best(self) -> np.ndarray:
        """Return the best source of every target but the embeddings."""
        best: np.ndarray = self.errors[self.first :, self.first :].argmin(0) + self.first
        return best

    @property
    def aligned(self) -> np.ndarray:
        """Return the best sources that never fall with the target."""
        return monotone_alignment(self.errors[self.first :, self.first :]) + self.first

    def shown(self, errors: np.ndarray) -> np.ndarray:
        """Return errors as what is shown: themselves, or similarities."""
        return np.asarray(1 - errors if self.analysis.is_pooled else errors)

    @cached_property
    def statistics(self) -> pd.DataFrame:
        """Return how far the grid follows the depth, and how far beyond untrained twins.

        Columns: value, low, high; "untrained" (the twins' mean); "beyond" (the difference),
        "beyond_low" and "beyond_high". Rows are "gain" (see `depth_gain`) and the statistics of
        `alignment_statistics`; those of the best sources, which are picked on the same prompts,
        have no intervals.
        """
        of = [self._numbers(grids) for grids in (self.measured, *self.twins)]
        rows = []
        for name, number in of[0].items():
            twins = [numbers[name] for numbers in of[1:]]
            value, beyond = number.estimate(), number.beyond(twins) if twins else Estimate(NAN)
            if name in _PICKED:
                value, beyond = Estimate(value.value), Estimate(beyond.value)
            untrained = float(np.mean([twin.value for twin in twins])) if twins else NAN
            ends = {"beyond": beyond.value, "beyond_low": beyond.low, "beyond_high": beyond.high}
            row = {"value": value.value, "low": value.low, "high": value.high}
            rows.append({"measure": name, **row, "untrained": untrained, **ends})
        return pd.DataFrame(rows).set_index("measure")

    def _numbers(self, grids: Grids) -> dict[str, Sampled]:
        first = self.first

        def statistics(errors: np.ndarray) -> np.ndarray:
            by_name = alignment_statistics(errors[:, first:, first:])
            return np.stack(list(by_name.values()), axis=1)

        whole = sampled(grids, statistics)
        names = ("diagonal", *_PICKED)
        gain = {"gain": depth_gain(grids, first=first, seed=self.analysis.seed)}
        return gain | {
            name: Sampled(
                np.asarray(whole.value[i]), whole.resampled[:, i], whole.n, whole.n_groups
            )
            for i, name in enumerate(names)
        }

    def to_frame(self) -> pd.DataFrame:
        """Return one row per measure, source and target, and one per statistic of the whole grid.

        Measures: "error" (mean over held-out tokens of ‖y - ŷ‖ / ‖y‖, with its 95 % interval),
        "r2", "ridge" (in units of trace / d), "constant" (the error of always predicting the mean),
        or "similarity"; "untrained_error" or "untrained_similarity" is the mean of the twins.
        `is_best` and `is_aligned` mark the best source of a target, freely and in order. Statistics
        have no layers, but the columns of `statistics`.
        """
        margin = sampled(self.measured, lambda errors: errors).margin()
        grids = {self.measure: self.shown(self.errors)}
        if self.twins:
            mean = np.mean([twin.whole for twin in self.twins], axis=0)
            grids[f"untrained_{self.measure}"] = self.shown(mean)
        rows = []
        for measure, grid in (grids | self.grids).items():
            sources, targets = (axis.ravel() for axis in np.indices(grid.shape))
            cells = pd.DataFrame(
                {"measure": measure, "source": sources, "target": targets, "value": grid.ravel()}
            )
            if measure == "constant":
                cells["source"] = None
            if measure == self.measure:
                cells["low"], cells["high"] = (grid - margin).ravel(), (grid + margin).ravel()
                for column, path in (("is_best", self.best), ("is_aligned", self.aligned)):
                    chosen = np.zeros(grid.shape, bool)
                    chosen[path, np.arange(self.first, grid.shape[1])] = True
                    cells[column] = chosen.ravel()
            rows.append(cells)
        onward = [] if self.frontier is None else [*self.frontier.rows()]
        frame = pd.concat([*rows, self.statistics.reset_index(), *onward], ignore_index=True)
        return frame.astype(
            {"source": "Int64", "target": "Int64", "is_best": "boolean", "is_aligned": "boolean"}
        )

    def plot(self) -> go.Figure:
        """Draw the grid with every target's best source, and next to it what is reached there."""
        analysis = self.analysis
        if self.frontier is not None:
            return self.frontier.plot(analysis.target or "the model itself")
        label = f"{analysis.method.upper()} similarity" if analysis.is_pooled else "relative error"
        targets = np.arange(self.first, self.errors.shape[1])
        lines = {"at the best source": self.shown(self.errors)[self.best, targets]}
        if self.twins:
            least = [twin.whole[self.first :, self.first :].min(0) for twin in self.twins]
            lines["there, of untrained models"] = self.shown(np.mean(least, axis=0))
        if "constant" in self.grids:
            lines["always the mean"] = self.grids["constant"][0, targets]
        return draw(
            self.shown(self.errors),
            {"best source": self.best, "best sources in order": self.aligned},
            lines,
            label=label,
            axis=AXES[analysis.what],
            name=analysis.target or "the model itself",
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return what following the depth gains, what the best sources reach, how they rise."""
        if self.frontier is not None:
            worth = self.frontier.finding(self.analysis.target or "itself")
            return worth, gained(self), reached(self)
        return gained(self), reached(self), risen(self)
