"""Executing a study into a run folder: shard by shard, one recording for every analysis, resumable at any moment."""

import json
import logging
import platform
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from filelock import FileLock, Timeout

from interp import __version__
from interp.analysis import Result
from interp.catalogue import make_analysis
from interp.distributed import take_seats
from interp.errors import InterpError, ModelError, RunError
from interp.folder import SCHEMA, Cell, digest_of, is_whole, read_run, write_atomically, write_json
from interp.parts import read_part, unpack
from interp.seats import Seat, ask, run_jobs
from interp.shapes import Tensors
from interp.study import Estimate, Study, estimate
from interp.tasks import Task
from interp.workers import EXPECTED, Failure, Job, Plan, Spent, Worker, part_key, part_path

__all__ = ["Estimate", "Run", "Study", "estimate", "execute", "open_run"]
Progress = Callable[[str, int, int], None]
Status = dict[str, Any]
_log = logging.getLogger(__name__)


def execute(
    study: Study,
    out: Path,
    *,
    store: str | Path | None = None,
    workers: int = 1,
    ray: str | None = None,
    gpus: float | None = None,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Run what is not finished yet and return run.json; finished parts of an interrupted run are kept.

    `workers` processes share the work, or as many actors (of `gpus` GPUs each) of the Ray cluster at the address `ray`;
    numbers do not depend on it. A cell that fails is recorded with its error and does not stop the others. An interruption
    ends the run after the shards that are being measured, a second one at once. Raises before any work for names and values
    that do not exist, for a folder of another configuration, and for one in which another process is at work.
    """
    tasks = study.check()
    with _alone_in(out), _logged(out), _Stopping() as stopping:
        run = _open(study, out, tasks)
        seats = take_seats(Worker(study, out.absolute(), store), workers=workers, ray_address=ray, gpus=gpus)
        try:
            for model in study.models:
                for task in study.tasks:
                    _Pair(study, out, run, model, task, seats, stopping, progress).run()
        finally:
            for seat in seats:
                seat.close()
    if stopping.is_set():
        raise KeyboardInterrupt
    return run


@dataclass
class _Pair:
    """All cells of one task on one model."""

    study: Study
    out: Path
    run_: dict[str, Any]
    model: str
    task: str
    seats: Sequence[Seat]
    stopping: "_Stopping"
    progress: Progress
    spent: dict[Cell, Spent] = field(default_factory=dict)
    failed: dict[Cell, Failure] = field(default_factory=dict)

    def run(self) -> None:
        """Plan, prepare, measure and combine what is not finished."""
        cells = [cell for cell in self.study.cells() if (cell.model, cell.task) == (self.model, self.task)]
        todo = [cell for cell in cells if not self._is_finished(cell)]
        if not todo or self.stopping.is_set():
            return
        plan = self._plan(todo)
        if plan is None:
            return
        for cell in todo:
            if (failure := plan.refused.get(cell)) is not None:
                self._fail(cell, failure, may_skip=True)
        self._do([Job(self.model, self.task, (cell,)) for cell in todo if cell not in self.failed], "preparing")
        going = tuple(cell for cell in todo if cell not in self.failed)
        shards = range(len(plan.shards)) if going else ()
        self._do([Job(self.model, self.task, going, i) for i in shards], f"{self.model} · {self.task}")
        if not self.stopping.is_set():
            for cell in going:
                if cell not in self.failed:
                    self._finish(cell, plan)

    def _is_finished(self, cell: Cell) -> bool:
        """Tell whether a cell is finished and its files are what was written."""
        if self.run_["cells"].get(cell.path, {}).get("status") != "ok":
            return False
        if damaged := [path.name for path in _files(self.out / cell.path) if not is_whole(path)]:
            _log.warning("%s: %s damaged; made again from its parts", cell.path, ", ".join(damaged))
        return not damaged

    def _plan(self, todo: Sequence[Cell]) -> Plan | None:
        try:
            plan: Plan = ask(self.seats[0], "plan", self.model, self.task)
        except ModelError as error:
            if len(self.study.models) == 1:
                raise
            plan_failed: InterpError = error
        except InterpError as error:
            plan_failed = error
        else:
            _remember(self.run_, "models", self.model, plan.model, self.out)
            return plan
        for cell in todo:
            self._fail(cell, Failure.of(plan_failed))
        return None

    def _do(self, jobs: Sequence[Job], what: str) -> None:
        """Let the workers do jobs; cells that fail are recorded and left alone."""
        self.progress(what, 0, len(jobs))
        for n, (_, outcome) in enumerate(run_jobs(self.seats, jobs, is_stopping=self.stopping.is_set), 1):
            for cell, found in outcome.items():
                if isinstance(found, Spent):
                    self.spent[cell] = self.spent.get(cell, Spent()) + found
                elif cell not in self.failed:
                    self._fail(cell, found, may_skip=jobs[0].shard is None)
            self.progress(what, n, len(jobs))

    def _fail(self, cell: Cell, failure: Failure, *, may_skip: bool = False) -> None:
        self.failed[cell] = failure
        is_skipped = may_skip and self.study.only_fitting and failure.is_refusal
        status: Status = {"status": "skipped" if is_skipped else "failed", "error": failure.error}
        _log.warning("%s %s: %s", cell.path, status["status"], failure.error)
        _record(self.run_, self.out, cell, status | ({} if is_skipped else {"traceback": failure.traceback}))

    def _finish(self, cell: Cell, plan: Plan) -> None:
        """Combine the parts, write the result, and record the cell."""
        analysis, spent = self.study.make(cell), self.spent.get(cell, Spent())
        try:
            result = analysis.combine(self._parts(cell, plan))
            status = {
                "status": "ok",
                "parameters": asdict(analysis),
                "question": type(analysis).question,
                "how": type(analysis).how,
                "caveat": type(analysis).caveat,
                "n_prompts": sum(map(len, plan.shards)),
                "n_shards": len(plan.shards),
                "left_out": plan.left_out,
                "summary": result.summary(),
                "findings": [asdict(finding) for finding in result.findings()],
                "seconds": round(spent.seconds, 3),
                "forwards_per_prompt": round(spent.block_tokens / max(spent.forward_tokens, 1.0), 4),
                "peak_memory_mb": spent.peak_memory_mb,
            }
            prompts = tuple(prompt for shard in plan.shards for prompt in shard)
            Task("measured", prompts).to_jsonl(self.out / Cell(self.model, self.task, "").path / "prompts.jsonl")
            write_result(result, self.out / cell.path, status)
        except EXPECTED as error:
            self._fail(cell, Failure.of(error))
            return
        _log.info("%s finished", cell.path)
        _record(self.run_, self.out, cell, status)

    def _parts(self, cell: Cell, plan: Plan) -> list[Tensors]:
        analysis, parts = self.study.make(cell), []
        for i, prompts in enumerate(plan.shards):
            path = part_path(self.out, cell, i)
            part = read_part(path, part_key(plan.model["fingerprint"], analysis, prompts))
            if part is None:
                raise RunError(f"{path} was damaged after it was written; the same command computes it again")
            parts.append(part)
        return parts


# The folder


def _open(study: Study, out: Path, tasks: Mapping[str, Task]) -> dict[str, Any]:
    """Return run.json of a new run, or of the same one started earlier."""
    config = json.loads(json.dumps(asdict(study)))
    before = read_run(out) if (out / "run.json").exists() else None
    if before is not None and (before["models"] or before["cells"]):  # otherwise nothing was begun in it
        run = before
        for key, value in config.items():
            if run["config"].get(key) != value:
                raise RunError(
                    f"{out} holds a run with {key} = {run['config'].get(key)}; {value} was asked for; choose another --out"
                )
        now = {"versions": _versions(), "machine": _machine()}
        if now != _last_computed_with(run):
            run.setdefault("resumed", []).append({"at": _now()} | now)
    else:
        run = {
            "schema": SCHEMA,
            "config": config,
            "started": _now(),
            "versions": _versions(),
            "machine": _machine(),
            "models": {},
            "tasks": {},
            "cells": {},
        }
    for name, task in tasks.items():
        _remember(run, "tasks", name, _describe_task(task), out)
    return run


def _last_computed_with(run: dict[str, Any]) -> dict[str, Any]:
    last = (run.get("resumed") or [run])[-1]
    return {key: last[key] for key in ("versions", "machine")}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    """Return what computes: packages, and the commit if the library runs from a clone."""
    packages = {name: version(name) for name in ("transformers", "transformer-lens", "numpy")}
    known = {"interp": __version__, "python": platform.python_version(), "torch": torch.__version__, **packages}
    clone = Path(__file__).parents[1]
    if (clone / ".git").exists() and (git := shutil.which("git")):
        done = subprocess.run(
            [git, "-C", clone, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
        )
        known |= {"commit": done.stdout.strip()} if done.returncode == 0 else {}
    return known | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def _machine() -> str:
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join([f"{platform.system()} {platform.machine()}", f"{torch.get_num_threads()} threads", *devices])


def _remember(run: dict[str, Any], kind: str, name: str, described: dict[str, Any], out: Path) -> None:
    """Note what a model or task is; refuse to go on with a run whose model or prompts have changed since."""
    before = run[kind].get(name)
    identity = {"models": "fingerprint", "tasks": "hash"}[kind]
    if before is not None and before[identity] != described[identity]:
        raise RunError(f"{out} holds results of another {name!r}: its {identity} has changed; choose another --out")
    run[kind][name] = described
    write_json(out / "run.json", run)


def _record(run: dict[str, Any], out: Path, cell: Cell, status: Status) -> None:
    run["cells"][cell.path] = asdict(cell) | status
    run["finished"] = _now()  # the last cell's is the run's
    write_json(out / "run.json", run)


def _describe_task(task: Task) -> dict[str, Any]:
    prompts = json.dumps([asdict(prompt) for prompt in task.prompts], sort_keys=True, ensure_ascii=False)
    return {"prompts": len(task), "hash": blake2b(prompts.encode(), digest_size=16).hexdigest()}


def _files(folder: Path) -> list[Path]:
    return [folder / name for name in ("frame.parquet", "figure.json", "result.json")]


def write_result(result: Result, folder: Path, status: Status) -> None:
    """Write frame.parquet, figure.json and, last, result.json, which has the hashes of the others."""
    frame = result.to_frame()
    narrow = frame.astype(dict.fromkeys(frame.select_dtypes("float64"), "float32"))
    contents = {"frame.parquet": narrow.to_parquet(index=False), "figure.json": str(result.plot().to_json()).encode()}
    for name, content in contents.items():
        write_atomically(folder / name, content)
    write_json(folder / "result.json", status | {"files": {name: digest_of(content) for name, content in contents.items()}})


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Hold a run folder; the lock goes with the process, however it ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise RunError(f"another process is at work in {out}; wait for it, or choose another --out") from None
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _logged(out: Path) -> Iterator[None]:
    """Keep what happens in run.log, beside what was there."""
    handler = _RunLog(out / "run.log", delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger("interp")
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()


class _RunLog(logging.FileHandler):
    """A log without which a run goes on: where it cannot be written, nor can results, which say so."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # of opening the file
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None: ...

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class _Stopping:
    """Set by the first interruption, so that what is being measured is finished; the second one is let through."""

    def __init__(self) -> None:
        self._flag = threading.Event()
        self._before: Any = None

    def __enter__(self) -> "_Stopping":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupted)
        return self

    def _interrupted(self, _number: int, _frame: FrameType | None) -> None:
        if self._flag.is_set():
            raise KeyboardInterrupt
        _log.warning("interrupted: finishing the shards under way; once more stops at once")
        self._flag.set()

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def is_set(self) -> bool:
        """Tell whether the run is to end."""
        return self._flag.is_set()


class Run:
    """A run folder: `run["zoo/hops-4l", "two-hop", "layer_skip"]` is that cell's result; "layer_skip@LABEL" a label's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info = read_run(folder)

    def __getitem__(self, key: tuple[str, str, str]) -> Result:
        analysis, _, label = key[2].partition("@")
        cell = Cell(key[0], key[1], analysis, label)
        info = self.info["cells"].get(cell.path)
        if info is None or info["status"] != "ok":
            there_is = ", ".join(path for path, c in self.info["cells"].items() if c["status"] == "ok")
            raise RunError(f"no result {cell.path} in {self.folder}; there is {there_is or 'none'}")
        parts = [unpack(path) for path in sorted((self.folder / cell.path / "parts").glob("*.safetensors"))]
        if len(parts) != info["n_shards"]:
            raise RunError(f"{self.folder / cell.path} has {len(parts)} of {info['n_shards']} parts; run the study again")
        result = make_analysis(cell.analysis, info["parameters"]).combine(parts)
        object.__setattr__(result, "_place", (self.folder, cell))  # for `interp.view`; results are frozen values
        return result

    def prompts(self, model: str, task: str) -> tuple[Any, ...]:
        """Return the prompts of a task in the order in which its results number them."""
        return Task.from_jsonl(self.folder / Cell(model, task, "").path / "prompts.jsonl").prompts


def open_run(folder: str | Path) -> Run:
    """Open a run folder; raises RunError if there is none."""
    return Run(Path(folder))
