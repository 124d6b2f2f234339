"""The stream with some layers quantised: each layer's weights are put in once for all variants."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.metrics import changes, distribution, outcomes
from interp.models.quantizer import Rounding
from interp.replay import Recording
from interp.replay.rows import Variants
from interp.shapes import Tensors
from interp.sweeps.outputs import read_at_the_end
from interp.sweeps.patches import logits_at_the_end

Lowered = frozenset[int]  # which layers are quantised


class Streams:
    """Streams of one recording, one per set of quantised layers.

    Sets that agree so far share a stream, and nothing is run before the first such layer.
    """

    def __init__(self, recording: Recording, sets: Sequence[Lowered]) -> None:
        self.recording, self.sets = recording, sets
        self._now: dict[Lowered, Tensor] = {}

    def step(self, layer: int, rounded: Tensors) -> None:
        """Run a layer of all sets, `rounded` where they have it quantised."""
        clean = self.recording.resid(layer)
        keys = dict.fromkeys(so_far(each, layer) for each in self.sets)
        lowered = [key for key in keys if layer in key]
        others = [key for key in keys if key and layer not in key]
        after: dict[Lowered, Tensor] = {}
        if others:
            streams = self.recording.run(layer, torch.stack([self._now[key] for key in others]))
            after |= zip(others, streams, strict=True)
        if lowered:
            before = torch.stack([self._now.get(key - {layer}, clean) for key in lowered])
            with self.recording.with_weights(rounded) as other:
                after |= zip(lowered, other.run(layer, before), strict=True)
        self._now = after

    def ends(self) -> Float[Tensor, "variant batch d_model"]:
        """Return the last residuals of all sets at the last position."""
        clean = self.recording.resid(self.recording.n_layers)
        return torch.stack([self._now.get(each, clean)[:, -1] for each in self.sets])


def so_far(lowered: Lowered, layer: int) -> Lowered:
    """Return which layers up to this one are quantised."""
    return frozenset(each for each in lowered if each <= layer)


def ends_of(streams: Sequence[Streams], rounding: Rounding) -> list[Variants]:
    """Return the last residuals [variant batch 1 d_model] of all sets of several recordings."""
    for layer, block in enumerate(streams[0].recording.blocks if streams else ()):
        rounded = rounding.block(block)
        for each in streams:
            each.step(layer, rounded)
    return [each.ends()[:, :, None] for each in streams]


def block_runs(sets: Sequence[Lowered | None], n_layers: int) -> int:
    """Return how many blocks are run for sets; None is one not known, which runs all of them."""
    known = [each for each in sets if each is not None]
    unknown = len(sets) - len(known)
    return unknown * n_layers + sum(
        len({so_far(each, layer) for each in known} - {frozenset()}) for layer in range(n_layers)
    )


def outcomes_of(recording: Recording, ends: Tensor, answer: Tensor | None) -> Tensors:
    """Return outcomes [variant batch] of last residuals [variant batch d_model]."""
    last = recording.resid(recording.n_layers)[:, -1]
    clean = distribution(logits_at_the_end(recording, last[None])[0])

    def of_logits(logits: Tensor) -> Tensors:
        read: Tensors = {"kl": changes(logits, clean)["kl"]}
        if answer is not None:
            read |= {str(name): value for name, value in outcomes(logits, answer).items()}
        return read

    return read_at_the_end(recording, ends, of_logits)
