"""One forward pass with captures and interventions: block sites on the stock modules, inner sites
through the bridge.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from interp.errors import SiteError
from interp.models.bridge.routing import find_experts, hook_experts
from interp.models.edits import Edits, kept
from interp.replay import Block, first, with_first
from interp.sites import BLOCK_KINDS, Site

Hook = tuple[str, Callable[..., Any]]  # a hook point of the bridge, and what is called there


@dataclass
class RuleHooks:
    """Hooks that carry out rules: what watches comes behind all edits of a pass, what changes comes
    before them.
    """

    changing: list[Hook] = field(default_factory=list)
    watching: list[Hook] = field(default_factory=list)


NO_RULES = RuleHooks()


Place = Callable[
    [Tensor], Tensor
]  # takes the activation at a site; returns what goes on from there


@contextmanager
def stock_hooks(
    blocks: Sequence[Block], edits: Edits, capture: set[Site], *, into: dict[Site, Tensor]
) -> Iterator[None]:
    """Edit and capture block sites of the stock modules inside the `with` block."""
    places: dict[int, dict[str, Place]] = {}
    resid: dict[str, Tensor] = {}  # one for all layers, so that no more than one is held
    for site in {*edits, *capture}:
        places.setdefault(site.layer, {})[site.kind] = _place(site, edits, capture, into, resid)
    edited: dict[int, set[str]] = {}
    for site in edits:
        edited.setdefault(site.layer, set()).add(site.kind)
    with ExitStack() as stack:
        for layer, at in places.items():
            for handle in _hook_layer(blocks[layer], at, resid, edited=edited.get(layer, set())):
                stack.callback(handle.remove)
        yield


def _place(
    site: Site, edits: Edits, capture: set[Site], into: dict[Site, Tensor], resid: dict[str, Tensor]
) -> Place:
    """Return what happens to the activation at a site: it is edited, and kept."""
    interventions, is_kept = edits.get(site, ()), site in capture

    def at(activation: Tensor) -> Tensor:
        for intervention in interventions:
            activation = intervention.edit(activation, resid.get("pre"))
        if is_kept:
            into[site] = kept(activation)
        return activation

    return at


def _hook_layer(
    block: Block, at: dict[str, Place], resid: dict[str, Tensor], *, edited: set[str]
) -> Iterator[Any]:
    """Yield the hooks of one block: its input, what its sublayers write, its output; `resid` holds
    what the block reads.
    """
    name = block.parameters[0]

    def on_input(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        read = kwargs[name] if name in kwargs else args[0]
        resid["pre"] = at["resid_pre"](read) if "resid_pre" in at else read
        if resid["pre"] is read:
            return None
        return (
            ((), kwargs | {name: resid["pre"]})
            if name in kwargs
            else ((resid["pre"], *args[1:]), kwargs)
        )

    def on_attn(_module: Any, _args: Any, output: Any) -> Any:
        added = block.added(output, resid["pre"])
        write = at["attn_out"](added) if "attn_out" in at else added
        if "resid_mid" in at:
            stream = at["resid_mid"](resid["pre"] + write)
            if "resid_mid" in edited:
                write = stream - resid["pre"]
            elif torch.is_grad_enabled():
                write = _through(stream, resid["pre"], write)
        return (
            block.adding(write, output) if write is not added or torch.is_grad_enabled() else None
        )

    def on_mlp(_module: Any, _args: Any, output: Any) -> Any:
        added = block.added(output, resid["pre"])
        write = at["mlp_out"](added)
        return (
            block.adding(write, output) if write is not added or torch.is_grad_enabled() else None
        )

    def on_output(_module: Any, _args: Any, output: Any) -> Any:
        there = first(output)
        after = at["resid_post"](there)
        return None if after is there else with_first(output, after)

    if edited or set(at) != {"resid_post"}:
        yield block.module.register_forward_pre_hook(on_input, with_kwargs=True)
    if "router" in at and block.experts is not None:
        yield hook_experts(block.experts, at["router"], rows=lambda: len(resid["pre"]))
    if "attn_out" in at or "resid_mid" in at:
        yield block.attn_write.register_forward_hook(on_attn)
    if "mlp_out" in at:
        yield block.mlp_write.register_forward_hook(on_mlp)
    if "resid_post" in at:
        yield block.module.register_forward_hook(on_output)


def _through(stream: Tensor, resid_pre: Tensor, write: Tensor) -> Tensor:
    """Return what was written, bit for bit, in a graph that leads through the stream behind it."""
    added = stream - resid_pre
    return write.detach() + (added - added.detach())


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
    """Run TransformerLens's bridge with edits and captures at any site, behind the hooks of
    `rules`; return logits.
    """
    extra = {} if mask is None else {"attention_mask": mask.long()}
    with bridge_hooks(bridge, edits, capture, into=into, rules=rules):
        logits: Tensor = bridge(tokens, **extra)
    return logits


@contextmanager
def bridge_hooks(
    bridge: Any,
    edits: Edits,
    capture: set[Site],
    *,
    into: dict[Site, Tensor],
    rules: RuleHooks = NO_RULES,
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
        if site in edits:
            return stream - resid[site.layer]
        return _through(stream, resid[site.layer], write) if torch.is_grad_enabled() else write

    hooks: list[Hook] = [*rules.changing]
    with ExitStack() as stack:
        for site in sorted({*edits, *capture}):
            hooks.append((str(Site("resid_pre", site.layer)), _bound(remember, layer=site.layer)))
            if site.kind == "resid_mid":  # edits of hook_resid_mid reach the MLP only
                hooks.append((str(Site("attn_out", site.layer)), _bound(at_mid, site=site)))
            elif site.kind == "router":
                experts = find_experts(bridge.blocks[site.layer].mlp)
                if experts is None:
                    raise SiteError(f"{site} does not exist: its MLP has no experts")
                rows = partial(_n_rows, resid, site.layer)
                stack.callback(
                    hook_experts(experts, partial(at, hook=None, site=site), rows=rows).remove
                )
            else:
                hooks.append((str(site), _bound(at, site=site)))
        try:
            with bridge.hooks(fwd_hooks=[*hooks, *rules.watching]):
                yield
        except KeyError as error:
            raise SiteError(
                f"{error.args[0]} (asked for: {', '.join(map(str, capture or edits))})"
            ) from None
    silent = [site for site in capture if site not in into]
    if silent:
        raise SiteError(f"{silent[0]} never fires in {type(bridge.original_model).__name__}")


def _n_rows(resid: dict[int, Tensor], layer: int) -> int:
    return len(resid[layer])


def _bound(function: Callable[..., Any], **fixed: Any) -> Callable[..., Any]:
    return lambda activation, hook: function(activation, hook, **fixed)


def is_inner(site: Site) -> bool:
    """Tell whether a site lies inside attention or the MLP, where only the bridge sees it."""
    return site.kind not in (*BLOCK_KINDS, "router")
