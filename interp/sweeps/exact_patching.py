"""Exact activation patching: one row per node, and only the blocks after it are run."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from einops import rearrange, repeat
from torch import Tensor

from interp.models import Model
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sites import Site, SiteKind
from interp.sweeps.node_scores import by_kind, n_units
from interp.sweeps.twins import Twins
from interp.tasks.batch import TokenBatch

NODE_KINDS: tuple[SiteKind, ...] = ("resid_pre", "attn_out", "z", "mlp_out", "mlp_post")


def clean_runs(recording: Recording, twins: Twins) -> tuple[Twins, Recording, Recording, Tensors]:
    """Return the twins with their reference, the base and source runs, and the metric of both."""
    clean, twin = twins.clean.recording, recording.of(twins.corrupted)
    reference = clean.logits(clean.resid(clean.n_layers), positions=twins.clean.predicting)
    twins = replace(twins, reference=reference)
    base, source = (twin, clean) if twins.direction == "denoise" else (clean, twin)
    values = {
        name: _metric(twins, run, run.resid(run.n_layers), n_variants=1)[0].cpu()
        for name, run in (("base", base), ("source", source))
    }
    return twins, base, source, values


def all_effects(
    twins: Twins, base: Recording, source: Recording, kinds: Sequence[SiteKind]
) -> Tensors:
    """Return the effects of all nodes by kind [batch layer pos (unit)] on the CPU."""
    return by_kind(partial(patch_effects, twins, base, source), kinds, n_layers=base.n_layers)


def all_distances(base: Recording, source: Recording, kinds: Sequence[SiteKind]) -> Tensors:
    """Return how far each node's activation moves between the runs, as `all_effects`.

    The norm of the change: a score that needs neither a gradient nor a patch.
    """

    def distance(site: Site) -> Tensor:
        here, there = (_nodes(recording, site).float() for recording in (base, source))
        norm: Tensor = torch.linalg.vector_norm(there - here, dim=-1)
        return norm

    return by_kind(distance, kinds, n_layers=base.n_layers)


def patch_effects(twins: Twins, base: Recording, source: Recording, site: Site) -> Tensor:
    """Return what the metric of the base run gains if a node has its value from the source run.

    A node is a site at one position [batch pos]; at "z" also one head [batch pos head], at
    "mlp_post" one neuron [batch pos d_mlp]. Nodes that are equal in both runs have no effect and
    are not run.
    """
    here, there = (_nodes(recording, site) for recording in (base, source))
    has_units = here.ndim == 4
    differs = (here != there).any(0).any(-1)
    nodes = differs.nonzero()
    effects = torch.zeros(*here.shape[:3] if has_units else here.shape[:2], device=here.device)
    clean_value = _metric(twins, base, base.resid(base.n_layers), n_variants=1)[0]
    for chunk in torch.split(nodes, base.variants_at_once()):
        patched = repeat(here, "batch ... -> variant batch ...", variant=len(chunk)).clone()
        for row, node in zip(patched, chunk.tolist(), strict=True):
            at = (slice(None), *node)
            row[at] = there[at]
        patched = rearrange(patched, "variant batch pos ... -> (variant batch) pos (...)")
        value = _metric(twins, base, _behind(base, site, patched), n_variants=len(chunk))
        for node, gained in zip(chunk.tolist(), value - clean_value, strict=True):
            effects[(slice(None), *node)] = gained
    return effects


def forwards_of(model: Model, kinds: Sequence[SiteKind], shard: TokenBatch) -> float:
    """Return how many forwards exact patching of every node takes, if all of them differ.

    Those before the first token that differs do not.
    """
    n_layers, n_pos = model.n_layers, shard.tokens.shape[1]
    if shard.corrupted is not None:
        differs = (shard.tokens != shard.corrupted).any(0)
        n_pos -= int(differs.int().argmax())
    behind = n_layers * (n_layers + 1) // 2
    blocks = sum(
        n_pos * n_units(model, [kind]) * (behind - n_layers if kind == "mlp_out" else behind)
        for kind in kinds
    )
    return blocks / n_layers + forwards_inside(kinds)


def forwards_inside(kinds: Sequence[SiteKind]) -> float:
    """Return how many forwards it takes to read nodes inside of blocks once, in both runs."""
    return 2.0 * sum(kind in ("z", "mlp_post") for kind in kinds)


def _nodes(recording: Recording, site: Site) -> Tensor:
    """Return a site's activations by node [batch pos (unit) d]."""
    if site.kind == "z":
        n_heads = recording.blocks[site.layer].n_heads
        heads: Tensor = rearrange(recording.inside(site), "b p (h d) -> b p h d", h=n_heads)
        return heads
    if site.kind == "mlp_post":
        return recording.inside(site)[..., None]
    return recording.clean(site)


def _behind(base: Recording, site: Site, patched: Tensor) -> Tensor:
    """Return the last residual with a site's values replaced [variant*batch pos d]."""
    layer, rest = site.layer, range(site.layer + 1, base.n_layers)
    if site.kind == "resid_pre":
        return base.chain(range(layer, base.n_layers), patched)
    every = partial(repeat, pattern="batch ... -> (variant batch) ...")
    n_variants = len(patched) // base.batch_size
    if site.kind == "mlp_out":
        without = base.resid(layer + 1).float() - base.clean(site).float()
        resid = every(without, variant=n_variants) + patched.float()
        return base.chain(rest, resid.to(patched.dtype))
    resid = every(base.resid(layer), variant=n_variants)
    return base.chain(rest, base.block_with(layer, resid, at=site.kind, edit=lambda _: patched))


def _metric(twins: Twins, base: Recording, resid: Tensor, *, n_variants: int) -> Tensor:
    logits = base.logits(resid, positions=twins.clean.predicting)
    return twins.value(
        rearrange(logits, "(variant batch) ... -> variant batch ...", variant=n_variants)
    )
