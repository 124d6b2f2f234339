"""Many walks along the layers: those that wait for the same block share its run.

A walk asks for one block at a time, so it can do anything with what blocks return.
"""

from collections.abc import Callable, Generator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.replay import Recording

Stream = Float[Tensor, "*rows pos d_model"]
Walk = Generator[
    tuple[int, Stream], Stream, Stream
]  # asks for a block on a stream, gets its output
Run = Callable[[int, Sequence[int], Sequence[Stream]], Sequence[Stream]]


def along(layers: Sequence[int], stream: Stream) -> Walk:
    """Walk through `layers`, in their order."""
    for layer in layers:
        stream = yield layer, stream
    return stream


def on_batch(recording: Recording) -> Run:
    """Return what runs the blocks of walks whose streams [batch pos d_model] are of the batch."""
    return lambda layer, _walks, streams: list(recording.run(layer, torch.stack([*streams])))


def ends_together(walks: Sequence[Walk], run: Run) -> list[Stream]:
    """Return the streams at the ends of all walks.

    The lowest block that any walk waits for runs for all that wait for it: `run` gets its layer,
    the numbers of these walks and their streams, and returns the block's outputs.
    """
    waiting: dict[int, tuple[int, Stream]] = {}
    ends: dict[int, Stream] = {}

    def go_on(i: int, output: Stream | None) -> None:
        try:
            waiting[i] = next(walks[i]) if output is None else walks[i].send(output)
        except StopIteration as stop:
            waiting.pop(i, None)
            ends[i] = stop.value

    for i in range(len(walks)):
        go_on(i, None)
    while waiting:
        lowest = min(layer for layer, _ in waiting.values())
        here = [i for i, (layer, _) in waiting.items() if layer == lowest]
        outputs = run(lowest, here, [waiting[i][1] for i in here])
        for i, output in zip(here, outputs, strict=True):
            go_on(i, output)
    return [ends[i] for i in range(len(walks))]
