"""How long passes take here: measured once, before a run is planned.

A pass through all blocks, and a reading of logits, take a time of their own (weights are read from
memory) and a time for each token. Both are found from two sizes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from interp.analysis import Cost
from interp.models import Model
from interp.models.gradients import graph, ordinary, slopes
from interp.models.quantised import quantised
from interp.replay import Recording
from interp.sweeps.lens import rows_at_once
from interp.tasks.batch import TokenBatch

_MOST_LENGTHS = 4  # that are timed; between them times are interpolated
_PATIENCE = 8.0  # seconds of timed passes after which no more are timed
_BACKWARD = 2.0  # forward passes that a backward pass takes, where it is not timed
_TOKENS = 256  # of a timed pass, about: analyses run many variants of a prompt at once
_ROWS = 64  # of logits that are timed


@dataclass(frozen=True)
class Pace:
    """Seconds that a call takes: once (`start`), and for every item."""

    start: float
    each: float

    @classmethod
    def of(cls, few: tuple[int, float], many: tuple[int, float]) -> "Pace":
        """Return the pace of which two calls (items, seconds) would be; noise is no slope."""
        (n, less), (more_n, more_seconds) = few, many
        if n == more_n or less >= more_seconds:
            return cls(0.0, more_seconds / more_n)
        each = min((more_seconds - less) / (more_n - n), more_seconds / more_n)
        return cls(more_seconds - each * more_n, each)

    def seconds(self, items: int | float, *, calls: int | float) -> float:
        """Return how long so many items take in so many calls."""
        return calls * self.start + items * self.each


@dataclass(frozen=True)
class Speed:
    """How long passes of tokens through all blocks take, by the prompt's length, and logits' rows.

    A pass back takes `backward` times as long as one there. `tokens` and `rows` are how many of
    them fit into a call.
    """

    passes: Mapping[int, Pace]
    backward: float
    logits: Pace = Pace(0.0, 0.0)
    tokens: int = 1 << 30
    rows: int = 1 << 30

    def seconds_of(self, costs: Sequence[Cost], shards: Sequence[TokenBatch]) -> float:
        """Return how long shards take, each with its clean pass."""
        seconds = sum(map(self._seconds, costs, shards))
        once = max(costs, key=lambda cost: cost.once, default=None)
        return seconds + (once.once * self._pace(shards[0].tokens.shape[1]).each if once else 0.0)

    def calls(self, cost: Cost, shard: TokenBatch) -> float:
        """Return how many calls of all blocks a shard takes, besides its clean pass."""
        if cost.pieces is not None or not cost.forwards:
            return float(cost.pieces or 0) if cost.forwards else 0.0
        at_once = max(1, self.tokens // shard.tokens.numel())  # no call holds less than a shard
        return self._more(cost) / at_once

    def _more(self, cost: Cost) -> float:
        return cost.weight * (cost.forwards + (self.backward - 1) * cost.backwards)

    def _seconds(self, cost: Cost, shard: TokenBatch) -> float:
        more, calls = self._more(cost), self.calls(cost, shard)
        n, there = shard.tokens.numel(), self._pace(shard.tokens.shape[1])
        readings = float(cost.pieces or max(1.0, cost.logits / self.rows))
        seconds = there.seconds(n, calls=1)
        seconds += there.seconds(n * more, calls=calls) if more else 0.0
        return seconds + (self.logits.seconds(cost.logits, calls=readings) if cost.logits else 0.0)

    def _pace(self, n_pos: int) -> Pace:
        lengths = sorted(self.passes)
        both = [(self.passes[length].start, self.passes[length].each) for length in lengths]
        start, each = (float(np.interp(n_pos, lengths, known)) for known in zip(*both, strict=True))
        return Pace(start, each)


def measure_speed(
    model: Model, batches: Sequence[TokenBatch], *, clock: Callable[[], float] = time.monotonic
) -> Speed:
    """Time passes through all blocks, after one to warm up, for up to 4 of the lengths; and logits.

    The longest is timed first, and one pass back; the others are, unless that took long.
    """
    of_length = {batch.tokens.shape[1]: batch for batch in batches}
    lengths = sorted(of_length)
    chosen = {lengths[round(i)] for i in np.linspace(0, len(lengths) - 1, _MOST_LENGTHS)}
    passes, backward, spent, logits = {}, _BACKWARD, 0.0, Pace(0.0, 0.0)
    for length in sorted(chosen, reverse=True):
        if spent > _PATIENCE:
            break
        n_rows = max(1, _TOKENS // length)
        rows = of_length[length].tokens[:1].repeat(n_rows, 1)
        recording = model.record(of_length[length]).of(rows, is_stored=False)
        one, many, both = _times(model, recording, clock, with_backward=length == max(chosen))
        passes[length] = Pace.of((length, one), (n_rows * length, many))
        backward, spent = max(1.0, both / many - 1) if both else backward, spent + many + both
        if length == max(chosen):
            logits = _pace_of_logits(recording, clock, model.device)
    return Speed(passes, backward, logits, model.tokens_at_once(), rows_at_once(model.d_vocab))


def _times(
    model: Model, recording: Recording, clock: Callable[[], float], *, with_backward: bool
) -> tuple[float, float, float]:
    """Return the seconds of a pass of one row, of all, and of all there and back (or 0)."""
    layers = range(model.n_layers)
    with recording.running():
        resid = recording.resid(0)  # warms up: it runs a clean pass

        def there_and_back() -> object:
            with graph():
                varied = ordinary(resid).clone().requires_grad_()
                return slopes(recording.chain(layers, varied), [varied])

        many = _timed(lambda: recording.chain(layers, resid), clock, model.device)
        one = many
        if len(resid) > 1:
            one = _timed(lambda: recording.chain(layers, resid[:1]), clock, model.device)
        is_quick = with_backward and many < _PATIENCE / 4 and not quantised(model.module)
        return one, many, _timed(there_and_back, clock, model.device) if is_quick else 0.0


def _pace_of_logits(recording: Recording, clock: Callable[[], float], device: torch.device) -> Pace:
    """Time what is read of logits: their logarithms and the best token."""
    with recording.running():
        last = recording.resid(recording.n_layers)[:1, -1:]
        rows = last.repeat(1, min(_ROWS, rows_at_once(recording.runner.d_vocab)), 1)

        def read(resid: torch.Tensor) -> object:
            return recording.logits(resid).log_softmax(-1).max(-1)

        read(last)  # warms up
        few = _timed(lambda: read(last), clock, device)
        many = _timed(lambda: read(rows), clock, device)
    return Pace.of((1, few), (rows.shape[1], many))


def _timed(work: Callable[[], object], clock: Callable[[], float], device: torch.device) -> float:
    began = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - began
