"""One forward pass with captures and interventions: block sites on the stock modules, inner sites through the bridge."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from interp.errors import SiteError
from interp.replay import Block, first, with_first
from interp.sites import BLOCK_KINDS, Site


@runtime_checkable
class Edit(Protocol):
    """What replaces an activation; `resid_pre` is the block's input, where it is known."""

    def edit(self, activation: Tensor, resid_pre: Tensor | None) -> Tensor:
        """Return the activation with something else in its place."""


class Leaf:
    """Starts the graph of a backward pass: parameters need no gradient, what follows this residual does."""

    @staticmethod
    def edit(activation: Tensor, resid_pre: Tensor | None = None) -> Tensor:  # noqa: ARG004
        """Return the activation as a leaf that needs a gradient."""
        return activation.detach().requires_grad_()


Edits = dict[Site, list[Edit]]
Hook = tuple[str, Callable[..., Any]]  # a hook point of the bridge, and what is called there


@dataclass
class RuleHooks:
    """Hooks that carry out rules: what watches comes behind all edits of a pass, what changes comes before them."""

    changing: list[Hook] = field(default_factory=list)
    watching: list[Hook] = field(default_factory=list)


NO_RULES = RuleHooks()


def kept(activation: Tensor) -> Tensor:
    """Return what a capture keeps: a copy, or the tensor in the graph where there is one."""
    return activation if activation.requires_grad else activation.clone()


@contextmanager
def stock_hooks(blocks: Sequence[Block], edits: Edits, capture: set[Site], *, into: dict[Site, Tensor]) -> Iterator[None]:
    """Edit and capture block sites of the stock modules inside the `with` block."""
    layers = sorted({site.layer for site in [*edits, *capture]})
    with ExitStack() as stack:
        for layer in layers:
            _hook_layer(stack, blocks[layer], layer, edits, capture, into)
        yield


def _hook_layer(
    stack: ExitStack, block: Block, layer: int, edits: Edits, capture: set[Site], into: dict[Site, Tensor]
) -> None:
    """Hook one block: its input, what its sublayers write, its output."""
    resid: dict[str, Tensor] = {}

    def at(kind: str, activation: Tensor) -> Tensor:
        site = Site(kind, layer)  # type: ignore[arg-type]
        for intervention in edits.get(site, ()):
            activation = intervention.edit(activation, resid.get("pre"))
        if site in capture:
            into[site] = kept(activation)
        return activation

    def on_input(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        name = block.parameters[0]
        resid["pre"] = at("resid_pre", kwargs[name] if name in kwargs else args[0])
        return ((), kwargs | {name: resid["pre"]}) if name in kwargs else ((resid["pre"], *args[1:]), kwargs)

    def on_attn(_module: Any, _args: Any, output: Any) -> Any:
        write = at("attn_out", first(output))
        mid = Site("resid_mid", layer)
        if mid in edits or mid in capture:
            stream = at("resid_mid", resid["pre"] + write)
            write = stream - resid["pre"] if mid in edits or torch.is_grad_enabled() else write
        return with_first(output, write)

    def on_output(kind: str) -> Callable[..., Any]:
        return lambda _module, _args, output: with_first(output, at(kind, first(output)))

    kinds = {site.kind for site in [*edits, *capture] if site.layer == layer}
    is_edited = any(site.layer == layer for site in edits)
    handles = []
    if is_edited or kinds & {"resid_pre", "resid_mid"}:
        handles.append(block.module.register_forward_pre_hook(on_input, with_kwargs=True))
    if kinds & {"attn_out", "resid_mid"}:
        handles.append(block.attn_write.register_forward_hook(on_attn))
    if "mlp_out" in kinds:
        handles.append(block.mlp_write.register_forward_hook(on_output("mlp_out")))
    if "resid_post" in kinds:
        handles.append(block.module.register_forward_hook(on_output("resid_post")))
    for handle in handles:
        stack.callback(handle.remove)


def bridge_forward(
    bridge: Any,
    tokens: Tensor,
    mask: Tensor | None,
    edits: Edits,
    capture: set[Site],
    *,
    into: dict[Site, Tensor],
    rules: RuleHooks = NO_RULES,
) -> Tensor:
    """Run TransformerLens's bridge with edits and captures at any site, behind the hooks of `rules`; return logits."""
    extra = {} if mask is None else {"attention_mask": mask.long()}
    with bridge_hooks(bridge, edits, capture, into=into, rules=rules):
        logits: Tensor = bridge(tokens, **extra)
    return logits


@contextmanager
def bridge_hooks(
    bridge: Any, edits: Edits, capture: set[Site], *, into: dict[Site, Tensor], rules: RuleHooks = NO_RULES
) -> Iterator[None]:
    """Edit and capture any sites of the bridge inside the `with` block."""
    resid: dict[int, Tensor] = {}

    def remember(activation: Tensor, hook: Any, *, layer: int) -> None:  # noqa: ARG001
        resid[layer] = activation

    def at(activation: Tensor, hook: Any, *, site: Site) -> Tensor:  # noqa: ARG001
        for intervention in edits.get(site, ()):
            activation = intervention.edit(activation, resid.get(site.layer))
        if site in capture:
            into[site] = kept(activation)
        return activation

    def at_mid(write: Tensor, hook: Any, *, site: Site) -> Tensor:
        stream = at(resid[site.layer] + write, hook, site=site)
        return stream - resid[site.layer] if site in edits or torch.is_grad_enabled() else write

    hooks: list[Hook] = [*rules.changing]
    for site in sorted({*edits, *capture}):
        hooks.append((str(Site("resid_pre", site.layer)), _bound(remember, layer=site.layer)))
        if site.kind == "resid_mid":  # edits of hook_resid_mid reach the MLP only
            hooks.append((str(Site("attn_out", site.layer)), _bound(at_mid, site=site)))
        else:
            hooks.append((str(site), _bound(at, site=site)))
    try:
        with bridge.hooks(fwd_hooks=[*hooks, *rules.watching]):
            yield
    except KeyError as error:
        raise SiteError(f"{error.args[0]} (asked for: {', '.join(map(str, capture or edits))})") from None
    silent = [site for site in capture if site not in into]
    if silent:
        raise SiteError(f"{silent[0]} never fires in {type(bridge.original_model).__name__}")


def _bound(function: Callable[..., Any], **fixed: Any) -> Callable[..., Any]:
    return lambda activation, hook: function(activation, hook, **fixed)


def is_inner(site: Site) -> bool:
    """Tell whether a site lies inside attention or the MLP, where only the bridge sees it."""
    return site.kind not in BLOCK_KINDS


@torch.no_grad()
def is_written(bridge: Any, site: Site) -> bool:
    """Tell, on two tokens, whether an edit at a site reaches the logits; some families ignore it in silence."""
    tokens = torch.zeros(1, 2, dtype=torch.long, device=next(bridge.parameters()).device)
    clean = bridge(tokens)
    edited = bridge.run_with_hooks(tokens, fwd_hooks=[(str(site), lambda activation, hook: activation * 0.5 + 0.1)])  # noqa: ARG005
    return not torch.equal(clean, edited)
