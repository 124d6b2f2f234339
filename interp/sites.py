"""The places in a model that can be read or written, under TransformerLens's names."""

from dataclasses import dataclass
from functools import total_ordering
from typing import Literal, get_args

from interp.errors import SiteError, unknown

SiteKind = Literal[
    "resid_pre",
    "q",
    "k",
    "v",
    "attn_scores",
    "pattern",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_pre",
    "router",
    "mlp_post",
    "mlp_out",
    "resid_post",
]
KINDS: tuple[SiteKind, ...] = get_args(SiteKind)
BLOCK_KINDS: tuple[SiteKind, ...] = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
INNER_KINDS: tuple[SiteKind, ...] = tuple(kind for kind in KINDS if kind not in BLOCK_KINDS)
_HOOKS = {
    "mlp_pre": "mlp.hook_pre",
    "mlp_post": "mlp.hook_post",
    "router": "mlp.hook_router_scores",
} | {kind: f"attn.hook_{kind}" for kind in ("q", "k", "v", "attn_scores", "pattern", "z")}


@total_ordering
@dataclass(frozen=True)
class Site:
    """One place in one layer; prints as TransformerLens's hook name, sorts by the forward pass."""

    kind: SiteKind
    layer: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SiteError(unknown("site", self.kind, KINDS))

    def __str__(self) -> str:
        return f"blocks.{self.layer}.{_HOOKS.get(self.kind, f'hook_{self.kind}')}"

    def __lt__(self, other: "Site") -> bool:
        return (self.layer, KINDS.index(self.kind)) < (other.layer, KINDS.index(other.kind))
