"""One forward pass with captures and interventions.

Block sites are hooked on the stock modules, inner sites on TransformerLens's bridge.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import SiteError
from interp.models.bridge.building import is_other_part
from interp.models.bridge.routing import find_experts, hook_experts
from interp.models.edits import Edits, kept
from interp.replay import Block, first, with_first
from interp.sites import BLOCK_KINDS, Site

Hook = tuple[str, Callable[..., Any]]  # a hook point of the bridge, and what is called there


@dataclass
class RuleHooks:
    """Hooks that carry out rules: observers run after a pass's edits, the others before them."""

    changing: list[Hook] = field(default_factory=list)
    watching: list[Hook] = field(default_factory=list)


NO_RULES = RuleHooks()


# takes the activation at a site; returns what goes on from there
SiteHook = Callable[[Tensor], Tensor]


@contextmanager
def stock_hooks(
    blocks: Sequence[Block], edits: Edits, capture: set[Site], *, into: dict[Site, Tensor]
) -> Iterator[None]:
    """Edit and capture block sites of the stock modules inside the `with` block."""
    by_layer: dict[int, dict[str, SiteHook]] = {}
    resid: dict[str, Tensor] = {}  # one for all layers, so that no more than one is held
    for site in {*edits, *capture}:
        by_layer.setdefault(site.layer, {})[site.kind] = _site_hook(
            site, edits, capture, into, resid
        )
    edited: dict[int, set[str]] = {}
    for site in edits:
        edited.setdefault(site.layer, set()).add(site.kind)
    with ExitStack() as stack:
        for layer, at in by_layer.items():
            hooks = _LayerHooks(blocks[layer], at, resid, edited.get(layer, set()))
            for handle in hooks.register():
                stack.callback(handle.remove)
        yield


def _site_hook(
    site: Site, edits: Edits, capture: set[Site], into: dict[Site, Tensor], resid: dict[str, Tensor]
) -> SiteHook:
    """Return what happens to the activation at a site: it is edited, then captured."""
    interventions, is_kept = edits.get(site, ()), site in capture

    def at(activation: Tensor) -> Tensor:
        for intervention in interventions:
            activation = intervention.edit(activation, resid.get("pre"))
        if is_kept:
            into[site] = kept(activation)
        return activation

    return at


@dataclass(frozen=True)
class _LayerHooks:
    """The hooks of one block: its input, what its sublayers write, its output.

    `resid` holds what the block reads; `edited` are the kinds of sites that a plan changes.
    """

    block: Block
    at: dict[str, SiteHook]
    resid: dict[str, Tensor]
    edited: set[str]

    def register(self) -> Iterator[Any]:
        """Yield handles of the hooks that are needed."""
        block, at = self.block, self.at
        if self.edited or set(at) != {"resid_post"}:
            yield block.module.register_forward_pre_hook(self.on_input, with_kwargs=True)
        if "router" in at and block.experts is not None:
            yield hook_experts(block.experts, at["router"], rows=lambda: len(self.resid["pre"]))
        if "attn_out" in at or "resid_mid" in at:
            yield block.attn_write.register_forward_hook(self.on_attn)
        if "mlp_out" in at:
            yield block.mlp_write.register_forward_hook(self.on_mlp)
        if "resid_post" in at:
            yield block.module.register_forward_hook(self.on_output)

    def on_input(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Read and edit what the block reads."""
        name, resid = self.block.call.parameters[0], self.resid
        read = kwargs[name] if name in kwargs else args[0]
        resid["pre"] = self.at["resid_pre"](read) if "resid_pre" in self.at else read
        if resid["pre"] is read:
            return None
        if name in kwargs:
            return (), kwargs | {name: resid["pre"]}
        return (resid["pre"], *args[1:]), kwargs

    def on_attn(self, _module: Any, _args: Any, output: Any) -> Any:
        """Read and edit what attention writes, and the stream after it."""
        at, pre = self.at, self.resid["pre"]
        added = self.block.added(output, pre)
        write = at["attn_out"](added) if "attn_out" in at else added
        if "resid_mid" in at:
            stream = at["resid_mid"](pre + write)
            if "resid_mid" in self.edited:
                write = stream - pre
            elif torch.is_grad_enabled():
                write = _through(stream, pre, write)
        return self._instead(write, added, output)

    def on_mlp(self, _module: Any, _args: Any, output: Any) -> Any:
        """Read and edit what the MLP writes."""
        added = self.block.added(output, self.resid["pre"])
        return self._instead(self.at["mlp_out"](added), added, output)

    def on_output(self, _module: Any, _args: Any, output: Any) -> Any:
        """Read and edit what the block returns."""
        there = first(output)
        after = self.at["resid_post"](there)
        return None if after is there else with_first(output, after)

    def _instead(self, write: Tensor, added: Tensor, output: Any) -> Any:
        if write is added and not torch.is_grad_enabled():
            return None
        return self.block.adding(write, output)


def _through(stream: Tensor, resid_pre: Tensor, write: Tensor) -> Tensor:
    """Return exactly what was written, with a graph that leads through the stream after it."""
    added = stream - resid_pre
    return write.detach() + (added - added.detach())


@contextmanager
def unembedded_at(unembedding: nn.Module, positions: slice | None) -> Iterator[None]:
    """Let passes make logits at some positions only (None: at all) inside the `with` block."""
    if positions is None:
        yield
        return
    handle = unembedding.register_forward_pre_hook(
        lambda _module, args: (args[0][:, positions], *args[1:])
    )
    try:
        yield
    finally:
        handle.remove()


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
    """Return the bridge's logits of a pass with edits and captures at any site, under `rules`."""
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
    places = _BridgePlaces(edits, capture, into)
    hooks: list[Hook] = [*rules.changing]
    with ExitStack() as stack:
        for site in sorted({*edits, *capture}):
            remember = partial(places.remember, layer=site.layer)
            hooks.append((str(Site("resid_pre", site.layer)), remember))
            if site.kind == "resid_mid":  # edits of hook_resid_mid reach the MLP only
                hooks.append((_mixed_at(bridge, site.layer), partial(places.at_mid, site=site)))
            elif site.kind == "attn_out":
                hooks.append((_mixed_at(bridge, site.layer), partial(places.at, site=site)))
            elif site.kind == "router":
                stack.callback(places.hook_router(bridge, site).remove)
            else:
                hooks.append((str(site), partial(places.at, site=site)))
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


def _mixed_at(bridge: Any, layer: int) -> str:
    """Return the hook point of what a layer's mixer writes, be it attention or another."""
    names = [name for name, _ in bridge.blocks[layer].named_children()]
    others = [name for name in (bridge.blocks[layer].submodules or {}) if is_other_part(name)]
    own = [name for name in others if name in names]
    if "attn" in names or len(own) != 1:
        return str(Site("attn_out", layer))
    return f"blocks.{layer}.{own[0]}.hook_out"


@dataclass(frozen=True)
class _BridgePlaces:
    """What happens at the hook points of a bridge: activations are edited, and kept in `into`."""

    edits: Edits
    capture: set[Site]
    into: dict[Site, Tensor]
    resid: dict[int, Tensor] = field(default_factory=dict)

    def remember(self, activation: Tensor, hook: Any, *, layer: int) -> None:
        """Keep the residual that a layer reads."""
        self.resid[layer] = activation

    def at(self, activation: Tensor, hook: Any, *, site: Site) -> Tensor:
        """Return the activation that goes on from a site."""
        for intervention in self.edits.get(site, ()):
            activation = intervention.edit(activation, self.resid.get(site.layer))
        if site in self.capture:
            self.into[site] = kept(activation)
        return activation

    def at_mid(self, write: Tensor, hook: Any, *, site: Site) -> Tensor:
        """Return what attention must write so that the stream after it is as edited."""
        pre = self.resid[site.layer]
        stream = self.at(pre + write, hook, site=site)
        if site in self.edits:
            return stream - pre
        return _through(stream, pre, write) if torch.is_grad_enabled() else write

    def hook_router(self, bridge: Any, site: Site) -> Any:
        """Return the handle of a hook on a router's choice."""
        experts = find_experts(bridge.blocks[site.layer].mlp)
        if experts is None:
            raise SiteError(f"{site} does not exist: its MLP has no experts")
        at = partial(self.at, hook=None, site=site)
        return hook_experts(experts, at, rows=lambda: len(self.resid[site.layer]))


def is_inner(site: Site) -> bool:
    """Tell whether a site lies inside attention or the MLP, where only the bridge sees it."""
    return site.kind not in (*BLOCK_KINDS, "router")
