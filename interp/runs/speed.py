"""How long forward and backward passes take here: measured once, before a run is planned."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from interp.analysis import Cost
from interp.models import Model
from interp.models.gradients import graph, ordinary, slopes
from interp.replay import Recording
from interp.tasks.batch import TokenBatch

_MOST_LENGTHS = 4  # that are timed; between them times are interpolated
_PATIENCE = 8.0  # seconds of timed passes after which no more are timed
_BACKWARD = 2.0  # forward passes that a backward pass takes, where it is not timed
_TOKENS = 128  # of a timed pass, about: analyses run many variants of a prompt at once


@dataclass(frozen=True)
class Speed:
    """Seconds that a token takes through all blocks, by the prompt's length.

    A pass back takes `backward` times as long as one there.
    """

    seconds: Mapping[int, float]
    backward: float

    def seconds_of(self, costs: Sequence[Cost], shards: Sequence[TokenBatch]) -> float:
        """Return how long shards take, each with its clean pass."""
        return sum(self._seconds(cost, shard) for cost, shard in zip(costs, shards, strict=True))

    def _seconds(self, cost: Cost, shard: TokenBatch) -> float:
        passes = 1 + cost.weight * (cost.forwards + (self.backward - 1) * cost.backwards)
        lengths = sorted(self.seconds)
        known = [self.seconds[length] for length in lengths]
        token = np.interp(shard.tokens.shape[1], lengths, known)
        return float(passes * shard.tokens.numel() * token)


def measure_speed(
    model: Model, batches: Sequence[TokenBatch], *, clock: Callable[[], float] = time.monotonic
) -> Speed:
    """Time a forward pass through all blocks, after one to warm up, for up to 4 of the lengths.

    The longest is timed first, and one pass back; the others are, unless that took long.
    """
    of_length = {batch.tokens.shape[1]: batch for batch in batches}
    lengths = sorted(of_length)
    chosen = {lengths[round(i)] for i in np.linspace(0, len(lengths) - 1, _MOST_LENGTHS)}
    seconds, backward, spent = {}, _BACKWARD, 0.0
    for length in sorted(chosen, reverse=True):
        if spent > _PATIENCE:
            break
        n_rows = max(1, _TOKENS // length)
        rows = of_length[length].tokens[:1].repeat(n_rows, 1)
        recording = model.record(of_length[length]).of(rows, is_stored=False)
        there, both = _times(model, recording, clock, with_backward=length == max(chosen))
        seconds[length] = there / (n_rows * length)
        backward, spent = max(1.0, both / there - 1) if both else backward, spent + there + both
    return Speed(seconds, backward)


def _times(
    model: Model, recording: Recording, clock: Callable[[], float], *, with_backward: bool
) -> tuple[float, float]:
    """Return the seconds of a pass through all blocks, and of one there and back (or 0)."""
    layers = range(model.n_layers)
    with recording.running():
        resid = recording.resid(0)  # warms up: it runs a clean pass

        def there_and_back() -> object:
            with graph():
                varied = ordinary(resid).clone().requires_grad_()
                return slopes(recording.chain(layers, varied), [varied])

        there = _timed(lambda: recording.chain(layers, resid), clock, model.device)
        is_quick = with_backward and there < _PATIENCE / 4
        return there, _timed(there_and_back, clock, model.device) if is_quick else 0.0


def _timed(work: Callable[[], object], clock: Callable[[], float], device: torch.device) -> float:
    began = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - began
