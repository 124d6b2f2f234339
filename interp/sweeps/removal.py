"""The model without sets of layers: each set's stream begins where it leaves the others' stream."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from interp.replay import Recording
from interp.shapes import Resid

Removed = frozenset[int]
_AT_ONCE = 64  # sets whose streams are held together


def ends_without(
    recording: Recording, sets: Sequence[Removed], prompts: Int[Tensor, " batch"]
) -> Iterator[tuple[Removed, Resid]]:
    """Yield each set of layers with the last residuals [batch pos d_model] without these layers.

    `prompts` are the numbers of the recording's prompts that are run. Sets that leave out the same
    layers so far share a stream; up to a set's first layer that is the clean one.
    """
    ordered = sorted(dict.fromkeys(sets), key=sorted)
    for start in range(0, len(ordered), _AT_ONCE):
        yield from _ends(recording, ordered[start : start + _AT_ONCE], prompts)


def _ends(
    recording: Recording, sets: Sequence[Removed], prompts: Int[Tensor, " batch"]
) -> Iterator[tuple[Removed, Resid]]:
    streams: dict[Removed, Tensor] = {}  # by the layers left out so far, if any
    for layer in range(recording.n_layers):
        clean = recording.resid(layer)[prompts]
        so_far = dict.fromkeys(frozenset(x for x in each if x <= layer) for each in sets)
        bypassing = {each: streams.get(each - {layer}, clean) for each in so_far if layer in each}
        running = [each for each in so_far if each and layer not in each]
        if running:
            rows = torch.cat([streams[each] for each in running])
            behind = recording.rows(layer, rows, prompts.repeat(len(running)))
            bypassing |= dict(zip(running, behind.chunk(len(running)), strict=True))
        streams = bypassing
    last = recording.resid(recording.n_layers)[prompts]
    for each in sets:
        yield each, streams.get(each, last)
