"""Every place in a model: its shape, whether it can be read and written, and if not, why."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.models.model import Model
from interp.replay import Block
from interp.sites import BLOCK_KINDS, INNER_KINDS, KINDS, OF_ATTENTION, Site, SiteKind

_AXES: dict[SiteKind, tuple[str, ...]] = {
    "q": ("prompt", "pos", "head", "d_head"),
    "k": ("prompt", "pos", "kv_head", "d_head"),
    "v": ("prompt", "pos", "kv_head", "d_head"),
    "attn_scores": ("prompt", "head", "pos", "key"),
    "pattern": ("prompt", "head", "pos", "key"),
    "z": ("prompt", "pos", "head", "d_head"),
    "mlp_pre": ("prompt", "pos", "d_mlp"),
    "mlp_post": ("prompt", "pos", "d_mlp"),
    "router": ("prompt", "pos", "expert"),
}
_OF_A_PASS = ("prompt", "pos", "key")  # axes whose sizes are the input's


@dataclass(frozen=True)
class SiteFacts:
    """A place, under TransformerLens's name.

    `shape` maps axes to their sizes, None where the input decides; it is empty where nothing can be
    read. `module` is the path of the stock module that the place is in, if it is in one.
    """

    name: str
    kind: SiteKind
    layer: int
    shape: Mapping[str, int | None]
    is_read: bool
    is_written: bool
    why_not: str
    module: str


def places(model: Model) -> list[SiteFacts]:
    """Return every place of every layer, after two passes of two tokens: blocks, and inside."""
    sites = [Site(kind, layer) for layer in range(model.n_layers) for kind in KINDS]
    with model.running, torch.no_grad():
        unread = {site: _why_not(model, site) for site in sites}
        unwritten = {site: unread[site] or _why_not(model, site, is_edited=True) for site in sites}
        seen: dict[Site, Tensor] = {}
        for kinds in (BLOCK_KINDS, INNER_KINDS):
            read = [site for site in sites if site.kind in kinds and not unread[site]]
            seen |= model.forward(model.modules.two_ids(), capture=read).activations
    paths = {id(module): path for path, module in model.module.named_modules()}
    return [
        SiteFacts(
            str(site),
            site.kind,
            site.layer,
            {} if unread[site] else _shape(site.kind, seen[site]),
            not unread[site],
            not unwritten[site],
            unwritten[site],
            _path(model.blocks[site.layer], site.kind, paths),
        )
        for site in sites
    ]


def _why_not(model: Model, site: Site, *, is_edited: bool = False) -> str:
    try:
        model.refuse(site, is_edited=is_edited)
    except InterpError as error:
        return str(error).partition(": ")[2] or str(error)
    return ""


def _shape(kind: SiteKind, seen: Tensor) -> dict[str, int | None]:
    axes = _AXES.get(kind, ("prompt", "pos", "d_model"))
    sizes = zip(axes, seen.shape, strict=True)
    return {axis: None if axis in _OF_A_PASS else size for axis, size in sizes}


def _path(block: Block, kind: SiteKind, paths: Mapping[int, str]) -> str:
    part = {
        "resid_pre": block.module,
        "resid_post": block.module,
        "attn_out": block.attn_write,
        "mlp_out": block.mlp_write,
        "router": block.experts,
    }.get(kind)
    if kind in OF_ATTENTION:
        part = block.attn
    elif kind in ("mlp_pre", "mlp_post"):
        part = block.mlp_write
    return paths.get(id(part), "")
