"""What the store holds of one batch of prompts, seen as the clean activations of a recording."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interp.sites import Site
from interp.store import ActivationStore, StoredKind

Layers = list[Tensor]  # one [site pos d_model] tensor per prompt


@dataclass
class Shelf:
    """Reads and writes the clean activations of the prompts with these keys."""

    store: ActivationStore
    keys: Sequence[str]
    device: torch.device
    _held: dict[StoredKind, Layers | None] = field(default_factory=dict)

    def read(self, site: Site) -> Tensor | None:
        """Return a clean activation [batch pos d_model] if all prompts have it stored."""
        kind, index = place_of(site)
        if kind not in self._held:
            found = [self.store.read(key, kind) for key in self.keys]
            self._held[kind] = None if any(tensor is None for tensor in found) else [t for t in found if t is not None]
        held = self._held[kind]
        return None if held is None else torch.stack([tensor[index] for tensor in held]).to(self.device)

    def keep(self, clean: Mapping[Site, Tensor]) -> None:
        """Write a whole clean pass."""
        stacks: dict[StoredKind, dict[int, Tensor]] = {}
        for site, tensor in clean.items():
            kind, index = place_of(site)
            stacks.setdefault(kind, {})[index] = tensor
        self.store.write(
            {
                f"{key}/{kind}": torch.stack([layers[i][row] for i in sorted(layers)])
                for kind, layers in stacks.items()
                for row, key in enumerate(self.keys)
            }
        )


def place_of(site: Site) -> tuple[StoredKind, int]:
    """Return under which name and index a block site is stored: residuals in front of every layer, then the last one."""
    match site.kind:
        case "resid_pre":
            return "resid", site.layer
        case "resid_post":
            return "resid", site.layer + 1
        case "attn_out":
            return "attn_out", site.layer
        case "mlp_out":
            return "mlp_out", site.layer
    raise ValueError(f"{site} is not stored; resid_pre, attn_out, mlp_out and resid_post are")
