"""Circuits of edges: from senders (embedding, heads, MLPs) to what receivers read (q, k, v of a
head, an MLP, the logits).

An edge's score is what the receiver's coefficient makes of the change in the sender's output (edge
attribution patching, Syed et al., arXiv 2310.10348), with the ordinary gradient or under relevance
rules.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import torch
from einops import einsum, rearrange, repeat
from numpy.typing import NDArray
from torch import Tensor

from interp.backward import Rules
from interp.errors import AnalysisError
from interp.models.gradients import graph, slopes
from interp.replay import Recording
from interp.sweeps.twins import Twins

_CHUNK_TOKENS = 4096


@dataclass(frozen=True)
class Wiring:
    """All edges of a model: `is_edge` [receiver sender]; a layer's receivers are q, k, v per head
    and its MLP.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    is_parallel: bool

    @property
    def senders(self) -> list[str]:
        """Return the senders in forward order: "embed", then per layer "a0.h1" and "m0"."""
        return [
            "embed",
            *(
                name
                for layer in range(self.n_layers)
                for name in (*self._heads(layer, "a"), f"m{layer}")
            ),
        ]

    @property
    def receivers(self) -> list[str]:
        """Return the receivers in forward order: per layer "q0.h1", "k0.h1", "v0.h1" and "m0"; then
        "logits".
        """
        names = []
        for layer in range(self.n_layers):
            names += [
                f"{kind}{layer}.h{head}" for kind in "qkv" for head in range(self.n_read(kind))
            ]
            names.append(f"m{layer}")
        return [*names, "logits"]

    def _heads(self, layer: int, kind: str) -> list[str]:
        return [f"{kind}{layer}.h{head}" for head in range(self.n_heads)]

    def n_read(self, kind: str) -> int:
        """Return how many heads read "q", "k" or "v"."""
        return self.n_heads if kind == "q" else self.n_kv_heads

    @property
    def is_edge(self) -> NDArray[np.bool_]:
        """Return which sender stands in front of which receiver."""
        return np.array(
            [
                [i < self.n_before(receiver) for i in range(len(self.senders))]
                for receiver in self.receivers
            ]
        )

    def n_before(self, receiver: str) -> int:
        """Return how many senders stand in front of a receiver."""
        if receiver == "logits":
            return len(self.senders)
        layer = int(receiver[1:].split(".")[0])
        own = self.n_heads if receiver[0] == "m" and not self.is_parallel else 0
        return 1 + layer * (self.n_heads + 1) + own

    def node_of(self, receiver: str) -> list[str]:
        """Return the senders that a receiver feeds: a key or value head feeds all heads of its
        group.
        """
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
        found = [
            (senders[s], receivers[r], float(self.scores[r, s]))
            for r, s in zip(*self.kept.nonzero(), strict=True)
        ]
        return sorted(found, key=lambda edge: -abs(edge[2]))

    @property
    def nodes(self) -> list[str]:
        """Return the senders that an edge leaves or a receiver of theirs, and the logits."""
        named = {sender for sender, _, _ in self.edges}
        named |= {node for _, receiver, _ in self.edges for node in self.wiring.node_of(receiver)}
        return [name for name in [*self.wiring.senders, "logits"] if name in named]

    def top(self, n: int, *, by: str = "absolute") -> "Circuit":
        """Return the `n` edges with the largest "absolute" or "signed" score, without what is then
        disconnected.
        """
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
        """Return the circuit without edges that no path from the embedding to the logits goes
        through.
        """
        graph = self._graph()
        alive = nx.descendants(graph, "embed") | {"embed"}
        alive &= nx.ancestors(graph, "logits") | {"logits"}
        senders, receivers = self.wiring.senders, self.wiring.receivers
        kept = np.array(
            [
                [on and senders[s] in alive and any(node in alive for node in self.wiring.node_of(receivers[r]))
                 for s, on in enumerate(row)]
                for r, row in enumerate(self.kept)
            ]
        )  # fmt: skip
        return Circuit(self.wiring, self.scores, kept)

    def _graph(self) -> Any:
        graph = nx.DiGraph()
        graph.add_nodes_from(["embed", "logits"])
        for sender, receiver, _ in self.edges:
            graph.add_edges_from((sender, node) for node in self.wiring.node_of(receiver))
        return graph

    def to_networkx(self) -> Any:
        """Return a networkx.MultiDiGraph of nodes; an edge's key is its receiver, with its `score`."""
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


class _Senders:
    """Collects what senders add to the stream, in the order of `Wiring.senders` [rows pos sender
    d_model].
    """

    def __init__(self) -> None:
        self.writes: list[Tensor] = []

    def wrote(self, kind: str, layer: int, write: Tensor) -> None:
        self.writes.append((write if kind == "heads" else write[:, :, None]).detach())

    @property
    def stacked(self) -> Tensor:
        return torch.cat(self.writes, dim=2)


@dataclass(frozen=True)
class Run:
    """An ordinary pass: what every sender adds [batch pos sender d_model], what receivers read, and
    the logits.
    """

    writes: Tensor
    read: dict[tuple[str, int], Tensor]
    logits: Tensor


def plain_run(
    recording: Recording, tokens: Tensor, wiring: Wiring, *, rules: Rules | None = None
) -> Run:
    """Run an ordinary pass in which receivers can be told apart; with `rules`, what they read is in
    the graph.
    """
    senders, seen = _Senders(), {}

    def read(kind: str, layer: int, resid: Tensor) -> Tensor:
        if kind in ("q", "k", "v"):
            resid = repeat(resid, "rows pos d -> rows pos head d", head=wiring.n_read(kind))
        elif rules is not None:
            resid = resid + 0.0
        seen[kind, layer] = resid
        return resid

    logits = recording.forked(tokens, read=read, wrote=senders.wrote, backward=rules)
    return Run(senders.stacked, seen, logits)


def edge_scores(recording: Recording, twins: Twins, wiring: Wiring, *, rules: Rules) -> Tensor:
    """Return every edge's score per prompt [batch receiver sender], fp32: two forward passes and
    one backward.
    """
    source = plain_run(recording, twins.source, wiring)
    if twins.direction == "denoise":
        twins = twins.with_reference(source.logits)
    base = plain_run(recording, twins.base, wiring, rules=rules)
    change = source.writes.float() - base.writes.float()
    with graph():
        value = twins.value(base.logits[:, twins.clean.predicting])
        found = dict(zip(base.read, slopes(value, [*base.read.values()]), strict=True))
    rows = []
    for layer in range(wiring.n_layers):
        for kind in ("q", "k", "v"):
            rows.append(
                einsum(found[kind, layer], change, "b p head d, b p sender d -> b head sender")
            )
        rows.append(einsum(found["mlp", layer], change, "b p d, b p sender d -> b sender")[:, None])
    rows.append(
        einsum(found["logits", wiring.n_layers], change, "b p d, b p sender d -> b sender")[:, None]
    )
    is_edge = torch.from_numpy(wiring.is_edge).to(change.device)
    return torch.cat(rows, dim=1).where(is_edge, torch.zeros((), device=change.device))


def circuit_values(
    recording: Recording,
    twins: Twins,
    wiring: Wiring,
    circuits: Sequence[NDArray[np.bool_]],
    *,
    away: Run,
    instead: Tensor | None = None,
) -> Tensor:
    """Return the metric of the clean prompts when only some edges carry what their senders say
    [circuit batch].

    `circuits` are kept edges [receiver sender]. Every other edge carries what its sender says in
    the corrupted run `away`, or `instead` [sender d_model], such as a mean.
    """
    batch, n_pos = twins.clean.tokens.shape
    kept = torch.from_numpy(np.stack([*circuits])).to(away.writes.device)
    size = max(1, _CHUNK_TOKENS // (batch * n_pos))
    values = [
        _values(recording, twins, wiring, chunk, away, instead) for chunk in torch.split(kept, size)
    ]
    return torch.cat(values)


def _values(
    recording: Recording,
    twins: Twins,
    wiring: Wiring,
    kept: Tensor,
    away: Run,
    instead: Tensor | None,
) -> Tensor:
    n_circuits, writes = len(kept), away.writes.float()
    ablated = writes if instead is None else instead.float().expand_as(writes)
    moved = ablated - writes
    changes: list[Tensor] = []
    rows = {name: i for i, name in enumerate(wiring.receivers)}

    def wrote(kind: str, layer: int, write: Tensor) -> None:  # noqa: ARG001
        write = write if kind == "heads" else write[:, :, None]
        write = rearrange(write.float(), "(c b) ... -> c b ...", c=n_circuits)
        first = sum(change.shape[3] for change in changes)
        changes.append(write - ablated[:, :, first : first + write.shape[3]])

    def read(kind: str, layer: int, resid: Tensor) -> Tensor:
        change = torch.cat(changes, dim=3)
        n_before = change.shape[3]
        names = ["logits"] if kind == "logits" else [f"m{layer}"]
        if kind in ("q", "k", "v"):
            names = [f"{kind}{layer}.h{head}" for head in range(wiring.n_read(kind))]
        if kind == "mlp" and wiring.is_parallel:
            n_before = wiring.n_before(names[0])
        chosen = kept[:, [rows[name] for name in names], :n_before].float()
        asked = away.read[kind, layer].float()
        asked = asked if asked.ndim == 4 else asked[:, :, None]
        ground = asked + moved[:, :, :n_before].sum(2, keepdim=True)
        own: Tensor = ground + einsum(
            chosen, change[:, :, :, :n_before], "c r s, c b p s d -> c b p r d"
        )
        own = rearrange(own.to(resid.dtype), "c b p r d -> (c b) p r d")
        return own if kind in ("q", "k", "v") else own[:, :, 0].expand_as(resid)

    tokens = repeat(twins.clean.tokens, "batch pos -> (circuit batch) pos", circuit=n_circuits)
    logits = recording.forked(tokens, read=read, wrote=wrote)[:, twins.clean.predicting]
    return twins.value(rearrange(logits, "(c b) ... -> c b ...", c=n_circuits))


def random_circuits(wiring: Wiring, sizes: Iterable[int], *, seed: int) -> list[NDArray[np.bool_]]:
    """Return circuits of random edges, as many as asked for each."""
    rng, edges = np.random.default_rng(seed), wiring.is_edge.nonzero()
    found = []
    for size in sizes:
        kept = np.zeros_like(wiring.is_edge)
        chosen = rng.permutation(len(edges[0]))[:size]
        kept[edges[0][chosen], edges[1][chosen]] = True
        found.append(kept)
    return found
