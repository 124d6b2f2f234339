"""All edges of a model, from senders (embedding, heads, MLPs) to what receivers read.

Receivers are q, k and v of a head, an MLP and the logits.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interp.models import Model

LOGITS = "logits"
_KINDS = {"a": "heads", "m": "mlp"}


@dataclass(frozen=True)
class Wiring:
    """All edges of a model; a layer's receivers are q, k, v per head and its MLP."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    is_parallel: bool

    @classmethod
    def of(cls, model: Model) -> "Wiring":
        """Return all edges of a model."""
        return cls(model.n_layers, model.n_heads, model.n_kv_heads, model.is_parallel)

    @classmethod
    def from_numbers(cls, numbers: Tensor) -> "Wiring":
        """Return the wiring that `numbers` was called on."""
        n_layers, n_heads, n_kv_heads, is_parallel = map(int, numbers.tolist())
        return cls(n_layers, n_heads, n_kv_heads, bool(is_parallel))

    @property
    def numbers(self) -> Tensor:
        """Return the fields as a tensor."""
        return torch.tensor([self.n_layers, self.n_heads, self.n_kv_heads, int(self.is_parallel)])

    @property
    def senders(self) -> list[str]:
        """Return the senders in forward order: "embed", then per layer "a0.h1" and "m0"."""
        names = ["embed"]
        for layer in range(self.n_layers):
            names += [*(f"a{layer}.h{head}" for head in range(self.n_heads)), f"m{layer}"]
        return names

    @property
    def receivers(self) -> list[str]:
        """Return the receivers in forward order: per layer "q0.h1", ... and "m0"; then "logits"."""
        names = []
        for layer in range(self.n_layers):
            names += [
                f"{kind}{layer}.h{head}" for kind in "qkv" for head in range(self.n_read(kind))
            ]
            names.append(f"m{layer}")
        return [*names, LOGITS]

    def n_read(self, kind: str) -> int:
        """Return how many heads read "q", "k" or "v"."""
        return self.n_heads if kind == "q" else self.n_kv_heads

    def place(self, name: str) -> tuple[str, int, int]:
        """Return a sender's or receiver's kind, layer and head: "q2.h1" is ("q", 2, 1).

        Kinds are "embed", "heads", "mlp", "q", "k", "v" and "logits", which are after all layers.
        """
        if name in ("embed", LOGITS):
            return name, self.n_layers if name == LOGITS else 0, 0
        layer, _, head = name[1:].partition(".h")
        return _KINDS.get(name[0], name[0]), int(layer), int(head or 0)

    @property
    def is_edge(self) -> NDArray[np.bool_]:
        """Return which sender stands before which receiver [receiver sender]."""
        n_before = np.array([self.n_before(receiver) for receiver in self.receivers])
        return np.arange(len(self.senders)) < n_before[:, None]

    def n_before(self, receiver: str) -> int:
        """Return how many senders stand before a receiver."""
        kind, layer, _ = self.place(receiver)
        if kind == LOGITS:
            return len(self.senders)
        own = self.n_heads if kind == "mlp" and not self.is_parallel else 0
        return 1 + layer * (self.n_heads + 1) + own

    def node_of(self, receiver: str) -> list[str]:
        """Return the senders that a receiver feeds: for a key or value head, all of its group."""
        kind, layer, head = self.place(receiver)
        if kind in (LOGITS, "mlp"):
            return [receiver]
        group = self.n_heads // self.n_read(kind)
        return [f"a{layer}.h{head * group + i}" for i in range(group)]
