"""Circuits: some of a model's edges, with their scores."""

import json
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from interp.errors import AnalysisError
from interp.sweeps.wiring import Wiring


@dataclass(frozen=True, eq=False)
class Circuit:
    """Some edges of a model with their scores [receiver sender]."""

    wiring: Wiring
    scores: NDArray[np.float64]
    kept: NDArray[np.bool_]

    @classmethod
    def whole(cls, wiring: Wiring, scores: NDArray[np.float64]) -> "Circuit":
        """Return the circuit of all edges."""
        return cls(wiring, scores, wiring.is_edge)

    @property
    def n_edges(self) -> int:
        """Return the number of edges."""
        return int(self.kept.sum())

    @property
    def edges(self) -> list[tuple[str, str, float]]:
        """Return sender, receiver and score of every edge, the largest absolute score first."""
        senders, receivers = self.wiring.senders, self.wiring.receivers
        edges = [
            (senders[s], receivers[r], float(self.scores[r, s]))
            for r, s in zip(*self.kept.nonzero(), strict=True)
        ]
        return sorted(edges, key=lambda edge: -abs(edge[2]))

    @property
    def nodes(self) -> list[str]:
        """Return all senders on an edge of the circuit, and the logits."""
        named = {sender for sender, _, _ in self.edges}
        named |= {node for _, receiver, _ in self.edges for node in self.wiring.node_of(receiver)}
        return [name for name in [*self.wiring.senders, "logits"] if name in named]

    def top(self, n: int, *, by: str = "absolute") -> "Circuit":
        """Return the `n` edges with the largest "absolute" or "signed" score, those connected."""
        n_edges = self.n_edges
        if not 0 <= n <= n_edges:
            raise AnalysisError(f"{n} edges asked for; the circuit has {n_edges}")
        worth = np.where(
            self.kept, np.abs(self.scores) if by == "absolute" else self.scores, -np.inf
        )
        best = np.argsort(-worth, axis=None, kind="stable")[:n]
        kept = np.zeros(self.kept.size, bool)
        kept[best] = True
        return Circuit(self.wiring, self.scores, kept.reshape(self.kept.shape)).connected()

    def share(self, share: float, *, by: str = "absolute") -> "Circuit":
        """Return the smallest circuit of top edges that holds a share of the absolute score."""
        if not 0 < share <= 1:
            raise AnalysisError(f"share={share}; more than 0 and at most 1 is needed")
        sizes = np.sort(np.abs(self.scores[self.kept]))[::-1].cumsum()
        return self.top(int((sizes < share * sizes[-1] - 1e-12).sum()) + 1, by=by)

    def connected(self) -> "Circuit":
        """Return the circuit without edges that are on no path from the embedding to the logits."""
        graph = self._graph()
        alive = nx.descendants(graph, "embed") | {"embed"}
        alive &= nx.ancestors(graph, "logits") | {"logits"}
        senders, receivers = self.wiring.senders, self.wiring.receivers
        sends = np.array([sender in alive for sender in senders])
        reads = np.array([not alive.isdisjoint(self.wiring.node_of(name)) for name in receivers])
        return Circuit(self.wiring, self.scores, self.kept & reads[:, None] & sends)

    def _graph(self) -> Any:
        graph = nx.DiGraph()
        graph.add_nodes_from(["embed", "logits"])
        for sender, receiver, _ in self.edges:
            graph.add_edges_from((sender, node) for node in self.wiring.node_of(receiver))
        return graph

    def to_networkx(self) -> Any:
        """Return a networkx.MultiDiGraph of nodes; the key of an edge is its receiver."""
        graph = nx.MultiDiGraph()
        for sender, receiver, score in self.edges:
            for node in self.wiring.node_of(receiver):
                graph.add_edge(sender, node, key=receiver, score=score)
        return graph

    def to_json(self) -> str:
        """Return nodes and edges as JSON."""
        edges = [
            {"sender": sender, "receiver": receiver, "score": score}
            for sender, receiver, score in self.edges
        ]
        return json.dumps({"nodes": self.nodes, "edges": edges})
