"""Where workers run (this process, or processes of their own), and how they are given jobs."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing.context import BaseContext
from statistics import median
from typing import Any, Protocol, runtime_checkable

import torch
import transformers

from interp.errors import RunError
from interp.runs.folder import Cell
from interp.runs.memory import return_large_blocks
from interp.runs.plan import Job, Outcome, failed_alike
from interp.runs.worker import Worker

_ATTEMPTS = 3  # times that a worker may die over one job
_SLOW = 4.0  # times the median that a job may take before an idle worker does it too


@runtime_checkable
class Executor(Protocol):
    """What one worker runs in."""

    def submit(self, call: str, *args: Any) -> "Future[Any]":
        """Let the worker do something; if it dies, the future fails as `_deaths` says."""

    def replace(self) -> None:
        """Put a new worker in the place of one that died."""

    def close(self) -> None:
        """End the worker, whatever it is doing."""


class LocalExecutor:
    """A worker in this process."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def submit(self, call: str, *args: Any) -> "Future[Any]":
        done: Future[Any] = Future()
        try:
            done.set_result(getattr(self.worker, call)(*args))
        except Exception as error:
            done.set_exception(error)
        return done

    def replace(self) -> None: ...

    def close(self) -> None: ...


_WORKER: list[Worker] = []  # of a process of its own


def _begin(worker: Worker, threads: int, gpu: str | None) -> None:
    transformers.utils.logging.disable_progress_bar()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started it
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    torch.set_num_threads(threads)
    return_large_blocks()
    _WORKER.append(worker)
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _do(call: str, *args: Any) -> Any:
    return getattr(_WORKER[0], call)(*args)


class ProcessExecutor:
    """A worker in a process of its own, with its threads and, where there are any, its GPU."""

    def __init__(self, worker: Worker, *, threads: int, gpu: str | None) -> None:
        self._arguments = (worker, threads, gpu)
        self.replace()

    def replace(self) -> None:
        """Start another process."""
        self._pool = ProcessPoolExecutor(
            1, mp_context=_context(), initializer=_begin, initargs=self._arguments
        )
        self._last: Future[Any] = Future()

    def submit(self, call: str, *args: Any) -> "Future[Any]":
        """Let the process do something; another one, if it died while it had nothing to do."""
        try:
            self._last = self._pool.submit(_do, call, *args)
        except BrokenProcessPool:
            self.replace()
            self._last = self._pool.submit(_do, call, *args)
        return self._last

    def close(self) -> None:
        """Stop the process, whatever it is doing."""
        if self._last.running():
            for process in (self._pool._processes or {}).values():
                process.kill()
        self._pool.shutdown(cancel_futures=True)


def _context() -> BaseContext:
    """Return how processes start: if possible, from one that has imported what all need."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["interp.runs.worker", "interp.models.bridge.building", "transformer_lens.model_bridge"]
    )
    return context


def _deaths() -> tuple[type[BaseException], ...]:
    if "ray" not in sys.modules:
        return (BrokenProcessPool,)
    import ray

    return (BrokenProcessPool, ray.exceptions.RayActorError, ray.exceptions.ObjectLostError)


Busy = dict[Future[Outcome], tuple[Executor, Job, float]]  # who does which job, since when


def run_jobs(
    executors: Sequence[Executor],
    jobs: Iterable[Job],
    *,
    is_stopping: Callable[[], bool],
    failed: Container[Cell] = (),
    begin: Callable[[Job], None] = lambda _: None,
) -> Iterator[tuple[Job, Outcome]]:
    """Let workers do jobs, and yield outcomes as they arrive; `begin` is told of each before.

    A job whose worker dies is done again, and a slow one is also given to a second worker. Cells
    that have `failed` by the time a job is handed out are left out of it.
    """
    queue, free, busy = deque(jobs), list(executors), Busy()
    deaths: Counter[Job] = Counter()
    finished: set[Job] = set()
    seconds: list[float] = []
    while queue or busy:
        while free and queue and not is_stopping():
            job = _without(failed, queue.popleft())
            if job.cells:
                begin(job)
                _hand_out(free.pop(), job, busy)
            else:
                yield job, {}
        if not busy or (not queue and {job for _, job, _ in busy.values()} <= finished):
            return  # what still runs has been done by another worker
        done, _ = wait(busy, timeout=1.0, return_when=FIRST_COMPLETED)
        for future in done:
            executor, job, began = busy.pop(future)
            free.append(executor)
            outcome = _outcome_of(future, executor, job, deaths)
            if outcome is None:
                queue.append(job)
                continue
            seconds.append(time.monotonic() - began)
            if job not in finished:
                finished.add(job)
                yield job, outcome
        can_repeat = bool(free) and not queue and len(seconds) >= 3 and not is_stopping()
        if can_repeat and (slow := _slowest(busy, finished, limit=_SLOW * median(seconds))):
            _hand_out(free.pop(), slow, busy)


def _without(failed: Container[Cell], job: Job) -> Job:
    return replace(job, cells=tuple(each for each in job.cells if each.cell not in failed))


def _outcome_of(
    future: "Future[Outcome]", executor: Executor, job: Job, deaths: Counter[Job]
) -> Outcome | None:
    """Return a job's outcome; None if its worker died and it is to be done again."""
    try:
        return future.result()
    except _deaths() as error:
        executor.replace()
        deaths[job] += 1
        if deaths[job] < _ATTEMPTS:
            return None
        return failed_alike(job, _given_up("it", error))
    except Exception as error:
        return failed_alike(job, error)


def _given_up(what: str, error: BaseException) -> RunError:
    return RunError(f"a worker died {_ATTEMPTS} times over {what} ({error}); too little memory?")


def _hand_out(executor: Executor, job: Job, busy: Busy) -> None:
    busy[executor.submit("do", job)] = (executor, job, time.monotonic())


def _slowest(busy: Busy, finished: set[Job], *, limit: float) -> Job | None:
    """Return a job that a single worker has had for too long."""
    held = Counter(job for _, job, _ in busy.values())
    now = time.monotonic()
    waited = [
        (now - began, job)
        for _, job, began in busy.values()
        if held[job] == 1 and job not in finished
    ]
    longest = max(waited, key=lambda item: item[0], default=(0.0, None))
    return longest[1] if longest[0] > limit else None


def call(executor: Executor, method: str, *args: Any) -> Any:
    """Return what a worker's method returns; a worker that dies is replaced and called again."""
    for attempt in range(_ATTEMPTS):
        try:
            return executor.submit(method, *args).result()
        except _deaths() as error:
            if attempt == _ATTEMPTS - 1:
                raise _given_up(method, error) from None
            executor.replace()
    raise AssertionError("not reached")
