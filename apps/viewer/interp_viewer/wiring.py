"""The edges of a circuit as the run keeps them: senders, receivers, mean scores."""

from dataclasses import dataclass

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from interp.errors import RunError
from interp.figures.words import node_named
from interp_viewer.selected import Selected

MOST_EDGES = 2000
TINY = 0.02  # of the largest score, below which no edge is drawn


@dataclass(frozen=True)
class Edge:
    """What a sender writes, read by a receiver ("q2.h1", "m3", "logits"), and its mean score."""

    sender: str
    receiver: str
    score: float

    @property
    def name(self) -> str:
        """Return the edge's name in the address."""
        return f"{self.sender}~{self.receiver}"

    @property
    def shown(self) -> str:
        """Return the edge in words: "L0H1 → L2H3 (query)"."""
        return f"{node_named(self.sender)} → {node_named(self.receiver)}"

    @property
    def node(self) -> str:
        """Return the node that the receiver belongs to: the head of a query, key or value."""
        return f"a{self.receiver[1:]}" if self.receiver[0] in "qkv" else self.receiver


@dataclass(frozen=True)
class Wires:
    """Scores [receiver sender] of all edges of a model; NaN where there is no edge."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    scores: NDArray[np.float64]

    @property
    def senders(self) -> list[str]:
        """Return the senders in forward order."""
        return [
            "embed",
            *(
                n
                for i in range(self.n_layers)
                for n in (*(f"a{i}.h{h}" for h in range(self.n_heads)), f"m{i}")
            ),
        ]

    @property
    def receivers(self) -> list[str]:
        """Return the receivers in forward order."""
        heads = {"q": self.n_heads, "k": self.n_kv_heads, "v": self.n_kv_heads}
        names = []
        for layer in range(self.n_layers):
            names += [f"{kind}{layer}.h{head}" for kind, n in heads.items() for head in range(n)]
            names.append(f"m{layer}")
        return [*names, "logits"]

    @property
    def n_edges(self) -> int:
        """Return how many edges there are."""
        return int(np.isfinite(self.scores).sum())

    def largest(self, k: int) -> list[Edge]:
        """Return the `k` edges with the largest absolute scores."""
        worth = np.where(np.isfinite(self.scores), np.abs(self.scores), -1.0)
        best = np.argsort(-worth, axis=None, kind="stable")[: min(k, self.n_edges)]
        senders, receivers = self.senders, self.receivers
        places = zip(*np.unravel_index(best, self.scores.shape), strict=True)
        return [Edge(senders[s], receivers[r], float(self.scores[r, s])) for r, s in places]

    def share(self, edges: list[Edge]) -> float:
        """Return the share of all absolute scores that these edges have."""
        total = float(np.nansum(np.abs(self.scores)))
        return sum(abs(edge.score) for edge in edges) / total if total else 0.0


def read_wires(here: Selected) -> Wires:
    """Return all edges with one prompt's scores, or means over the prompts that found them."""
    measured = here.measured(here.cell("circuit_discovery"))
    *sizes, is_parallel = (int(n) for n in measured.of_row("wiring", 0))
    if here.selection.over == "this prompt":
        scores = measured.of_prompt("scores", here.ex)
    else:
        scores = measured.all("scores")[measured.all("is_new") == 0].mean(0)
    wires = Wires(*sizes, np.asarray(scores, np.float64))
    if wires.scores.shape != (len(wires.receivers), len(wires.senders)):
        raise RunError(
            f"edge scores {list(wires.scores.shape)} do not fit a model of {sizes[0]} layers;"
            " run it again"
        )
    before = [
        _n_senders_before(name, wires, is_parallel=bool(is_parallel)) for name in wires.receivers
    ]
    is_edge = np.arange(len(wires.senders))[None] < np.array(before)[:, None]
    return Wires(*sizes, np.where(is_edge, wires.scores, np.nan))


def _n_senders_before(receiver: str, wires: Wires, *, is_parallel: bool) -> int:
    """Return how many senders come before a receiver; those are its edges."""
    if receiver == "logits":
        return len(wires.senders)
    of_layer = int(receiver[1:].split(".")[0]) * (wires.n_heads + 1)
    return 1 + of_layer + (wires.n_heads if receiver[0] == "m" and not is_parallel else 0)


def graph_of(edges: list[Edge], labels: dict[str, str]) -> nx.MultiDiGraph:
    """Return edges as a graph for standard formats, with nodes' labels as attributes."""
    graph = nx.MultiDiGraph()
    for edge in edges:
        for node in (edge.sender, edge.node):
            graph.add_node(node, label=labels.get(node, node))
        graph.add_edge(
            edge.sender, edge.node, key=edge.receiver, receiver=edge.receiver, score=edge.score
        )
    return graph
