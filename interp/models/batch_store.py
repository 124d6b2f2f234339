"""The store's activations of one batch of prompts, as a recording reads and writes them."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import transformers
from torch import Tensor

from interp.sites import Site
from interp.store import ActivationStore, stored_name
from interp.store.activations import NoRoomError

if TYPE_CHECKING:
    from interp.models.model import Model

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchStore:
    """Reads and writes clean activations of `tokens` [batch pos] with these keys, as `dtype`.

    `check` raises where the model would now compute others; it is called before any is read.
    """

    store: ActivationStore
    keys: Sequence[str]
    tokens: Tensor
    dtype: torch.dtype
    check: Callable[[], None]

    def read(self, site: Site) -> Tensor | None:
        """Return a clean activation [batch pos d_model] if it is stored for all prompts."""
        rows = self.store.read(self.keys, stored_name(site))
        if rows is None:
            return None
        self.check()
        return torch.stack(rows).to(self.tokens.device, self.dtype)

    def keep(self, clean: Mapping[Site, Tensor]) -> None:
        """Write a whole clean pass, if the quota has room; repeated prompts are written once."""
        rows = list({key: row for row, key in enumerate(self.keys)}.values())
        n_pos = self.tokens.shape[1]
        tensors = {stored_name(site): tensor[rows].flatten(0, 1) for site, tensor in clean.items()}
        tensors["tokens"] = self.tokens[rows].flatten().to(torch.int32)
        try:
            self.store.write({self.keys[row]: n_pos for row in rows}, tensors)
        except NoRoomError as error:
            _log.warning("a clean pass is not kept: %s", error)


def context_of(model: "Model") -> list[str]:
    """Return all that a prompt's activations depend on besides its tokens, as it is now."""
    minor = [
        ".".join(version.split(".")[:2])
        for version in (torch.__version__, transformers.__version__)
    ]
    kernel = str(getattr(model.module.config, "_attn_implementation", None))
    precision = torch.get_float32_matmul_precision()
    return [model.fingerprint, str(model.dtype), kernel, model.device.type, precision, *minor]
