"""A second implementation of the backward rules: autograd functions put into the stock modules of
Hugging Face.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from interp.backward import AH, LN, DetachedGate, Half, Identity, Rules
from interp.sites import Site


class _Times(torch.autograd.Function):
    """Return a value, and send the gradient back times a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, factor: Tensor) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(factor)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad * ctx.saved_tensors[0], None, None


def _norm(module: nn.Module, shifted: bool) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        is_layer_norm = isinstance(module, nn.LayerNorm)
        centred = x - x.mean(-1, keepdim=True) if is_layer_norm else x
        eps = getattr(module, "eps", None) or getattr(module, "variance_epsilon", 1e-6)
        inverse = torch.rsqrt(centred.detach().pow(2).mean(-1, keepdim=True) + eps)
        weight = 1.0 + module.weight if shifted else module.weight
        y = centred * inverse * weight
        return y + module.bias if is_layer_norm else y

    return forward


def _activate(x: Tensor, phi: Callable[[Tensor], Tensor], rules: Rules) -> Tensor:
    if not rules.get(Identity):
        return phi(x)
    value = phi(x.detach())
    return _Times.apply(x, value, value / x.detach())


def _gated(
    mlp: nn.Module, phi: Callable[[Tensor], Tensor], rules: Rules
) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        gate, up = _activate(mlp.gate_proj(x), phi, rules), mlp.up_proj(x)
        if rules.get(DetachedGate):
            gate = gate.detach()
        product = gate * up
        if rules.get(Half):
            product = _Times.apply(product, product.detach(), torch.full_like(product, 0.5))
        return mlp.down_proj(product)

    return forward


class _FrozenSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:  # noqa: ARG004
        return x.softmax(dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return torch.zeros_like(grad), None


def by_hand(
    module: Any, tokens: Tensor, rules: Rules, *, right: int, wrong: int
) -> dict[Site, Tensor]:
    """Return the derivatives of logit(right) - logit(wrong) at the last position under rules, at
    every block site.
    """
    found: dict[Site, Tensor] = {}
    before = module.config._attn_implementation
    module.set_attn_implementation("eager")
    blocks = next(m for m in module.modules() if isinstance(m, nn.ModuleList) and len(m) == 4)
    norms = rules.get(LN)
    shifted = module.config.model_type.startswith("gemma")
    phi = ACT2FN[
        getattr(module.config, "hidden_activation", None)
        or getattr(module.config, "hidden_act", None)
        or "gelu_new"
    ]

    def keep(site: Site) -> Callable[..., Any]:
        def hook(_m: nn.Module, _a: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            tensor.retain_grad()
            found[site] = tensor

        return hook

    def enter(site: Site) -> Callable[..., Any]:
        def hook(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            resid = args[0] if args else kwargs["hidden_states"]
            if site.layer == 0:
                resid = resid.detach().requires_grad_()
            resid.retain_grad()
            found[site] = resid
            return ((resid, *args[1:]), kwargs) if args else ((), kwargs | {"hidden_states": resid})

        return hook

    with ExitStack() as stack, torch.enable_grad():
        for name, part in module.named_modules():
            last = name.split(".")[-1]
            is_norm = part.__class__.__name__.endswith("Norm")
            if norms is not None and is_norm and (norms.qk_norms or last[:2] not in ("q_", "k_")):
                stack.enter_context(patch.object(part, "forward", _norm(part, shifted)))
            if hasattr(part, "gate_proj"):
                stack.enter_context(patch.object(part, "forward", _gated(part, phi, rules)))
        for block in blocks:
            mlp = block.mlp
            for name in ("act", "act_fn"):
                if hasattr(mlp, name) and not hasattr(mlp, "gate_proj"):
                    stack.enter_context(
                        patch.object(
                            getattr(mlp, name), "forward", lambda x: _activate(x, phi, rules)
                        )
                    )
        if rules.get(AH):
            frozen = lambda x, dim=-1, dtype=None: _FrozenSoftmax.apply(x, dim)  # noqa: E731
            stack.enter_context(patch("torch.nn.functional.softmax", frozen))
        handles = []
        for layer, block in enumerate(blocks):
            attn = (
                getattr(block, "self_attn", None) or getattr(block, "attention", None) or block.attn
            )
            writes = {"attn_out": attn, "mlp_out": block.mlp}
            if hasattr(block, "post_feedforward_layernorm"):
                writes = {
                    "attn_out": block.post_attention_layernorm,
                    "mlp_out": block.post_feedforward_layernorm,
                }
            handles.append(
                block.register_forward_pre_hook(enter(Site("resid_pre", layer)), with_kwargs=True)
            )
            handles += [
                part.register_forward_hook(keep(Site(kind, layer))) for kind, part in writes.items()
            ]
        logits = module(input_ids=tokens, use_cache=False).logits
        value = (logits[:, -1, right] - logits[:, -1, wrong]).sum()
        sites = sorted(found)
        slopes = torch.autograd.grad(value, [found[site] for site in sites])
        for handle in handles:
            handle.remove()
    module.set_attn_implementation(before)
    return dict(zip(sites, slopes, strict=True))
