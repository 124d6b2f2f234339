"""Workers of a run on other machines: actors of a Ray cluster whose nodes see the same files."""

import logging
import os
from concurrent.futures import Future
from typing import Any

import torch

from interp.errors import RunError
from interp.models.dtypes import kind_of_device
from interp.runs.executors import Executor, LocalExecutor, ProcessExecutor
from interp.runs.memory import return_large_blocks
from interp.runs.worker import Worker


def connect(address: str) -> None:
    """Join a Ray cluster ("auto", HOST:PORT, ray://…), or start one here ("local").

    No usage statistics are sent.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise RunError("ray is not installed; `pip install 'interp[ray]'` for --ray") from None
    if ray.is_initialized():
        return
    try:
        ray.init(
            None if address == "local" else address,
            log_to_driver=False,
            include_dashboard=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RunError(
            f"no Ray cluster at {address!r} ({str(error).splitlines()[0]});"
            " `ray start --head` starts one"
        ) from None


def _resources() -> dict[str, float]:
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources


class RayExecutor:
    """A worker that is an actor with `gpus` GPUs of its own (default: 1 if the cluster has any)."""

    def __init__(self, worker: Worker, *, gpus: float | None) -> None:
        self._worker = worker
        self._gpus = gpus_of_actors(gpus)
        self.replace()

    def replace(self) -> None:
        """Start another actor, wherever there is room."""
        import ray

        actor: Any = ray.remote(_Actor)
        actor = actor.options(num_cpus=1, num_gpus=self._gpus, scheduling_strategy="SPREAD")
        self._actor: Any = actor.remote(self._worker)

    def submit(self, call: str, *args: Any) -> "Future[Any]":
        """Let the actor do something."""
        future: Future[Any] = self._actor.answer.remote(call, *args).future()
        return future

    def close(self) -> None:
        """Stop the actor."""
        import ray

        ray.kill(self._actor)


class _Actor:
    def __init__(self, worker: Worker) -> None:
        return_large_blocks()
        self._worker = worker

    def answer(self, call: str, *args: Any) -> Any:
        return getattr(self._worker, call)(*args)


def make_executors(
    worker: Worker, *, workers: int = 1, ray_address: str | None = None, gpus: float | None = None
) -> list[Executor]:
    """Return executors in this process, in processes of their own, or on a Ray cluster."""
    if workers < 1:
        raise RunError(f"{workers} workers asked for; at least 1 is needed")
    if ray_address is not None:
        connect(ray_address)
        return [RayExecutor(worker, gpus=gpus) for _ in range(workers)]
    if workers == 1:
        return [LocalExecutor(worker)]
    threads, gpus_here = max(1, (os.cpu_count() or 1) // workers), visible_gpus()
    gpu = [gpus_here[i % len(gpus_here)] if gpus_here else None for i in range(workers)]
    return [ProcessExecutor(worker, threads=threads, gpu=gpu[i]) for i in range(workers)]


def kind_of_workers(*, ray_address: str | None, gpus: float | None, device_map: str | None) -> str:
    """Return the kind of device ("cpu", "cuda") that a run's workers compute on."""
    if ray_address is None:
        return kind_of_device(device_map=device_map)
    return "cuda" if gpus_of_actors(gpus) else "cpu"


def gpus_of_actors(gpus: float | None) -> float:
    """Return how many GPUs each actor has: those asked for, or 1 if the cluster has any."""
    return gpus if gpus is not None else float(bool(_resources().get("GPU")))


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, by their names in CUDA_VISIBLE_DEVICES."""
    n_gpus, allowed = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    names = allowed.split(",") if allowed else map(str, range(n_gpus))
    return [name.strip() for name in names][:n_gpus]
