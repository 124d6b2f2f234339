"""Exact activation patching through replayed blocks: one row per node, and only the blocks behind
it are run.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from einops import rearrange, repeat
from torch import Tensor

from interp.replay import Recording
from interp.shapes import Tensors
from interp.sites import Site, SiteKind
from interp.sweeps.twins import Pair

NODE_KINDS: tuple[SiteKind, ...] = ("resid_pre", "attn_out", "z", "mlp_out", "mlp_post")
_CHUNK_TOKENS = 4096


def run_values(recording: Recording, pair: Pair) -> tuple[Pair, Recording, Recording, Tensors]:
    """Return the pair with its reference, its base and source runs, and the metric of both (one
    clean pass each).
    """
    clean, twin = pair.clean.recording, recording.beside(pair.corrupted)
    reference = clean.logits(clean.resid(clean.n_layers), positions=pair.clean.predicting)
    pair = replace(pair, reference=reference)
    base, source = (twin, clean) if pair.direction == "denoise" else (clean, twin)
    values = {
        name: _metric(pair, run, run.resid(run.n_layers), n_variants=1)[0].cpu()
        for name, run in (("base", base), ("source", source))
    }
    return pair, base, source, values


def patch_effects(pair: Pair, base: Recording, source: Recording, site: Site) -> Tensor:
    """Return by how much the metric of the base run rises when a node has its value from the source
    run.

    A node is a site at one position [batch pos]; at "z" also one head [batch pos head], at
    "mlp_post" one neuron [batch pos d_mlp]. Nodes that are equal in both runs have no effect and
    are not run.
    """
    here, there = (_value(recording, site) for recording in (base, source))
    if site.kind == "z":
        here, there = (
            rearrange(each, "b p (h d) -> b p h d", h=base.blocks[site.layer].n_heads)
            for each in (here, there)
        )
    elif site.kind == "mlp_post":
        here, there = here[..., None], there[..., None]
    has_units = here.ndim == 4
    differs = (here != there).any(0).any(-1)
    nodes = differs.nonzero()
    effects = torch.zeros(*here.shape[:3] if has_units else here.shape[:2], device=here.device)
    clean_value = _metric(pair, base, base.resid(base.n_layers), n_variants=1)[0]
    for chunk in torch.split(nodes, max(1, _CHUNK_TOKENS // (base.batch_size * base.n_pos))):
        patched = repeat(here, "batch ... -> variant batch ...", variant=len(chunk)).clone()
        for row, node in zip(patched, chunk.tolist(), strict=True):
            at = (slice(None), *node)
            row[at] = there[at]
        patched = rearrange(patched, "variant batch pos ... -> (variant batch) pos (...)")
        value = _metric(pair, base, _behind(base, site, patched), n_variants=len(chunk))
        for node, gained in zip(chunk.tolist(), value - clean_value, strict=True):
            effects[(slice(None), *node)] = gained
    return effects


def blocks_run(kind: SiteKind, *, n_layers: int, n_nodes: int) -> int:
    """Return how many blocks exact patching of `n_nodes` nodes in every layer runs, per prompt and
    position.
    """
    behind = n_layers * (n_layers + 1) // 2
    return n_nodes * (behind - n_layers if kind == "mlp_out" else behind)


def _value(recording: Recording, site: Site) -> Tensor:
    return recording.inside(site) if site.kind in ("z", "mlp_post") else recording.clean(site)


def _behind(base: Recording, site: Site, patched: Tensor) -> Tensor:
    """Return the last residual where a site holds something else [variant*batch pos d]."""
    layer, n_variants = site.layer, len(patched) // base.batch_size
    rest = range(layer + 1, base.n_layers)
    if site.kind == "resid_pre":
        return base.chain(range(layer, base.n_layers), patched)
    if site.kind == "mlp_out":
        without = base.resid(layer + 1).float() - base.clean(site).float()
        resid = (
            repeat(without, "batch ... -> (variant batch) ...", variant=n_variants)
            + patched.float()
        )
        return base.chain(rest, resid.to(patched.dtype))
    resid = repeat(base.resid(layer), "batch ... -> (variant batch) ...", variant=n_variants)
    put: Callable[[Tensor], Tensor] = lambda _: patched  # noqa: E731
    return base.chain(rest, base.block_with(layer, resid, at=site.kind, edit=put))


def _metric(pair: Pair, base: Recording, resid: Tensor, *, n_variants: int) -> Tensor:
    logits = base.logits(resid, positions=pair.clean.predicting)
    return pair.value(
        rearrange(logits, "(variant batch) ... -> variant batch ...", variant=n_variants)
    )
