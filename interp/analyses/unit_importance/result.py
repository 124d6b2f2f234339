"""Units' scores by gradient, the loss without them, and how alike both rank them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.unit_importance.figure import figure_of
from interp.analyses.unit_importance.findings import findings_of
from interp.analyses.unit_importance.scores import SCORES, with_exact
from interp.analyses.unit_importance.units import PARTS, Drawn, Kind, UnitModules
from interp.result import Finding, Result
from interp.stats.estimate import NAN, Estimate, estimates
from interp.stats.groups import Array, Grouping
from interp.stats.ranks import Resamples, rank_correlation

if TYPE_CHECKING:
    from interp.analyses.unit_importance import UnitImportance

EXACT = "rise of the loss without it (nats)"
FEWEST = 8  # units of a kind, for a correlation to be claimed
_HALVES = 20
_OF_RANKS = "rank correlation with the rise of the loss: "
_STABLE = "rank correlation of two halves of the prompts"


@dataclass(frozen=True, repr=False)
class UnitImportanceResult(Result):
    """Sums and sizes by unit, exact effects, and which units were zeroed."""

    analysis: "UnitImportance"
    arrays: dict[str, np.ndarray]
    modules: UnitModules
    drawn: dict[Kind, Drawn]

    @cached_property
    def sums(self) -> dict[str, Array]:
        """Return every prompt's Σ θ ∂L/∂θ of each layer's units [prompt layer unit], by kind."""
        of_modules = np.stack([self.arrays[key][..., 0] for key in self.modules.keys], axis=-1)
        is_in = {part: np.array([own == part for own in self.modules.parts]) for part in PARTS}
        return {
            "layer": of_modules.sum(-1, keepdims=True),
            "attention": of_modules[..., is_in["attention"]].sum(-1, keepdims=True),
            "mlp": of_modules[..., is_in["mlp"]].sum(-1, keepdims=True),
            "head": self.arrays["head"][..., 0],
            "module": of_modules,
        }

    @cached_property
    def compared(self) -> dict[Kind, Array]:
        """Return sum, its absolute value, size and exact rise [prompt 4 unit] of zeroed units."""
        return {kind: self._compared(kind, drawn) for kind, drawn in self.drawn.items()}

    def _compared(self, kind: Kind, drawn: Drawn) -> Array:
        at = (slice(None), list(drawn.layers), list(drawn.which))
        name = "module" if kind == "projection" else kind
        sums = self.sums[name][at]
        if kind == "head":
            sizes = self.arrays["head"][..., 1][at]
        elif kind == "projection":
            keys = self.modules.keys
            of_modules = np.stack([self.arrays[key][..., 1] for key in keys], axis=-1)
            sizes = of_modules[at]
        else:
            sizes = self.arrays[f"size.{kind}"]
            sizes = sizes[:, list(drawn.layers)]
        return np.stack([sums, np.abs(sums), sizes, self.arrays[f"exact.{kind}"]], axis=1)

    @cached_property
    def resamples(self) -> Resamples:
        """Return every score's rank correlation with the rise of the loss, by kind."""
        return Resamples(
            {kind: values for kind, values in self.compared.items() if values.shape[2] > 1},
            {score: with_exact(score) for score in SCORES},
            groups=self.prompt_groups,
            seed=self.analysis.seed,
        )

    @property
    def claimed_kinds(self) -> list[Kind]:
        """Return the kinds of which enough units were zeroed for a correlation."""
        return [kind for kind, values in self.compared.items() if values.shape[2] >= FEWEST]

    def agreement(self, score: str, *, beyond: str | None = None) -> Estimate:
        """Return a score's rank correlation, mean over kinds, less that of another score."""
        kinds, columns = self.claimed_kinds, self.resamples.columns
        if not kinds:
            return Estimate(NAN, n=self.resamples.n, n_groups=self.resamples.n_groups)
        each = [columns[kind, score] for kind in kinds]
        if beyond is not None:
            each = [own - columns[kind, beyond] for own, kind in zip(each, kinds, strict=True)]
        return self.resamples.estimate(np.mean(each, axis=0))

    def stability(self, kind: str) -> float:
        """Return the rank correlation of importances on two halves, mean over 20 splits."""
        sums = self.sums[kind].reshape(len(self.arrays["loss"]), -1)
        grouping = Grouping.of(len(sums), self.prompt_groups)
        halves = [grouping.half(seed=self.analysis.seed + i) for i in range(_HALVES)]
        halves = [half for half in halves if half.any() and not half.all()]
        if not halves or sums.shape[1] < 2:
            return NAN
        each = [
            rank_correlation(*(np.abs(sums[rows].mean(0)) for rows in (half, ~half)))
            for half in halves
        ]
        return float(np.mean(each))

    def to_frame(self) -> pd.DataFrame:
        """Return columns kind, layer, unit, measure, mean, low and high.

        Measures of units: "importance", |Σ θ ∂L/∂θ| of the prompts' mean loss; its mean over
        prompts, each with its own absolute value; "first order", the rise of the loss that the
        gradient foretells, −Σ θ ∂L/∂θ; and of those zeroed the rise itself, in nats all. Intervals
        are over groups of prompts. Rank correlations by kind (no layer) redraw prompts and units.
        """
        return pd.concat(self._rows(), ignore_index=True).astype({"layer": "Int64"})

    def _rows(self) -> Iterator[pd.DataFrame]:
        for kind, sums in self.sums.items():
            layers, units = (index.ravel() for index in np.indices(sums.shape[1:]))
            named = self._names(kind)
            keys = {"kind": kind, "layer": layers, "unit": [named[i] for i in units]}
            flat = sums.reshape(len(sums), -1)
            for measure, columns in self._of_sums(flat).items():
                yield pd.DataFrame(keys | {"measure": measure} | columns)
        for kind, drawn in self.drawn.items():
            named = self._names("module" if kind == "projection" else kind)
            names = [named[i] for i in drawn.which]
            keys = {"kind": kind, "layer": list(drawn.layers), "unit": names, "measure": EXACT}
            yield pd.DataFrame(keys | self._columns(self.arrays[f"exact.{kind}"]))
        for (kind, score), column in self.resamples.columns.items():
            number = self.resamples.estimate(column)
            yield self._alone(kind, _OF_RANKS + score, number)
        for kind in self.sums:
            yield self._alone(kind, _STABLE, Estimate(self.stability(kind)))

    def _names(self, kind: str) -> list[str]:
        if kind == "head":
            return [str(head) for head in range(self.arrays["head"].shape[2])]
        return [*self.modules.names] if kind == "module" else [kind]

    def _columns(self, values: Array) -> dict[str, Array]:
        columns = estimates(values, groups=self.prompt_groups, seed=self.analysis.seed)
        return {name: columns[name] for name in ("mean", "low", "high")}

    def _of_sums(self, sums: Array) -> dict[str, dict[str, Array]]:
        signed = self._columns(-sums)
        ends = np.abs([signed["low"], signed["high"]])
        inside = (signed["low"] <= 0) & (signed["high"] >= 0)
        absolute = {
            "mean": np.abs(signed["mean"]),
            "low": np.where(inside, 0.0, ends.min(0)),
            "high": ends.max(0),
        }
        return dict(zip(SCORES, (absolute, self._columns(np.abs(sums)), signed), strict=False))

    def _alone(self, kind: str, measure: str, number: Estimate) -> pd.DataFrame:
        keys = {"kind": kind, "layer": pd.NA, "unit": "", "measure": measure}
        ends = {"mean": number.value, "low": number.low, "high": number.high}
        return pd.DataFrame([keys | ends])

    def plot(self) -> go.Figure:
        """Draw units' ranks by gradient and by size against those by zeroing, and a map below.

        The map has the importance of every layer's modules, on a logarithmic scale of colours.
        """
        return figure_of(self)

    def findings(self) -> tuple[Finding, ...]:
        """Return how well gradients rank units, beyond their size, and how stable that is."""
        return findings_of(self)
