"""What one pass captured, in memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from interp.errors import SiteError
from interp.figures.words import counted, shape_named
from interp.sites import Site, SiteKind

_MOST_SHOWN = 3


class Activations(Mapping[Site, Tensor]):
    """Captured activations by site, in the order of the forward pass; each owns its memory.

    `activations["pattern", 3]` and `activations["blocks.3.attn.hook_pattern"]` are those at
    `Site("pattern", 3)`.
    """

    def __init__(self, captured: Mapping[Site, Tensor]) -> None:
        self._captured = {site: captured[site] for site in sorted(captured)}

    def __getitem__(self, key: Site | tuple[SiteKind, int] | str) -> Tensor:
        site = Site.named(key) if isinstance(key, str) else key
        site = Site(*site) if isinstance(site, tuple) else site
        if site not in self._captured:
            raise SiteError(
                f"{site} was not captured; there is"
                f" {', '.join(map(str, self._captured)) or 'nothing'}"
            )
        return self._captured[site]

    def __iter__(self) -> Iterator[Site]:
        return iter(self._captured)

    def __len__(self) -> int:
        return len(self._captured)

    def __repr__(self) -> str:
        return f"Activations({self.named()})"

    def named(self) -> str:
        """Return how many sites there are, and the first and the last with their shapes."""
        shown = [f"{site} {shape_named(self._captured[site].shape)}" for site in self._captured]
        few = shown if len(shown) <= _MOST_SHOWN else [shown[0], "…", shown[-1]]
        return ": ".join(filter(None, (counted(len(shown), "site"), ", ".join(few))))


@dataclass(frozen=True, repr=False)
class ForwardPass:
    """The fp32 logits [batch pos d_vocab] of one pass, and what was captured.

    Both carry a graph if backward rules were given.
    """

    logits: Tensor
    activations: Activations

    def __repr__(self) -> str:
        logits = f"logits {shape_named(self.logits.shape)}"
        return f"ForwardPass({logits}, {self.activations.named()})"
