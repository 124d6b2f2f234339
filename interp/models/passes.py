"""Whole passes of a model, on the stock modules or through the bridge, and what they refuse."""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from interp.activations import Activations, ForwardPass
from interp.backward import Rules
from interp.errors import SiteError
from interp.interventions import Intervention, Plan, among, at_layer
from interp.models.bridge.inner import unreadable, unwritable
from interp.models.bridge.rules import rule_hooks
from interp.models.edits import Edits, Leaf
from interp.models.forward import NO_RULES, bridge_forward, is_inner, stock_hooks, unembedded_at
from interp.models.generate import Generator, Phase
from interp.models.gradients import graph, ordinary
from interp.models.quantised import refuse_quantised
from interp.models.running import has_forward_hooks
from interp.sites import OF_ATTENTION, Asked, Site, sites_of
from interp.tasks.batch import TokenBatch

if TYPE_CHECKING:
    from interp.models.model import Model

Planned = dict[Site, list[Intervention]]


def asked_of(model: "Model", plan: Plan, capture: Asked) -> tuple[Planned, set[Site]]:
    """Return a plan by site, and the sites to capture; raise SiteError for impossible ones."""
    planned = at_layer(plan, n_layers=model.n_layers)
    wanted = {*sites_of(capture, n_layers=model.n_layers)}
    for site in sorted({*planned, *wanted}, key=str):
        refuse_site(model, site, is_edited=site in planned)
    return planned, wanted


def forward(
    model: "Model",
    batch: TokenBatch,
    *,
    capture: Asked,
    plan: Plan,
    backward: Rules | None,
    positions: slice | None,
) -> ForwardPass:
    """Return what `Model.forward` returns."""
    if backward is not None:
        refuse_quantised(model.module, "gradients")
    planned, wanted = asked_of(model, plan, capture)
    own = batch.mask if batch.is_padded else None
    edits: Edits = {
        site: [among(each, own) for each in interventions]
        for site, interventions in planned.items()
    }
    if backward is not None:
        start = Site("resid_pre", 0)
        edits[start] = [*edits.get(start, []), Leaf()]
    rules = rule_hooks(model.bridge, backward) if backward is not None and backward.rules else None
    captured: dict[Site, Tensor] = {}
    with graph(backward is not None):
        mask = ordinary(batch.mask) if batch.is_padded else None
        if rules is not None or any(map(is_inner, [*edits, *wanted])):
            rules = rules or NO_RULES
            model.refuse_hooks(batch.tokens, mask)
            with unembedded_at(model.bridge.unembed, positions):
                logits = bridge_forward(
                    model.bridge, batch.tokens, mask, edits, wanted, into=captured, rules=rules
                )
        else:
            with (
                unembedded_at(model.modules.w_u, positions),
                stock_hooks(model.blocks, edits, wanted, into=captured),
            ):
                logits = model.module(
                    input_ids=batch.tokens, attention_mask=mask, use_cache=False
                ).logits
        return ForwardPass(logits.float(), Activations(captured))


def generator(
    model: "Model",
    batch: TokenBatch,
    planned: Planned,
    wanted: set[Site],
    phase: Phase,
) -> Generator:
    """Return the runner of one generation's passes: through the bridge for inner sites."""
    bridge = model.bridge if any(map(is_inner, [*planned, *wanted])) else None
    module = model.module if bridge is None else bridge.original_model
    passes = Generator(module, model.blocks, bridge, batch, planned, wanted, phase)
    if bridge is not None:
        model.refuse_hooks(batch.tokens, batch.mask)
    return passes


def refuse_site(model: "Model", site: Site, *, is_edited: bool) -> None:
    """Raise SiteError for a site that a model does not have, or cannot be read (or written)."""
    if not isinstance(site, Site):
        raise SiteError(f"{site!r} given; a place such as Site('resid_pre', 0) is needed")
    if not 0 <= site.layer < model.n_layers:
        raise SiteError(f"{site} asked for; the model's last layer is {model.n_layers - 1}")
    _refuse_without_part(model, site)
    if site.kind == "resid_mid" and model.blocks[site.layer].is_parallel:
        raise SiteError(
            f"{site} does not exist: attention and MLP of this family read the same residual"
        )
    if site.kind == "router" and model.blocks[site.layer].experts is None:
        raise SiteError(f"{site} does not exist: the MLP of this layer has no experts")
    if not is_inner(site):
        return
    if why := unreadable(model.bridge, site):
        raise SiteError(f"{site} cannot be read: {why}")
    if is_edited and (why := unwritable(model.bridge, site)):
        raise SiteError(f"{site} cannot be written: {why}")


def _refuse_without_part(model: "Model", site: Site) -> None:
    """Raise SiteError for a part that a layer without attention, or without named parts, lacks."""
    block = model.blocks[site.layer]
    block.require_parts(site)
    if site.kind in OF_ATTENTION and not block.has_kv:
        raise SiteError(f"{site} does not exist: the mixer of this layer is {block.mixer}")


def refuse_hooks(
    module: nn.Module, tokens: Tensor, mask: Tensor | None, *, of_blocks: bool
) -> None:
    """Raise ModelError where the owner's hooks change a pass; see `Model.refuse_hooks`."""
    modules = [*module.modules()]
    inside = has_forward_hooks(modules[1:]) or bool(module._forward_pre_hooks)
    if inside if of_blocks else has_forward_hooks(modules):
        module(input_ids=tokens, attention_mask=mask, use_cache=False)
