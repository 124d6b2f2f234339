"""What circuits keep on prompts that were not used to find them, if there is something to keep."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from interp.analyses.circuit_discovery.areas import MARGIN, area_of
from interp.analyses.circuit_discovery.circuits import Circuit
from interp.analyses.circuit_discovery.findings import findings_of
from interp.analyses.circuit_discovery.frame import frame_of
from interp.figures.circuits import Lanes, circuit_above
from interp.figures.plots import Axes, curves
from interp.figures.words import CIRCUITS
from interp.result import Finding, Result
from interp.stats.estimate import Estimate, estimate_of, ratios
from interp.stats.groups import Groups
from interp.stats.picked import widened
from interp.sweeps.behaviour import Behaviour

if TYPE_CHECKING:
    from interp.analyses.circuit_discovery import CircuitDiscovery


Array = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class CircuitDiscoveryResult(Result):
    """All edges with their scores, and the metric of circuits on new prompts.

    `values` hold "circuit" and "complement" [prompt fraction], "random" [prompt choice draw], "all"
    and "none" [prompt], and the "half" of the new prompts that each is in. `chosen` are the
    fractions' indices that the two halves chose, `shared` the share of edges that random circuits
    have in common with theirs, and `unseen` which of all prompts the new ones are.
    """

    analysis: "CircuitDiscovery"
    whole: Circuit
    values: dict[str, Array]
    chosen: tuple[int, int]
    shared: float
    unseen: NDArray[np.bool_]

    @cached_property
    def circuits(self) -> list[Circuit]:
        """Return the circuit of each fraction."""
        return self.analysis.circuits(self.whole)

    @property
    def _groups(self) -> Groups | None:
        return None if self.prompt_groups is None else self.prompt_groups[self.unseen]

    @cached_property
    def behaviour(self) -> Behaviour:
        """Return the metric of the whole model on new prompts, and with no edge at all.

        With no edge it is that of the corrupted run, or of means.
        """
        values, analysis = self.values, self.analysis
        return Behaviour(
            values["all"], values["none"], analysis.metric, self._groups, analysis.seed
        )

    @property
    def clean(self) -> Estimate:
        """Return the mean metric of the whole model on new prompts."""
        return self.behaviour.clean

    @property
    def corrupted(self) -> Estimate:
        """Return the mean metric with no edge."""
        return self.behaviour.corrupted

    @property
    def gap(self) -> Estimate:
        """Return the mean of clean less corrupted: what a circuit can keep."""
        return self.behaviour.gap

    @property
    def is_absent(self) -> bool:
        """Tell whether there is nothing to be kept: see `Behaviour`."""
        return self.behaviour.is_absent

    @property
    def _gap(self) -> Array:
        return self.behaviour.gap_values

    def _gained(self, kind: str) -> Array:
        """Return what circuits keep [prompt fraction]; of random ones, the mean over draws."""
        value = self.values[kind]
        if kind == "random":
            drawn, value = value.mean(2), np.full(self.values["circuit"].shape, np.nan)
            value[:, [*self.chosen]] = drawn
        gained: Array = value - self.values["none"][:, None]
        return gained

    def _crossed(self, kind: str) -> Array:
        """Return what the circuit chosen on the other half of new prompts keeps [prompt]."""
        theirs = np.array(self.chosen)[1 - self.values["half"].astype(int)]
        crossed: Array = self._gained(kind)[np.arange(len(theirs)), theirs]
        return crossed

    def kept(self, kind: str = "circuit") -> Estimate:
        """Return f of what one half of the new prompts chose, measured on the other, pooled.

        `kind` may be "random" or "complement", for its controls.
        """
        return widened(self.behaviour.share(self._crossed(kind)))

    @property
    def beyond_random(self) -> Estimate:
        """Return how much more that circuit keeps than random ones do, as a share of the gap."""
        gained = self._crossed("circuit") - self._crossed("random")
        return widened(self.behaviour.share(gained))

    @property
    def is_faithful(self) -> bool:
        """Tell whether both halves chose a circuit that is faithful there and not all edges."""
        gained, halves = self._gained("circuit"), self.values["half"]
        for half, at in enumerate(self.chosen):
            # with one group of prompts, all choose for both halves
            own = (halves == half) | ~np.any(halves == half)
            f = gained[own, at].mean() / self._gap[own].mean()
            if abs(1 - f) > MARGIN or self.circuits[at].n_edges == self.whole.n_edges:
                return False
        return True

    @property
    def by_draw(self) -> Array:
        """Return `kept` of every random draw [draw]."""
        rows = np.arange(len(self._gap))
        values = self.values["random"][rows, 1 - self.values["half"].astype(int)]
        kept: Array = (values - self.values["none"][:, None]).mean(0) / self._gap.mean()
        return kept

    def faithfulness(self, kind: str) -> Array:
        """Return f [fraction] of a kind, a ratio of means.

        NaN: there is no behaviour to explain, or no random circuits were drawn.
        """
        return self.curve(kind)["mean"]

    def curve(self, kind: str) -> dict[str, Array]:
        """Return `faithfulness` with its interval's ends: mean, low and high [fraction]."""
        gained = np.where(self.is_absent, np.nan, self._gained(kind))
        known = ~np.any(np.isnan(gained), axis=0)
        found = ratios(gained[:, known], self._gap, groups=self._groups, seed=self.analysis.seed)
        whole = {name: np.full(len(known), np.nan) for name in ("mean", "low", "high")}
        for name, column in whole.items():
            column[known] = found[name]
        return whole

    def area(self, name: str) -> Estimate:
        """Return "CPR" (1 is perfect) or "CMD" (0 is) over the range of fractions tried."""
        if self.is_absent:
            return Estimate(np.nan, n=len(self._gap))
        return estimate_of(
            lambda mean: area_of(name, mean[:-1] / mean[-1], self.analysis.fractions),
            np.column_stack([self._gained("circuit"), self._gap]),
            groups=self._groups,
            seed=self.analysis.seed,
        )

    @property
    def cpr(self) -> float:
        """Return the mean of f over the range of fractions: 1 for a perfect circuit."""
        return self.area("CPR").value

    @property
    def cmd(self) -> float:
        """Return the mean of |1 - f| over the range of fractions: 0 for a perfect circuit."""
        return self.area("CMD").value

    def smallest(self, within: float = MARGIN) -> Circuit | None:
        """Return the smallest tried circuit whose f is in 1 ± `within` over all new prompts."""
        good = (np.abs(1 - self.faithfulness("circuit")) <= within).nonzero()[0]
        return self.circuits[good[0]] if len(good) else None

    def findings(self) -> tuple[Finding, ...]:
        """Return what the smallest faithful circuit keeps, or that there is nothing to explain."""
        return findings_of(self)

    def to_frame(self) -> pd.DataFrame:
        """Return the metric, faithfulness by kind and fraction, areas and the 200 largest edges.

        "kept" is cross-fitted faithfulness; "metric", "CPR" and "edge score" rows have no fraction.
        """
        return frame_of(self)

    def plot(self) -> go.Figure:
        """Draw the largest edges, and faithfulness against the share of edges kept."""
        whole, analysis = self.to_frame(), self.analysis
        absent = "No behaviour to explain: h" if self.is_absent else "H"
        frame = whole.loc[whole["measure"] == "faithfulness"].replace({"kind": CIRCUITS})
        figure = curves(
            frame,
            x="fraction",
            groups="kind",
            axes=Axes(
                "share of all edges in the circuit (log scale)", "faithfulness (1: whole model)"
            ),
            title=f"{absent}ow much of {analysis.metric} circuits keep"
            f" (other edges: {analysis.ablation})",
            is_log=True,
        )
        wiring = self.whole.wiring
        lanes = Lanes(wiring.n_layers, wiring.n_heads, wiring.n_kv_heads)
        return figure if self.is_absent else circuit_above(figure, self.whole.edges, lanes)
