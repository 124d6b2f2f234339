"""Peak memory of capturing three sites in every layer, against hooks and TransformerLens.

Growth of a fresh process's peak, the median of three; what is captured is itself most of the bound.
TransformerLens computes whole attention patterns, which for 2,048 tokens are larger than all that
is asked for; *everything* keeps them.
"""

from statistics import median

import torch
from torch import Tensor

from benchmarks.harness import Row, Work, grown_mb, random_batch, random_llama
from interp.sites import Site, SiteKind

_KINDS: tuple[SiteKind, ...] = ("resid_pre", "attn_out", "mlp_out")
_WAYS = ("interp", "plain hooks", "run_with_cache with a filter", "run_with_cache of everything")


def capturing(way: str, n_layers: int, d_model: int) -> Work:
    """Return a pass that captures 2,048 tokens, after one of a few."""
    model = random_llama(n_layers=n_layers, d_model=d_model, d_vocab=512)
    bridge = model.bridge if "cache" in way else None
    few, many = (random_batch(model, batch=1, n_pos=n) for n in (8, 2048))
    sites = [Site(kind, layer) for layer in range(n_layers) for kind in _KINDS]
    names = None if way.endswith("everything") else [str(site) for site in sites]

    @torch.no_grad()
    def capture(tokens: Tensor) -> object:
        if bridge is not None:
            return bridge.run_with_cache(tokens, names_filter=names)
        if way == "interp":
            return model.forward(many if tokens is many.tokens else few, capture=sites)
        return _with_hooks(model.module, tokens)

    capture(few.tokens)
    return lambda: capture(many.tokens)


def _with_hooks(module: torch.nn.Module, tokens: Tensor) -> list[Tensor]:
    kept: list[Tensor] = []
    handles = []
    for block in module.model.layers:
        handles.append(
            block.register_forward_pre_hook(lambda _m, args: kept.append(args[0].clone()))
        )
        handles.append(
            block.self_attn.register_forward_hook(
                lambda _m, _a, output: kept.append(output[0].clone())
            )
        )
        handles.append(
            block.mlp.register_forward_hook(lambda _m, _a, output: kept.append(output.clone()))
        )
    module(input_ids=tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return kept


def run() -> dict[str, Row]:
    """Return our growth against each peer's."""
    rows: dict[str, Row] = {}
    for n_layers, d_model in ((8, 256), (12, 384)):
        grown = {
            way: median(grown_mb(capturing, way, n_layers, d_model) for _ in range(3))
            for way in _WAYS
        }
        for way in _WAYS[1:]:
            key = f"3 sites × {n_layers} layers, d = {d_model}, T = 2048, against {way}"
            numbers = {"ours_mb": round(grown["interp"]), "peer_mb": round(grown[way])}
            goal = {"goal": 0.2} if "cache" in way else {}
            bound = {"bound": round(grown["plain hooks"] / grown[way], 3)}
            rows[key] = numbers | {"ratio": round(grown["interp"] / grown[way], 3)} | bound | goal
    return rows
