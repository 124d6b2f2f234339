"""Streams that enter a model before any of its layers, and what it makes of them.

A stream may come from another model of the same width: only the blocks after its entry run, with
this model's own arguments. Streams that are exactly the clean one there end as the clean pass does,
and nothing runs for them.
"""

from collections.abc import Sequence

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from interp.replay import Recording
from interp.shapes import Resid
from interp.sweeps.walks import along, ends_together, on_batch

Entry = tuple[int, Resid]  # the layer that a stream is before, and the stream


def ends_of_entering(
    recording: Recording, entries: Sequence[Entry]
) -> Float[Tensor, "entry batch d_model"]:
    """Return the last residual at the last position of every stream that enters.

    An entry is a layer (the number of layers: after the last) and what stands before it
    [batch pos d_model]. As many entries as a block runs at once are in memory together.
    """
    n_layers = recording.n_layers
    clean_end = recording.resid(n_layers)[:, -1]
    ends: Tensor = repeat(
        clean_end, "batch d_model -> entry batch d_model", entry=len(entries)
    ).clone()
    others = [
        i for i, (layer, stream) in enumerate(entries) if not _is_clean(recording, layer, stream)
    ]
    size, order = recording.variants_at_once(), sorted(others, key=lambda i: entries[i][0])
    for begin in range(0, len(order), size):
        some = order[begin : begin + size]
        walks = [along(range(entries[i][0], n_layers), entries[i][1].to(ends.dtype)) for i in some]
        for i, stream in zip(some, ends_together(walks, on_batch(recording)), strict=True):
            ends[i] = stream[:, -1]
    return ends


def _is_clean(recording: Recording, layer: int, stream: Resid) -> bool:
    return torch.equal(stream, recording.resid(layer))


def n_blocks(n_layers: int, layers: Sequence[int]) -> int:
    """Return how many blocks run for streams that enter before these layers, at most."""
    return sum(n_layers - layer for layer in layers)
