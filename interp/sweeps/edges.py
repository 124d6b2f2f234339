"""Scores of edges, and passes in which only a circuit's edges carry what their senders write.

An edge's score is the change in the sender's output times the receiver's coefficient (edge
attribution patching, Syed et al., arXiv 2310.10348), by the ordinary gradient or under relevance
rules.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import einsum, rearrange, repeat
from numpy.typing import NDArray
from torch import Tensor

from interp.backward import Rules
from interp.models.gradients import graph, slopes
from interp.replay import Recording
from interp.sweeps.twins import Twins
from interp.sweeps.wiring import Wiring

NUMBERS_HELD = 1 << 25  # of what senders write, [circuit batch pos sender d_model]


@dataclass(frozen=True)
class Pass:
    """A pass's values: what senders add [batch pos sender d_model], receivers read, and logits."""

    writes: Tensor
    read: dict[tuple[str, int], Tensor]
    logits: Tensor


def plain_pass(
    recording: Recording,
    tokens: Tensor,
    wiring: Wiring,
    *,
    positions: slice | None = None,
    rules: Rules | None = None,
) -> Pass:
    """Run a pass that keeps receivers apart; with `rules`, what they read carries a graph.

    Logits are those at `positions`, by default at all.
    """
    writes: list[Tensor] = []
    seen: dict[tuple[str, int], Tensor] = {}

    def read(kind: str, layer: int, resid: Tensor) -> Tensor:
        if kind in ("q", "k", "v"):
            resid = repeat(resid, "rows pos d -> rows pos head d", head=wiring.n_read(kind))
        elif rules is not None:
            resid = resid + 0.0
        seen[kind, layer] = resid
        return resid

    def keep(kind: str, layer: int, write: Tensor) -> None:  # noqa: ARG001
        writes.append((write if kind == "heads" else write[:, :, None]).detach())

    how: dict[str, Any] = {"backward": rules, "positions": positions}
    logits = recording.forked(tokens, read=read, on_write=keep, **how)
    return Pass(torch.cat(writes, dim=2), seen, logits)


def few_at_once(twins: Twins, wiring: Wiring, *, d_model: int) -> Iterator[Twins]:
    """Yield a few prompts at a time, as many as a pass that keeps all writes apart may take."""
    batch, n_pos = twins.clean.tokens.shape
    size = max(1, NUMBERS_HELD // (n_pos * len(wiring.senders) * d_model))
    if size >= batch:
        yield twins
        return
    for rows in torch.split(torch.arange(batch), size):
        yield twins.only(rows)


def edge_scores(recording: Recording, twins: Twins, wiring: Wiring, *, rules: Rules) -> Tensor:
    """Return every edge's score per prompt in fp32 [batch receiver sender].

    Two forward passes and one backward pass serve all edges.
    """
    positions = twins.clean.predicting
    source = plain_pass(recording, twins.source, wiring, positions=positions)
    if twins.direction == "denoise":
        twins = twins.with_reference(source.logits)
    base = plain_pass(recording, twins.base, wiring, positions=positions, rules=rules)
    change = source.writes.float() - base.writes.float()
    with graph():
        value = twins.value(base.logits)
        coefficients = dict(zip(base.read, slopes(value, [*base.read.values()]), strict=True))
    one, heads = "b p d, b p sender d -> b sender", "b p head d, b p sender d -> b head sender"
    rows = []
    for layer in range(wiring.n_layers):
        rows += [einsum(coefficients[kind, layer], change, heads) for kind in ("q", "k", "v")]
        rows.append(einsum(coefficients["mlp", layer], change, one)[:, None])
    rows.append(einsum(coefficients["logits", wiring.n_layers], change, one)[:, None])
    is_edge = torch.from_numpy(wiring.is_edge).to(change.device)
    return torch.cat(rows, dim=1).where(is_edge, torch.zeros((), device=change.device))


def circuit_values(
    recording: Recording,
    twins: Twins,
    wiring: Wiring,
    circuits: Sequence[NDArray[np.bool_]],
    *,
    away: Pass,
    instead: Tensor | None = None,
) -> Tensor:
    """Return the metric of clean prompts with circuits of kept edges [circuit batch].

    `circuits` are such edges [receiver sender]. Every other edge carries what its sender writes in
    the corrupted pass `away`, or `instead` [sender d_model], such as a mean.
    """
    kept = torch.from_numpy(np.stack([*circuits])).to(away.writes.device)
    size = max(1, NUMBERS_HELD // away.writes.numel())
    values = [
        _values(recording, twins, wiring, chunk, away, instead) for chunk in torch.split(kept, size)
    ]
    return torch.cat(values)


def _values(
    recording: Recording,
    twins: Twins,
    wiring: Wiring,
    kept: Tensor,
    away: Pass,
    instead: Tensor | None,
) -> Tensor:
    n_circuits, (batch, n_pos, n_senders, d_model) = len(kept), away.writes.shape
    writes = away.writes.float()
    ablated = writes if instead is None else instead.float().expand_as(writes)
    # senders in front, so that the sum over them is a product of matrices and nothing is copied
    changes = writes.new_empty(n_circuits, n_senders, batch * n_pos * d_model)
    seen, rows = [0], {name: i for i, name in enumerate(wiring.receivers)}

    def keep(kind: str, layer: int, write: Tensor) -> None:  # noqa: ARG001
        write = write if kind == "heads" else write[:, :, None]
        write = rearrange(write.float(), "(c b) ... -> c b ...", c=n_circuits)
        own = slice(seen[-1], seen[-1] + write.shape[3])
        change = write - ablated[:, :, own]
        changes[:, own] = rearrange(change, "c b p s d -> c s (b p d)")
        seen.append(own.stop)

    def read(kind: str, layer: int, resid: Tensor) -> Tensor:
        names = ["logits"] if kind == "logits" else [f"m{layer}"]
        if kind in ("q", "k", "v"):
            names = [f"{kind}{layer}.h{head}" for head in range(wiring.n_read(kind))]
        n_before = wiring.n_before(names[0])
        chosen = kept[:, [rows[name] for name in names], :n_before].float()
        ground = away.read[kind, layer].float()
        ground = ground if ground.ndim == 4 else ground[:, :, None]
        if instead is not None:
            ground = ground + (ablated - writes)[:, :, :n_before].sum(2, keepdim=True)
        change = torch.bmm(chosen, changes[:, :n_before])
        own: Tensor = ground + rearrange(change, "c r (b p d) -> c b p r d", b=batch, p=n_pos)
        own = rearrange(own.to(resid.dtype), "c b p r d -> (c b) p r d")
        return own if kind in ("q", "k", "v") else own[:, :, 0].expand_as(resid)

    tokens = repeat(twins.clean.tokens, "batch pos -> (circuit batch) pos", circuit=n_circuits)
    where = twins.clean.predicting
    logits = recording.forked(tokens, read=read, on_write=keep, positions=where)
    return twins.value(rearrange(logits, "(c b) ... -> c b ...", c=n_circuits))
