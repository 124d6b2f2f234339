"""Jobs on one model whose blocks lie on disk, in turns: all run a block before the next one opens.

Every job has a thread, and one of them computes at a time. It goes on until it visits a block that
is not open; then another one does. When all wait, the lowest block that is wanted opens: so the
blocks are read as often as for the job alone that wants them most often.
"""

import ctypes
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from interp.models.streaming import BlockStream
from interp.tasks.batch import TokenBatch

if TYPE_CHECKING:
    from interp.models.model import Model

T = TypeVar("T")
_MOST = 64  # shards, of which each has a thread
_TOGETHER = 1 << 30  # bytes of recordings, and of what is held beside them
_ARENA_MAX = -8  # of mallopt(3)
_ARENAS = 2  # of glibc, which otherwise keeps freed memory of every thread apart


class _CutOff(BaseException):
    """Ends a job that waits for a block when all jobs are to end."""


class Turns(Generic[T]):
    """Jobs in turns over a stream; `is_patched` tells when the model is not as it was loaded."""

    def __init__(self, stream: BlockStream, is_patched: Callable[[], bool]) -> None:
        self._stream, self._is_patched = stream, is_patched
        self._changed = threading.Condition()
        self._waiting: dict[int, int | None] = {}  # the block that a job wants; None: to begin
        self._turn: int | None = None
        self._unfinished = 0
        self._is_cut_off = False
        self._own = threading.local()  # the number of a thread's job

    def run(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """Return what the jobs return, in order; raise the first one's exception once all ended.

        An interruption ends every job when it next wants a block.
        """
        _keep_few_arenas()
        outcomes: list[Any] = [None] * len(jobs)
        threads = [
            threading.Thread(target=self._do, args=(i, job, outcomes), daemon=True)
            for i, job in enumerate(jobs)
        ]
        self._waiting, self._unfinished = dict.fromkeys(range(len(jobs))), len(jobs)
        self._stream.turns = self._visit
        try:
            for thread in threads:
                thread.start()
            self._pass_on_until_finished()
        finally:
            self._stream.turns = None
        for error in (error for _, error in outcomes if error is not None):
            raise error
        return [outcome for outcome, _ in outcomes]

    def _pass_on_until_finished(self) -> None:
        with self._changed:
            self._pass_on()
            try:
                self._changed.wait_for(lambda: not self._unfinished)
            except BaseException:
                self._is_cut_off = True
                self._changed.wait_for(lambda: not self._unfinished)
                raise

    def _do(self, i: int, job: Callable[[], T], outcomes: list[Any]) -> None:
        self._own.number = i
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._turn == i)
            if self._is_cut_off:
                raise _CutOff
            with torch.inference_mode(mode=False), torch.no_grad():
                outcomes[i] = job(), None
        except BaseException as error:
            outcomes[i] = None, error
        finally:
            with self._changed:
                self._unfinished -= 1
                self._pass_on()

    def _visit(self, layer: int) -> None:
        """Open a block for a job that has the turn; others have it meanwhile.

        What is hooked, or has other weights for a while, would be so for them too: then, and for
        what is no job, the block is opened at once.
        """
        mine = getattr(self._own, "number", None)
        if mine is not None and self._is_cut_off:
            raise _CutOff
        if mine is None or self._stream.is_open(layer) or self._is_patched():
            self._stream.open(layer, is_pass=True)
            return
        self._stream.expect(layer)
        with self._changed:
            self._waiting[mine] = layer
            self._pass_on()
            self._changed.wait_for(lambda: self._turn == mine)
        if self._is_cut_off:
            raise _CutOff
        self._stream.open(layer)

    def _pass_on(self) -> None:
        """Give the turn to a job that can go on, or else to one that wants the lowest block."""
        wanted = [layer for layer in self._waiting.values() if layer is not None]
        able = (
            i for i, layer in self._waiting.items() if layer is None or self._stream.is_open(layer)
        )
        self._turn = next(able, None)
        if self._turn is None and wanted:
            lowest = min(wanted)
            self._turn = next(i for i, layer in self._waiting.items() if layer == lowest)
        if self._turn is not None:
            del self._waiting[self._turn]
        self._changed.notify_all()


def in_turns(model: "Model", jobs: Sequence[Callable[[], T]]) -> list[T]:
    """Return what jobs on a model return: one after the other, or in turns if it is on disk."""
    stream = model.stream
    if stream is None or len(jobs) < 2:
        return [job() for job in jobs]

    def is_patched() -> bool:
        return model.weights.edition is not None or stream.is_patched()

    with model.running:
        return Turns[T](stream, is_patched).run(jobs)


def grouped(
    model: "Model", batches: Mapping[int, TokenBatch], held: Mapping[int, int]
) -> list[tuple[int, ...]]:
    """Return which shards are measured in turns, by number: each alone, unless blocks lie on disk.

    Then those that `grouped_on_disk` says are.
    """
    return (
        [(i,) for i in batches] if model.stream is None else grouped_on_disk(model, batches, held)
    )


def grouped_on_disk(
    model: "Model", batches: Mapping[int, TokenBatch], held: Mapping[int, int]
) -> list[tuple[int, ...]]:
    """Return groups of shards of like length that fit into a gigabyte with the numbers `held`."""
    n_kept = 5 * model.n_layers * model.d_model * model.dtype.itemsize  # with keys and values
    groups: list[tuple[int, ...]] = []
    left = 0
    for i in sorted(batches, key=lambda i: (batches[i].tokens.shape[1], i)):
        size = n_kept * batches[i].tokens.numel() + 4 * held[i]
        if not groups or size > left or len(groups[-1]) == _MOST:
            groups.append(())
            left = _TOGETHER
        groups[-1] += (i,)
        left -= size
    return groups


def in_groups(
    model: "Model", batches: Sequence[TokenBatch], job: Callable[[TokenBatch], T]
) -> list[T]:
    """Return what a job that holds no more than a clean pass returns for every batch."""
    by_number = dict(enumerate(batches))
    returned: dict[int, T] = {}
    for group in grouped(model, by_number, dict.fromkeys(by_number, 0)):
        done = in_turns(model, [partial(job, batches[i]) for i in group])
        returned |= zip(group, done, strict=True)
    return [returned[i] for i in by_number]


def _keep_few_arenas() -> None:
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # musl has none
            mallopt(_ARENA_MAX, _ARENAS)
