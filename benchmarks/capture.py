"""A forward pass that captures three places in every layer, against the stock forward and TransformerLens's cache.

TransformerLens is asked for the same places (`names_filter`) and for everything, which is how it is mostly used. Values
are compared first.
"""

from typing import Any

import torch

from benchmarks.harness import compare, random_batch, random_llama
from interp.sites import Site, SiteKind

_KINDS: tuple[SiteKind, ...] = ("resid_pre", "attn_out", "mlp_out")


@torch.no_grad()
def run() -> dict[str, Any]:
    """Compare at two widths."""
    results: dict[str, Any] = {}
    for d_model in (384, 128):
        model = random_llama(n_layers=12, d_model=d_model)
        batch, bridge = random_batch(model, batch=8, n_pos=64), model.bridge
        sites = [Site(kind, layer) for layer in range(model.n_layers) for kind in _KINDS]
        names = [str(site) for site in sites]
        ours = model.forward(batch, capture=sites).activations
        _, cache = bridge.run_with_cache(batch.tokens, names_filter=names)
        for site, name in zip(sites, names, strict=True):
            torch.testing.assert_close(ours[site], cache[name], rtol=1e-4, atol=1e-5)

        def capture(model: Any = model, batch: Any = batch, sites: Any = sites) -> None:
            model.forward(batch, capture=sites)

        key = f"3 sites × 12 layers, d = {d_model}, batch 8, T = 64"
        results |= {
            f"{key}, against the stock forward": compare(capture, lambda m=model, b=batch: m.logits(b)) | {"bound": 1.0},
            f"{key}, against `run_with_cache` with a filter": compare(
                capture, lambda r=bridge, b=batch, n=names: r.run_with_cache(b.tokens, names_filter=n)
            ),
            f"{key}, against `run_with_cache` of everything": compare(
                capture, lambda r=bridge, b=batch: r.run_with_cache(b.tokens)
            ),
        }
    return results
