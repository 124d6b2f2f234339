"""One block of another model in this one, beside a skip, unrelated blocks and permuted changes."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from interp.analyses.checkpoint_stitch.changes import between, permuted
from interp.models import Model
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sweeps.entering import Entry

SHARES = (0.25, 0.5, 0.75, 1.25, 1.5)  # of the way from A to B, besides the ends
KINDS = SWAP, SKIP, UNRELATED, PERMUTED = ("swap", "skip", "unrelated", "permuted")


def entries_of_blocks(
    recording: Recording, others: Mapping[str, Recording], layers: Sequence[int]
) -> dict[str, list[Entry]]:
    """Return, by kind, the streams after each layer where another model's block ran in its place.

    `others` are recordings by kind; "skip" has no block. The other model's block reads this model's
    stream with its own arguments.
    """
    entries = {
        kind: [(layer + 1, other.block(layer, recording.resid(layer))) for layer in layers]
        for kind, other in others.items()
    }
    return entries | {SKIP: [(layer + 1, recording.resid(layer)) for layer in layers]}


def entries_of_permuted(
    recording: Recording, models: tuple[Model, Model], layers: Sequence[int], *, seed: int
) -> list[Entry]:
    """Return the streams after each layer where its change was permuted."""
    return [
        (layer + 1, _with(recording, layer, permuted(*models, layer, seed=seed)))
        for layer in layers
    ]


def entries_between(recording: Recording, models: tuple[Model, Model], layer: int) -> list[Entry]:
    """Return the streams after a layer whose weights are `SHARES` of the way to the other's."""
    return [
        (layer + 1, _with(recording, layer, between(*models, layer, share=share)))
        for share in SHARES
    ]


def _with(recording: Recording, layer: int, weights: Tensors) -> Tensor:
    """Return what a block with other weights makes of the clean stream [batch pos d_model]."""
    stream = recording.resid(layer)
    with recording.with_weights(weights) as inner:
        return inner.block(layer, stream)
