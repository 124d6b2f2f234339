"""Circuits of edges, from senders (embedding, heads, MLPs) to what receivers read.

Receivers are q, k and v of a head, an MLP and the logits.
"""

import json
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interp.errors import AnalysisError
from interp.models import Model


@dataclass(frozen=True)
class Wiring:
    """All edges of a model; a layer's receivers are q, k, v per head and its MLP."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    is_parallel: bool

    @classmethod
    def of(cls, model: Model) -> "Wiring":
        """Return all edges of a model."""
        return cls(model.n_layers, model.n_heads, model.n_kv_heads, model.is_parallel)

    @classmethod
    def from_numbers(cls, numbers: Tensor) -> "Wiring":
        """Return the wiring that `numbers` was called on."""
        n_layers, n_heads, n_kv_heads, is_parallel = map(int, numbers.tolist())
        return cls(n_layers, n_heads, n_kv_heads, bool(is_parallel))

    @property
    def numbers(self) -> Tensor:
        """Return the fields as a tensor."""
        return torch.tensor([self.n_layers, self.n_heads, self.n_kv_heads, int(self.is_parallel)])

    @property
    def senders(self) -> list[str]:
        """Return the senders in forward order: "embed", then per layer "a0.h1" and "m0"."""
        names = ["embed"]
        for layer in range(self.n_layers):
            names += [*(f"a{layer}.h{head}" for head in range(self.n_heads)), f"m{layer}"]
        return names

    @property
    def receivers(self) -> list[str]:
        """Return the receivers in forward order: per layer "q0.h1", ... and "m0"; then "logits"."""
        names = []
        for layer in range(self.n_layers):
            names += [
                f"{kind}{layer}.h{head}" for kind in "qkv" for head in range(self.n_read(kind))
            ]
            names.append(f"m{layer}")
        return [*names, "logits"]

    def n_read(self, kind: str) -> int:
        """Return how many heads read "q", "k" or "v"."""
        return self.n_heads if kind == "q" else self.n_kv_heads

    @property
    def is_edge(self) -> NDArray[np.bool_]:
        """Return which sender stands in front of which receiver [receiver sender]."""
        n_before = np.array([self.n_before(receiver) for receiver in self.receivers])
        return np.arange(len(self.senders)) < n_before[:, None]

    def n_before(self, receiver: str) -> int:
        """Return how many senders stand in front of a receiver."""
        if receiver == "logits":
            return len(self.senders)
        layer = int(receiver[1:].split(".")[0])
        own = self.n_heads if receiver[0] == "m" and not self.is_parallel else 0
        return 1 + layer * (self.n_heads + 1) + own

    def node_of(self, receiver: str) -> list[str]:
        """Return the senders that a receiver feeds: for a key or value head, all of its group."""
        if receiver == "logits" or receiver[0] == "m":
            return [receiver]
        layer, head = receiver[1:].split(".h")
        group = 1 if receiver[0] == "q" else self.n_heads // self.n_kv_heads
        return [f"a{layer}.h{int(head) * group + i}" for i in range(group)]


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
