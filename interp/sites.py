"""The places in a model that can be read or written, under TransformerLens's names."""

from collections.abc import Iterable
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
OF_ATTENTION: tuple[SiteKind, ...] = ("q", "k", "v", "attn_scores", "pattern", "z")
_HOOKS = {
    "mlp_pre": "mlp.hook_pre",
    "mlp_post": "mlp.hook_post",
    "router": "mlp.hook_router_scores",
} | {kind: f"attn.hook_{kind}" for kind in OF_ATTENTION}
_KINDS_OF_HOOKS: dict[str, SiteKind] = {_HOOKS.get(kind, f"hook_{kind}"): kind for kind in KINDS}
_LISTED = ", ".join(KINDS)


@total_ordering
@dataclass(frozen=True)
class Site:
    """One place in one layer; prints as TransformerLens's hook name, sorts by the forward pass."""

    kind: SiteKind
    layer: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SiteError(unknown("site", self.kind, KINDS))

    @classmethod
    def named(cls, name: str) -> "Site":
        """Return the place that TransformerLens calls so: "blocks.3.attn.hook_pattern".

        Raises SiteError for a name that is none of a place in a block.
        """
        block, _, rest = name.removeprefix("blocks.").partition(".")
        kind = _KINDS_OF_HOOKS.get(rest)
        if not name.startswith("blocks.") or not block.isdecimal() or kind is None:
            known = f"{cls('resid_pre', 0)} to {cls('resid_post', 0)}"
            raise SiteError(f"{name!r} given; there are names like {known}, and kinds: {_LISTED}")
        return cls(kind, int(block))

    def __str__(self) -> str:
        return f"blocks.{self.layer}.{_HOOKS.get(self.kind, f'hook_{self.kind}')}"

    def __lt__(self, other: "Site") -> bool:
        return (self.layer, KINDS.index(self.kind)) < (other.layer, KINDS.index(other.kind))


Asked = str | Site | Iterable[str | Site]


def sites_of(asked: Asked, *, n_layers: int) -> list[Site]:
    """Return the places that are asked for: a Site, a name, or a kind, which is every layer's.

    Raises SiteError for a word that is neither a kind nor a name.
    """
    sites: list[Site] = []
    for each in [asked] if isinstance(asked, str | Site) else asked:
        if isinstance(each, Site):
            sites.append(each)
        elif each in KINDS:
            sites += [Site(each, layer) for layer in range(n_layers)]
        elif isinstance(each, str):
            sites.append(Site.named(each))
        else:
            raise SiteError(f"{each!r} given; a place such as Site('resid_pre', 0) is needed")
    return sites
