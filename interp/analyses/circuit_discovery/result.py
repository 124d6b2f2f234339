"""What circuits keep on prompts that were not used to find them."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from interp.analyses.circuit_discovery.circuits import Circuit
from interp.figures.plots import Axes, curves
from interp.figures.words import listed
from interp.metrics import WORDS
from interp.result import Compared, Finding, Result
from interp.stats.bootstrap import bootstrap_interval, resampled_means
from interp.stats.estimate import Estimate, estimate_of

if TYPE_CHECKING:
    from interp.analyses.circuit_discovery import CircuitDiscovery

KINDS = {
    "circuit": "the best edges",
    "random": "as many random edges",
    "complement": "all but the best edges",
}
_ENOUGH = 0.9  # what findings call 90 %
_EDGES_LISTED = 200


@dataclass(frozen=True, repr=False)
class CircuitDiscoveryResult(Result):
    """All edges with their scores, and the metric of circuits on new prompts [prompt fraction]."""

    analysis: "CircuitDiscovery"
    whole: Circuit
    values: dict[str, NDArray[np.float64]]

    @cached_property
    def circuits(self) -> list[Circuit]:
        """Return the circuit of each fraction."""
        return self.analysis.circuits(self.whole)

    @property
    def _gap(self) -> NDArray[np.float64]:
        gap: NDArray[np.float64] = self.values["all"] - self.values["none"]
        return gap

    def _gained(self, kind: str) -> NDArray[np.float64]:
        gained: NDArray[np.float64] = self.values[kind] - self.values["none"][:, None]
        return gained

    def faithfulness(self, kind: str) -> NDArray[np.float64]:
        """Return f of each fraction for "circuit", "random" or "complement": a ratio of means."""
        ratio: NDArray[np.float64] = self._gained(kind).mean(0) / self._gap.mean()
        return ratio

    def _intervals(self, kind: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        gap = self._gap
        ratios = self._gained(kind) / np.where(gap == 0, np.nan, gap)[:, None]
        return bootstrap_interval(np.nan_to_num(ratios), weights=gap, seed=self.analysis.seed)

    def _estimate(self, kind: str, at: int) -> Estimate:
        low, high = self._intervals(kind)
        f = float(self.faithfulness(kind)[at])
        return Estimate(f, float(low[at]), float(high[at]), len(self._gap))

    @property
    def cpr(self) -> float:
        """Return the area under f over the fractions of edges."""
        return float(np.trapezoid(self.faithfulness("circuit"), self.analysis.fractions))

    @property
    def cmd(self) -> float:
        """Return the area under |1 - f| over the fractions of edges; 0 is best."""
        missing = np.abs(1 - self.faithfulness("circuit"))
        return float(np.trapezoid(missing, self.analysis.fractions))

    def smallest(self, faithfulness: float = _ENOUGH) -> Circuit | None:
        """Return the smallest tried circuit that is at least so faithful."""
        at = int(_first_faithful(self.faithfulness("circuit"), least=faithfulness))
        return self.circuits[at] if at < len(self.circuits) else None

    def findings(self) -> tuple[Finding, ...]:
        """Return what the smallest faithful circuit keeps, its share of edges, and the largest."""
        largest = listed([f"{sender} → {receiver}" for sender, receiver, _ in self.whole.edges[:3]])
        edges = Finding(f"By {self.analysis.method}, the largest edges are {largest}.")
        f, what = self.faithfulness("circuit"), WORDS[self.analysis.metric]
        at = int(_first_faithful(f))
        if at == len(f):
            best = self._estimate("circuit", int(np.nan_to_num(f).argmax()))
            claim = f"No circuit tried keeps 90 % of {what}; the best keeps {best:.0%}."
            return Finding(claim, best, "what the best circuit tried keeps"), edges
        kept, total = self._estimate("circuit", at), self.whole.n_edges
        n_edges = self.circuits[at].n_edges
        return (
            Finding(
                f"{n_edges:,} of {total:,} edges keep {kept:.0%} of {what} on unseen prompts.",
                kept,
                "what the smallest circuit that keeps 90 % keeps",
                control=Compared("as many random edges", self._estimate("random", at)),
                rival=Compared("all other edges", self._estimate("complement", at)),
            ),
            self._size(),
            edges,
        )

    def _size(self) -> Finding:
        """Return the share of edges of the smallest circuit that is faithful."""
        resampled = resampled_means(
            np.column_stack([self._gained("circuit"), self._gap]), seed=self.analysis.seed
        )
        n_edges = np.array([circuit.n_edges for circuit in self.circuits])
        shares = np.array([*n_edges / self.whole.n_edges, np.inf])
        share = estimate_of(
            float(shares[_first_faithful(self.faithfulness("circuit"))]),
            shares[_first_faithful(resampled[:, :-1] / resampled[:, -1:])],
            n=len(self._gap),
        )
        return Finding(
            f"The smallest circuit that keeps 90 % has {share:.1%} of all edges.",
            share,
            f"share of all edges that keeps 90 % of {self.analysis.metric}",
        )

    def to_frame(self) -> pd.DataFrame:
        """Return faithfulness by kind and fraction, then the scores of the 200 largest edges.

        Columns measure ("faithfulness", "edge score"), kind, fraction, n_edges, sender, receiver,
        mean, low, high and n_prompts.
        """
        frames, n_edges = [], np.array([circuit.n_edges for circuit in self.circuits])
        for kind in KINDS:
            low, high = self._intervals(kind)
            rows = {
                "measure": "faithfulness",
                "kind": kind,
                "fraction": self.analysis.fractions,
                "n_edges": self.whole.n_edges - n_edges if kind == "complement" else n_edges,
                "mean": self.faithfulness(kind),
                "low": low,
                "high": high,
                "n_prompts": len(self._gap),
            }
            frames.append(pd.DataFrame(rows))
        columns = ["sender", "receiver", "mean"]
        edges = pd.DataFrame(self.whole.edges[:_EDGES_LISTED], columns=columns)
        frames.append(edges.assign(measure="edge score"))
        first = ["measure", "kind", "fraction", "n_edges", *columns, "low", "high", "n_prompts"]
        whole = pd.concat(frames, ignore_index=True).reindex(columns=first)
        return whole.astype({"n_edges": "Int64", "n_prompts": "Int64"})

    def plot(self) -> go.Figure:
        """Draw faithfulness against the share of edges kept."""
        whole, analysis = self.to_frame(), self.analysis
        frame = whole.loc[whole["measure"] == "faithfulness"].replace({"kind": KINDS})
        return curves(
            frame,
            x="fraction",
            groups="kind",
            axes=Axes(
                "share of all edges in the circuit (log scale)", "faithfulness (1: whole model)"
            ),
            title=f"How much of {analysis.metric} circuits keep (other edges: {analysis.ablation})",
            is_log=True,
        )


def _first_faithful(
    faithfulness: NDArray[np.float64], *, least: float = _ENOUGH
) -> NDArray[np.int64]:
    """Return the index of the first faithful fraction [... fraction]; their number if none is."""
    good = faithfulness >= least
    at: NDArray[np.int64] = np.where(good.any(-1), good.argmax(-1), good.shape[-1])
    return at
