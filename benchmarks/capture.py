"""Capturing three sites in every layer, against the stock forward and TransformerLens.

TransformerLens is asked for the same places (`names_filter`) and for everything, which is how it is
mostly used. Values are compared first. The bound is a capture that costs nothing: the stock
forward, timed in the same turns.
"""

from typing import Any

import torch

from benchmarks.harness import Row, Work, random_batch, random_llama, ratio, seconds, size_of
from interp.models import Model
from interp.sites import Site, SiteKind
from interp.tasks.batch import TokenBatch

_KINDS: tuple[SiteKind, ...] = ("resid_pre", "attn_out", "mlp_out")
_SIZES = (
    (12, 384, 8, 64),
    (12, 384, 1, 64),
    (12, 128, 8, 64),
    (12, 128, 1, 64),
    (4, 128, 1, 32),
    (24, 64, 1, 32),
    (12, 1024, 1, 128),
    (12, 128, 1, 512),
)


@torch.no_grad()
def run() -> dict[str, Row]:
    """Compare at several sizes."""
    rows: dict[str, Row] = {}
    for n_layers, d_model, batch_size, n_pos in _SIZES:
        model = random_llama(n_layers=n_layers, d_model=d_model)
        batch = random_batch(model, batch=batch_size, n_pos=n_pos)
        for name, row in rows_of(model, batch, n_turns=10 if d_model >= 384 else 40).items():
            rows[f"{size_of(model, batch)}, against {name}"] = row | _goal(name, d_model)
    return rows


@torch.no_grad()
def rows_of(model: Model, batch: TokenBatch, *, n_turns: int, rtol: float = 1e-4) -> dict[str, Row]:
    """Compare with each peer on one batch, after checking that the values agree."""
    bridge, n_layers = model.bridge, model.n_layers
    sites = [Site(kind, layer) for layer in range(n_layers) for kind in _KINDS]
    names = [str(site) for site in sites]
    ours = model.forward(batch, capture=sites).activations
    _, cache = bridge.run_with_cache(batch.tokens, names_filter=names)
    for site, name in zip(sites, names, strict=True):
        torch.testing.assert_close(ours[site], cache[name], rtol=rtol, atol=rtol / 10)

    works: dict[str, Work] = {
        "ours": lambda m=model, b=batch, s=sites: m.forward(b, capture=s),
        "the stock forward": lambda m=model, b=batch: m.logits(b),
        "`run_with_cache` with a filter": lambda r=bridge, b=batch, n=names: r.run_with_cache(
            b.tokens, names_filter=n
        ),
        "`run_with_cache` of everything": lambda r=bridge, b=batch: r.run_with_cache(b.tokens),
    }
    turns = [{n: seconds(work) for n, work in works.items()} for _ in range(n_turns)][1:]
    rows = {}
    for name in list(works)[1:]:
        row = ratio([(turn["ours"], turn[name]) for turn in turns])
        free = ratio([(turn["the stock forward"], turn[name]) for turn in turns])["ratio"]
        rows[name] = row | {"bound": free}
    return rows


def _goal(peer: str, d_model: int) -> dict[str, Any]:
    if peer == "the stock forward":
        return {"goal": 1.15}
    if d_model == 384:
        return {"goal": 0.75 if peer.endswith("everything") else 1.0}
    return {"goal": 0.5 if peer.endswith("everything") else 0.7} if d_model <= 128 else {}
