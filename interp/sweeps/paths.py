"""Exact path patching: what senders of the source run carry into the base run through receivers.

A sender's write takes its value from the source run on the direct path to the receivers alone;
what they then read is run to the end (Wang et al., arXiv 2211.00593; Goldowsky-Dill et al.,
arXiv 2304.05969). On the direct path attention heads are frozen; MLPs are frozen too, or
recomputed: the literature has both. With receivers in several layers, a later one also reads what
earlier ones changed.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from interp.errors import AnalysisError, unknown
from interp.replay import Recording
from interp.sites import Site
from interp.sweeps.heads import written_by_heads
from interp.sweeps.twins import Twins
from interp.sweeps.wiring import LOGITS, Wiring

Between = Literal["frozen", "recomputed"]
Changes = Float[Tensor, "sender batch pos d_model"]


def check_paths(wiring: Wiring, senders: Sequence[str], receivers: Sequence[str]) -> None:
    """Raise AnalysisError for names that do not exist, or senders after every receiver."""
    for what, given, known in (
        ("receiver", receivers, wiring.receivers),
        ("sender", senders, wiring.senders),
    ):
        if not given:
            raise AnalysisError(f"no {what} given; there is {', '.join(known[:3])} to {known[-1]}")
        if strange := next((name for name in given if name not in known), None):
            raise AnalysisError(unknown(what, strange, known))
    order, last = wiring.senders, max(map(wiring.n_before, receivers))
    if behind := next((name for name in senders if order.index(name) >= last), None):
        raise AnalysisError(f"sender {behind} stands behind {', '.join(receivers)}")


def forwards_of(
    wiring: Wiring, senders: Sequence[str], receivers: Sequence[str], between: Between
) -> float:
    """Return how many forwards the paths take, besides both runs and what heads return in them.

    MLPs after a sender are half a block each; after the first receiver all blocks are run.
    """
    n, total = wiring.n_layers, 0.0
    layers = [wiring.place(name)[1] for name in receivers]
    if between == "recomputed":
        last = max(wiring.n_before(name) for name in receivers)
        mlps = [wiring.senders.index(f"m{layer}") for layer in range(n)]
        for index in map(wiring.senders.index, senders):
            total += 0.5 * sum(index < mlp < last for mlp in mlps)
    return (total + len(senders) * (n - min(layers))) / n


class Paths:
    """Paths from senders to receivers, in the base run of prompts and their twins."""

    def __init__(
        self, twins: Twins, base: Recording, source: Recording, wiring: Wiring, between: Between
    ) -> None:
        self.twins, self.base, self.source = twins, base, source
        self.wiring, self.between = wiring, between
        self._z: dict[int, tuple[Tensor, Tensor]] = {}

    def effects(
        self, senders: Sequence[str], receivers: Sequence[str]
    ) -> Float[Tensor, "batch sender"]:
        """Return what the metric of the base run gains by each sender's paths."""
        base, size, values = self.base, self.base.variants_at_once(), []
        end = base.logits(base.resid(base.n_layers), positions=self.twins.clean.predicting)
        for start in range(0, len(senders), size):
            arriving = self._arriving(senders[start : start + size], receivers)
            values.append(self.twins.value(self._logits(arriving)))
        return (torch.cat(values) - self.twins.value(end[None])).T

    def _arriving(self, senders: Sequence[str], receivers: Sequence[str]) -> dict[str, Changes]:
        """Return the change that arrives at each receiver on the direct path."""
        embedding = self.source.resid(0).float() - self.base.resid(0).float()
        change = torch.stack([embedding * (name == "embed") for name in senders])
        arriving: dict[str, Changes] = {}
        places = {name: self.wiring.place(name) for name in receivers}
        for layer in range(self.base.n_layers):
            here = {name: kind for name, (kind, at, _) in places.items() if at == layer}
            arriving |= {name: change for name, kind in here.items() if kind != "mlp"}
            if len(arriving) == len(receivers):
                return arriving
            behind = change + self._from_heads(layer, senders)
            read = change if self.wiring.is_parallel else behind
            arriving |= {name: read for name, kind in here.items() if kind == "mlp"}
            if len(arriving) == len(receivers):
                return arriving
            change = behind + self._from_mlp(layer, senders, read)
        return arriving | {LOGITS: change}

    def _from_heads(self, layer: int, senders: Sequence[str]) -> Changes:
        """Return what changes in the layer's attention if a sender's head is the source run's."""
        n_heads, resid = self.wiring.n_heads, self.base.resid(layer)
        changes = resid.new_zeros(len(senders), *resid.shape, dtype=torch.float32)
        rows = [i for i, name in enumerate(senders) if name.startswith(f"a{layer}.")]
        if not rows:
            return changes
        if layer not in self._z:
            site = Site("z", layer)
            self._z[layer] = self.base.inside(site), self.source.inside(site)
        here, there = (rearrange(z, "b p (h d) -> b p h d", h=n_heads) for z in self._z[layer])
        patched = repeat(here, "... -> sender ...", sender=len(rows)).clone()
        for own, row in zip(patched, rows, strict=True):
            head = self.wiring.place(senders[row])[2]
            own[:, :, head] = there[:, :, head]
        block = self.base.blocks[layer]
        every = written_by_heads(block, rearrange(patched, "s b p h d -> (s b) p (h d)"))
        as_it_was = written_by_heads(block, self._z[layer][0])
        changes[rows] = rearrange(every, "(s b) p d -> s b p d", s=len(rows)) - as_it_was
        return changes

    def _from_mlp(self, layer: int, senders: Sequence[str], read: Changes) -> Changes:
        """Return what changes in what the layer's MLP writes."""
        base, site = self.base, Site("mlp_out", layer)
        order, name, changes = self.wiring.senders, f"m{layer}", torch.zeros_like(read)
        moved = [i for i, sender in enumerate(senders) if order.index(sender) < order.index(name)]
        if self.between == "recomputed" and moved:
            resid = base.mlp_reads(layer, base.resid(layer), base.clean(Site("attn_out", layer)))
            reads = (resid.float() + read[moved]).to(resid.dtype)
            written = base.mlp(layer, rearrange(reads, "s b p d -> (s b) p d")).float()
            changes[moved] = rearrange(written, "(s b) p d -> s b p d", s=len(moved))
            changes[moved] -= base.clean(site).float()
        if name in senders:
            change = self.source.clean(site).float() - base.clean(site).float()
            changes[senders.index(name)] = change
        return changes

    def _logits(
        self, arriving: Mapping[str, Changes]
    ) -> Float[Tensor, "sender batch answer_pos d_vocab"]:
        """Return the logits where receivers read what arrives, everything after them run anew."""
        base, where = self.base, self.twins.clean.predicting
        n_senders = len(next(iter(arriving.values())))
        first = min(self.wiring.place(name)[1] for name in arriving)
        resid = repeat(base.resid(first), "batch ... -> (sender batch) ...", sender=n_senders)
        if first == base.n_layers:
            logits = base.logits(_moved(resid, arriving[LOGITS]), positions=where)
        else:
            tokens = repeat(base.tokens, "batch pos -> (sender batch) pos", sender=n_senders)
            read = _Reading(self.wiring, arriving)
            logits = base.forked(tokens, read=read, positions=where, start=(first, resid))
        by_sender: Tensor = rearrange(logits, "(s b) ... -> s b ...", s=n_senders)
        return by_sender


class _Reading:
    """What receivers read instead of the residual; all others read it."""

    def __init__(self, wiring: Wiring, arriving: Mapping[str, Changes]) -> None:
        self.wiring = wiring
        self.changes = {wiring.place(name): change for name, change in arriving.items()}

    def __call__(self, kind: str, layer: int, resid: Tensor) -> Tensor | None:
        own = {at[2]: each for at, each in self.changes.items() if at[:2] == (kind, layer)}
        if not own:
            return None
        if kind not in ("q", "k", "v"):
            return _moved(resid, own[0])
        n_heads = self.wiring.n_read(kind)
        heads: Tensor = repeat(resid, "rows pos d -> rows pos head d", head=n_heads).clone()
        for head, change in own.items():
            heads[:, :, head] = _moved(resid, change)
        return heads


def _moved(resid: Tensor, change: Changes) -> Tensor:
    """Return residuals [sender*batch pos d_model] with a change added in fp32."""
    moved: Tensor = resid.float() + rearrange(change, "s b p d -> (s b) p d")
    return moved.to(resid.dtype)
