"""Proof, on a few tokens and once per model, that inner sites are what their names say.

Inner sites lie inside attention or the MLP. A hook point that exists may still hold another tensor,
or ignore edits. So every inner site has an identity that ties it to what the stock modules compute,
and is refused, with the reason, where the identity does not hold.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from interp.models.bridge.routing import find_experts
from interp.models.rounding import is_near
from interp.shapes import per_query_head
from interp.sites import INNER_KINDS, Site, SiteKind

_N_TOKENS = 5

Reasons = dict[Site, str]  # why a site is not what its name says; empty where it is


@dataclass
class _Seen:
    """What one pass computed in one layer, at hook points and in the stock modules around them."""

    hooked: dict[str, Tensor] = field(default_factory=dict)
    stock: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Findings:
    """What is known of a bridge: which sites can be read and, once asked for, written."""

    unreadable: Reasons
    written: dict[Site, bool] = field(default_factory=dict)
    clean: Tensor | None = None  # logits of the few tokens, where edits are tried


_KNOWN: "WeakKeyDictionary[Any, Findings]" = WeakKeyDictionary()


def activations_named(config: Any) -> list[str]:
    """Return the names that a configuration gives its activation function; Falcon's key is last."""
    keys = ("hidden_activation", "hidden_act", "activation_function", "activation")
    named = (getattr(config, key, None) for key in keys)
    return [name for name in named if isinstance(name, str)]


def unreadable(bridge: Any, site: Site) -> str:
    """Return why an inner site cannot be read; nothing if it can."""
    return _findings(bridge).unreadable[site]


def unwritable(bridge: Any, site: Site) -> str:
    """Return why an inner site cannot be written; nothing if it can."""
    known = _findings(bridge)
    if site not in known.written:
        known.written[site] = _is_written(bridge, site, known)
    return "" if known.written[site] else "edits there do not reach the logits in this family"


def _findings(bridge: Any) -> Findings:
    if bridge not in _KNOWN:
        _KNOWN[bridge] = Findings(prove(bridge))
    return _KNOWN[bridge]


def few_tokens(bridge: Any) -> Tensor:
    """Return token ids [2 pos], no two neighbours alike, that any vocabulary has."""
    n_vocab = int(bridge.original_model.get_input_embeddings().weight.shape[0])
    ids = torch.arange(2 * _N_TOKENS).reshape(2, _N_TOKENS) * 3 + 1
    return (ids % n_vocab).to(next(bridge.parameters()).device)


@torch.no_grad()
def _is_written(bridge: Any, site: Site, known: Findings) -> bool:
    tokens = few_tokens(bridge)
    clean = known.clean = bridge(tokens) if known.clean is None else known.clean
    edited = bridge.run_with_hooks(
        tokens, fwd_hooks=[(str(site), lambda activation, hook: activation * 0.5 + 0.1)]
    )
    return not torch.allclose(clean, edited, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def prove(bridge: Any) -> Reasons:
    """Return why inner sites are not what their names say, from one pass over a few tokens."""
    seen = [_Seen() for _ in bridge.blocks]
    names: list[tuple[str, Callable[..., None]]] = []
    with ExitStack() as stack:
        for layer, block in enumerate(bridge.blocks):
            for kind, name in _hook_points(block, layer):
                names.append((name, _keeps(seen[layer].hooked, kind)))
            for key, module, is_input in _stock_modules(block):
                stack.callback(_watch(module, seen[layer].stock, key, is_input=is_input))
        bridge.run_with_hooks(few_tokens(bridge), fwd_hooks=names)
    config = bridge.original_model.config.get_text_config()
    reasons: Reasons = {}
    for layer, block in enumerate(bridge.blocks):
        for kind in INNER_KINDS:
            reasons[Site(kind, layer)] = _why_not(kind, seen[layer], block, config)
    return reasons


def _hook_points(block: Any, layer: int) -> Iterator[tuple[str, str]]:
    """Yield the inner hook points that a block has, as (what, name)."""
    for kind in [*INNER_KINDS, "mlp_pre_linear"]:
        part = getattr(block, "mlp" if kind.startswith("mlp") else "attn", None)
        point = f"hook_{kind.removeprefix('mlp_')}"
        if getattr(part, point, None) is not None:
            yield kind, f"blocks.{layer}.{'mlp' if kind.startswith('mlp') else 'attn'}.{point}"


def _stock_modules(block: Any) -> Iterator[tuple[str, nn.Module, bool]]:
    """Yield (what, module, whether its input is meant) for the stock modules around inner sites."""
    wanted = {
        "z": ("attn", "o", True),
        "mlp_post": ("mlp", "out", True),
        "q": ("attn", "q", False),
        "k": ("attn", "k", False),
    }
    wanted |= {"in": ("mlp", "in", False), "gate": ("mlp", "gate", False)}
    for key, (owner, name, is_input) in wanted.items():
        holder = getattr(block, owner, None)  # layers without attention or MLP have none
        part = (getattr(holder, "submodules", None) or {}).get(name)
        stock = getattr(holder, name, None) if part is not None else None
        if stock is not None:
            yield key, getattr(stock, "original_component", stock), is_input


def _keeps(into: dict[str, Tensor], key: str) -> Callable[..., None]:
    def keep(activation: Tensor, hook: Any) -> None:  # noqa: ARG001
        into[key] = activation.clone()

    return keep


def _watch(
    module: nn.Module, into: dict[str, Tensor], key: str, *, is_input: bool
) -> Callable[[], None]:
    def keep(_module: nn.Module, args: Any, output: Any) -> None:
        seen = args[0] if is_input and args else output
        if isinstance(seen, Tensor):
            into[key] = seen.clone()

    return module.register_forward_hook(keep).remove


def _why_not(kind: SiteKind, seen: _Seen, block: Any, config: Any) -> str:
    mlp = getattr(block, "mlp", None)
    if kind == "router":
        return "" if find_experts(mlp) is not None else "its MLP has no experts"
    if kind in ("mlp_pre", "mlp_post") and find_experts(mlp) is not None:
        return "a mixture of experts has no one layer of neurons"
    if kind not in seen.hooked:
        return "this family has no such hook point, or it never fires"
    check = {
        "z": _why_not_z,
        "v": _why_not_v,
        "pattern": _why_not_pattern,
        "attn_scores": _why_not_scores,
        "q": _why_not_query,
        "k": _why_not_key,
        "mlp_pre": _why_not_pre,
        "mlp_post": _why_not_post,
    }[kind]
    return check(seen, config)


def _heads_differ(tensor: Tensor, n_heads: int | None = None) -> str:
    if tensor.ndim == 4 and tensor.shape[1] == _N_TOKENS and n_heads in (None, tensor.shape[2]):
        return ""
    heads = "head" if n_heads is None else f"head={n_heads}"
    return f"its shape is {tuple(tensor.shape)}, not [batch pos={_N_TOKENS} {heads} d_head]"


def _why_not_z(seen: _Seen, config: Any) -> str:
    z = seen.hooked["z"]
    if why := _heads_differ(z, config.num_attention_heads):
        return why
    reads = seen.stock.get("z")
    return (
        ""
        if reads is not None and is_near(z.flatten(2), reads)
        else "it is not what the output projection reads"
    )


def _why_not_pattern(seen: _Seen, config: Any) -> str:
    return _why_not_z(seen, config) or _why_not_mixed(seen)


def _why_not_v(seen: _Seen, config: Any) -> str:
    return _why_not_z(seen, config) or _why_not_mixed(seen)


def _why_not_mixed(seen: _Seen) -> str:
    """Return why pattern @ v is not z, or ""."""
    pattern, v, z = (seen.hooked.get(kind) for kind in ("pattern", "v", "z"))
    if pattern is None or v is None or z is None:
        return "pattern, v and z are not all there, so that none of them can be checked"
    if why := _heads_differ(v):
        return f"v: {why}"
    if pattern.shape[1] % v.shape[2]:
        return f"v has {v.shape[2]} heads, the pattern {pattern.shape[1]}"
    mixed = torch.einsum(
        "bhqk,bkhd->bqhd", pattern.to(v.dtype), per_query_head(v, pattern.shape[1])
    )
    return "" if is_near(mixed, z) else "pattern @ v is not z"


def _why_not_scores(seen: _Seen, config: Any) -> str:  # noqa: ARG001
    scores, pattern = seen.hooked["attn_scores"].float(), seen.hooked.get("pattern")
    if pattern is None or scores.shape != pattern.shape:
        return "its shape is not the pattern's"
    if not scores.is_meta and is_near(scores, pattern):  # without numbers all are near
        return "it holds the pattern: the softmax is already taken"
    whole = pattern.float() / pattern.float().sum(
        -1, keepdim=True
    )  # attention sinks take the rest of a row
    return (
        ""
        if is_near(scores.softmax(-1), whole.to(pattern.dtype))
        else "its softmax is not the pattern"
    )


def _why_not_query(seen: _Seen, config: Any) -> str:
    return _why_not_projection("q", seen, config)


def _why_not_key(seen: _Seen, config: Any) -> str:
    return _why_not_projection("k", seen, config)


def _why_not_projection(kind: str, seen: _Seen, config: Any) -> str:
    """Return why q or k is not the projection's output, before any norm and rotation."""
    if why := _heads_differ(seen.hooked[kind], config.num_attention_heads if kind == "q" else None):
        return why
    stock = seen.stock.get(kind)
    if stock is not None and stock.shape == seen.hooked[kind].flatten(2).shape:
        return (
            ""
            if is_near(seen.hooked[kind].flatten(2), stock)
            else "it is not what the projection returns"
        )
    return (
        ""
        if _dot_to_scores(seen, config)
        else "it is neither what a projection returns nor what is dotted"
    )


def _dot_to_scores(seen: _Seen, config: Any) -> bool:
    """Tell whether q . k is the score up to one factor at position 0, where nothing is rotated."""
    q, k, scores = (seen.hooked.get(kind) for kind in ("q", "k", "attn_scores"))
    if (
        q is None
        or k is None
        or scores is None
        or q.ndim != 4
        or k.ndim != 4
        or q.shape[2] % k.shape[2]
    ):
        return False
    first = scores[:, :, 0, 0].float()
    cap = getattr(config, "attn_logit_softcapping", None)
    first = first if cap is None else cap * torch.atanh(first / cap)
    dotted = (q[:, 0] * per_query_head(k, q.shape[2])[:, 0]).sum(-1).float()
    factor = (first * dotted).sum() / (dotted * dotted).sum()
    return is_near(factor * dotted, first)


def _why_not_post(seen: _Seen, config: Any) -> str:  # noqa: ARG001
    reads, post = seen.stock.get("mlp_post"), seen.hooked["mlp_post"]
    same = (
        reads is not None
        and reads.numel() == post.numel()
        and is_near(post, reads.reshape(post.shape))
    )
    return "" if same else "it is not what the last matrix of the MLP reads"


def _why_not_pre(seen: _Seen, config: Any) -> str:
    pre, post, up = (seen.hooked.get(kind) for kind in ("mlp_pre", "mlp_post", "mlp_pre_linear"))
    if pre is None or post is None or pre.shape != post.shape:
        return "its shape is not that of mlp_post"
    for phi in (ACT2FN[name] for name in activations_named(config) if name in ACT2FN):
        if is_near(phi(pre) * (1.0 if up is None else up), post):
            return ""
    returned = [
        seen.stock[key]
        for key in ("gate", "in")
        if key in seen.stock and seen.stock[key].numel() == pre.numel()
    ]
    same = bool(returned) and is_near(pre, returned[0].reshape(pre.shape))
    return "" if same else "its activation is not mlp_post"
