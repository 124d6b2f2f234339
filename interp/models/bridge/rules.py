"""Backward rules carried out by hooks that give an activation another derivative.

Every hook replaces an activation y by y.detach() + (s - s.detach()), where the surrogate s has the
derivative that the rule asks for: the value stays y, bit for bit.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from interp.backward import AH, LN, DetachedGate, Half, Identity, Rules, ScaledAttention
from interp.errors import SiteError
from interp.models.bridge.inner import activations_named, unwritable
from interp.models.forward import Hook, RuleHooks
from interp.models.gradients import graph
from interp.models.rounding import is_near
from interp.sites import Site, SiteKind


def rule_hooks(bridge: Any, rules: Rules) -> RuleHooks:
    """Return the hooks that carry out rules; raise SiteError, naming the module, if any cannot."""
    hooks = RuleHooks()
    norms, attention = rules.get(LN), rules.get(ScaledAttention)
    if norms is not None:
        for path, norm in _norms(bridge):
            if norms.qk_norms or ".attn." not in path:
                _follow_norm(hooks, path, norm)
    if rules.get(Identity) or rules.get(Half) or rules.get(DetachedGate):
        phi = _Activation.of(bridge)
        for layer, block in enumerate(bridge.blocks):
            _follow_mlp(hooks, f"blocks.{layer}.mlp", block.mlp, phi, rules)
    if rules.get(AH):
        hooks.changing += _everywhere(
            bridge, "pattern", lambda pattern: pattern.detach(), rule="AH"
        )
    if attention is not None:
        for kind, divisor in (("q", attention.q), ("k", attention.k), ("v", attention.v)):
            divided = partial(_divided, by=divisor)
            hooks.changing += _everywhere(bridge, kind, divided, rule="ScaledAttention")  # type: ignore[arg-type]
    return hooks


def _with_derivative_of(surrogate: Tensor, activation: Tensor) -> Tensor:
    return activation.detach() + (surrogate - surrogate.detach()).to(activation.dtype)


def _divided(activation: Tensor, *, by: float) -> Tensor:
    return _with_derivative_of(activation / by, activation)


def _everywhere(
    bridge: Any, kind: SiteKind, change: Callable[[Tensor], Tensor], *, rule: str
) -> list[Hook]:
    """Return hooks that edit an activation in every attention; raise SiteError if that is inert."""
    if why := unwritable(bridge, Site(kind, 0)):
        raise SiteError(f"rule {rule}: {Site(kind, 0)} cannot be written: {why}")
    return [
        (str(Site(kind, layer)), lambda activation, hook: change(activation))
        for layer in range(len(bridge.blocks))
    ]


def _norms(bridge: Any) -> Iterator[tuple[str, Any]]:
    """Yield the bridge's normalisations by name."""
    from transformer_lens.model_bridge.generalized_components.normalization import (
        NormalizationBridge,
    )

    def inside(component: Any, path: str) -> Iterator[tuple[str, Any]]:
        for name, part in (getattr(component, "submodules", None) or {}).items():
            if isinstance(part, NormalizationBridge):
                yield f"{path}.{name}", part
            yield from inside(part, f"{path}.{name}")

    for layer, block in enumerate(bridge.blocks):
        yield from inside(block, f"blocks.{layer}")
    if isinstance(bridge.ln_final, NormalizationBridge):
        yield "ln_final", bridge.ln_final


def _follow_norm(hooks: RuleHooks, path: str, norm: Any) -> None:
    seen: dict[str, Tensor] = {}

    def see(activation: Tensor, hook: Any, *, name: str) -> None:  # noqa: ARG001
        seen[name] = activation

    def linear(activation: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        resid, scale = seen.pop("in"), seen.pop("scale").detach()
        scale = scale.to(torch.promote_types(scale.dtype, torch.float32))
        resid = resid.to(scale.dtype)
        scale = scale.reshape(
            *resid.shape[:-1], -1
        )  # some families flatten batch and position before their MLP
        centred = resid if norm.uses_rms_norm else resid - resid.mean(-1, keepdim=True)
        weight = getattr(norm.original_component, "weight", None)
        if weight is not None:
            weight = weight.detach().to(scale.dtype)
            centred = centred * ((1.0 + weight) if norm.uses_weight_offset else weight)
        return _with_derivative_of((centred / scale).reshape(activation.shape), activation)

    hooks.watching += [(f"{path}.hook_{name}", partial(see, name=name)) for name in ("in", "scale")]
    hooks.changing.append((f"{path}.hook_out", linear))


@dataclass(frozen=True)
class _Activation:
    """A model's activation function, and its slope at 0, where phi(x) / x has its limit."""

    name: str
    phi: Callable[[Tensor], Tensor]
    slope: float

    @classmethod
    def of(cls, bridge: Any) -> "_Activation":
        from transformers.activations import ACT2FN

        config = bridge.original_model.config.get_text_config()
        name = next(iter(activations_named(config)), None)
        if name not in ACT2FN:
            raise SiteError(
                "rules Identity and Half need to know the activation function;"
                f" the configuration names {name!r}"
            )
        phi = ACT2FN[name]
        with graph():
            zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
            at_zero = phi(zero)
            (slope,) = torch.autograd.grad(at_zero, zero)
        if at_zero.item() != 0.0:
            raise SiteError(
                f"rule Identity: {name} is not 0 at 0, so phi(x) / x has no limit there"
            )
        return cls(str(name), phi, slope.item())

    def ratio(self, x: Tensor, value: Tensor, rule: Identity) -> Tensor:
        """Return phi(x) / x, where `value` is phi(x)."""
        at_zero = x == 0
        if rule.stabiliser:
            return value / (x + rule.stabiliser * torch.where(at_zero, 1.0, x.sign()))
        return torch.where(at_zero, self.slope, value / torch.where(at_zero, 1.0, x))


def _follow_mlp(hooks: RuleHooks, path: str, mlp: Any, phi: _Activation, rules: Rules) -> None:
    from transformer_lens.model_bridge.generalized_components import (
        GatedMLPBridge,
        MLPBridge,
        MoEBridge,
    )

    if isinstance(mlp, MoEBridge):
        raise SiteError(
            f"rules {rules.name!r}: {path} is a mixture of experts,"
            " for whose router there is no rule; LN and AH are"
        )
    if not isinstance(mlp, MLPBridge):
        raise SiteError(
            f"rules {rules.name!r}: {path} is a {type(mlp).__name__},"
            " which Identity and Half do not know"
        )
    is_gated = isinstance(mlp, GatedMLPBridge)
    seen: dict[str, Tensor] = {}

    def see(activation: Tensor, hook: Any, *, name: str) -> None:  # noqa: ARG001
        seen[name] = activation

    def follow(post: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        wide = torch.promote_types(post.dtype, torch.float32)
        pre = seen.pop("pre").to(wide)
        up = seen.pop("up").to(wide) if is_gated else torch.ones((), dtype=wide, device=post.device)
        value = phi.phi(pre.detach())
        first = (slice(1), slice(-1, None))
        expected = (value[first] * (up.detach()[first] if is_gated else 1.0)).to(post.dtype)
        if not is_near(expected, post.detach()[first], least=1e-4):
            what = f"{phi.name}(gate) * up" if is_gated else f"{phi.name} of mlp.hook_pre"
            raise SiteError(
                f"rules {rules.name!r}: {path}.hook_post is not {what}; no rule is known for it"
            )
        return _with_derivative_of(_product(pre, up, value, phi, rules, is_gated=is_gated), post)

    sites = {"pre": f"{path}.hook_pre"} | ({"up": f"{path}.hook_pre_linear"} if is_gated else {})
    hooks.watching += [(hook, partial(see, name=name)) for name, hook in sites.items()]
    hooks.changing.append((f"{path}.hook_post", follow))


def _product(
    pre: Tensor, up: Tensor, value: Tensor, phi: _Activation, rules: Rules, *, is_gated: bool
) -> Tensor:
    """Return the surrogate of phi(pre) * up, where `value` is phi(pre) without a graph."""
    identity = rules.get(Identity)
    if is_gated and rules.get(DetachedGate):
        return value * up
    gate = phi.phi(pre) if identity is None else pre * phi.ratio(pre.detach(), value, identity)
    if is_gated and rules.get(Half):
        return 0.5 * (gate * up.detach() + value * up)
    return gate * up if is_gated else gate
