"""Executing a study into a run folder: shard by shard, one recording for every analysis, resumable
at any moment.
"""

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
from importlib.metadata import version as version_of
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from filelock import FileLock, Timeout

from interp import __version__
from interp.analysis import Result
from interp.errors import InterpError, ModelError, RunError
from interp.files.whole import digest_of, write_atomically, write_json
from interp.runs.cluster import take_seats
from interp.runs.executors import Seat, ask, run_jobs
from interp.runs.folder import SCHEMA, Cell, cells_of, is_whole, read_run, task_folder
from interp.runs.identity import hash_of_task
from interp.runs.parts import read_part, unpack
from interp.runs.registry import make_analysis
from interp.runs.study import Estimate, Study, estimate
from interp.runs.worker import Failure, Job, Outcome, Plan, Spent, Worker, part_path
from interp.shapes import Tensors
from interp.tasks import Prompt, Task

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
    """Run what is not finished yet and return run.json; finished parts of an interrupted run are
    kept.

    `workers` processes share the work, or as many actors (of `gpus` GPUs each) of the Ray cluster
    at the address `ray`; numbers do not depend on it. A cell that fails is recorded with its error
    and does not stop the others. An interruption ends the run after the shards that are being
    measured, a second one at once. Raises before any work for names and values that do not exist,
    for a folder of another configuration or version, and for one in which another process is at
    work; and in the end where what is finished is of other weights, tokens or prompts than those
    that are there now.
    """
    tasks = study.check()
    with _alone_in(out), _logged(out), _Stopping() as stopping:
        run = _open(study, out, tasks)
        seats = take_seats(
            Worker(study, out.absolute(), store), workers=workers, ray_address=ray, gpus=gpus
        )
        changed: list[InterpError] = []
        try:
            for model in study.models:
                for task in study.tasks:
                    try:
                        _Pair(study, out, run, model, task, seats, stopping, progress).run()
                    except Changed as error:
                        changed.append(error)
        finally:
            for seat in seats:
                seat.close()
    if stopping.is_set():
        raise KeyboardInterrupt
    if changed:
        raise changed[0]
    return run


class Changed(RunError):
    """What is finished in a folder cannot be that of the model and prompts that are there now."""


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
        """Plan, prepare, measure and combine what is not finished; raise Changed if the rest is of
        something else.
        """
        cells = [
            cell
            for cell in self.study.cells()
            if (cell.model, cell.task) == (self.model, self.task)
        ]
        todo = [cell for cell in cells if not self._is_finished(cell)]
        if self.stopping.is_set():
            return
        plan = self._plan(
            todo, {cell: self._recorded(cell)["identity"] for cell in cells if cell not in todo}
        )
        if plan is None:
            return
        for cell in todo:
            if (failure := plan.refused.get(cell)) is not None:
                self._fail(cell, failure, may_skip=True)
        self._do(
            [Job(self.model, self.task, (cell,)) for cell in todo if cell not in self.failed],
            "preparing",
        )
        going = [cell for cell in todo if cell not in self.failed]
        of_shard = {
            i: tuple(cell for cell in going if i in plan.questions[cell].keys)
            for i in range(len(plan.shards))
        }
        jobs = [Job(self.model, self.task, asked, i) for i, asked in of_shard.items() if asked]
        self._do(jobs, f"{self.model} · {self.task}")
        if not self.stopping.is_set():
            for cell in going:
                if cell not in self.failed:
                    self._finish(cell, plan)

    def _recorded(self, cell: Cell) -> dict[str, Any]:
        recorded: dict[str, Any] = self.run_["cells"].get(cell.path, {})
        return recorded

    def _is_finished(self, cell: Cell) -> bool:
        """Tell whether a cell is finished and its files are what was written."""
        if self._recorded(cell).get("status") != "ok":
            return False
        if damaged := [path.name for path in _files(self.out / cell.path) if not is_whole(path)]:
            _log.warning("%s: %s damaged; made again from its parts", cell.path, ", ".join(damaged))
        return not damaged

    def _plan(
        self, todo: Sequence[Cell], finished: Mapping[Cell, Mapping[str, str]]
    ) -> Plan | None:
        """Return what is to be done; None, and `todo` has failed, where the model or the task is of
        no use.
        """
        try:
            plan: Plan = ask(self.seats[0], "plan", self.model, self.task, finished)
        except Exception as error:
            if finished and not todo:
                raise Changed(
                    f"{self.out}: what is finished of {self.model!r} cannot be checked: {error}"
                ) from error
            if len(self.study.models) == 1 and isinstance(error, ModelError):
                raise
            for cell in todo:
                self._fail(cell, Failure.of(error))
            return None
        for cell, what in plan.changed.items():
            raise Changed(f"{self.out} holds {cell.path} of other {what}; choose another --out")
        for kind, name, described in (
            ("models", self.model, plan.model),
            ("tasks", self.task, plan.task),
        ):
            self._remember(kind, name, described)
        return plan

    def _remember(self, kind: str, name: str, described: dict[str, Any]) -> None:
        """Note what a model or a task is; raise Changed if it has been another one in this run."""
        identity = {"models": "fingerprint", "tasks": "hash"}[kind]
        before = self.run_[kind].get(name, {}).get(identity, described[identity])
        if before != described[identity] and any(
            cell["status"] == "ok" for cell in self.run_["cells"].values()
        ):
            raise Changed(
                f"{self.out} holds results of another {name!r}: its {identity} has changed; choose"
                " another --out"
            )
        self.run_[kind][name] = self.run_[kind].get(name, {}) | described
        write_json(self.out / "run.json", self.run_)

    def _do(self, jobs: Sequence[Job], what: str) -> None:
        """Let the workers do jobs; cells that fail are recorded and left alone."""
        self.progress(what, 0, len(jobs))
        for n, (_, outcome) in enumerate(self._outcomes(jobs), 1):
            for cell, found in outcome.items():
                if isinstance(found, Spent):
                    self.spent[cell] = self.spent.get(cell, Spent()) + found
                elif cell not in self.failed:
                    self._fail(cell, found, may_skip=jobs[0].shard is None)
            self.progress(what, n, len(jobs))

    def _outcomes(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        return run_jobs(self.seats, jobs, is_stopping=self.stopping.is_set, failed=self.failed)

    def _fail(self, cell: Cell, failure: Failure, *, may_skip: bool = False) -> None:
        self.failed[cell] = failure
        is_skipped = may_skip and self.study.only_fitting and failure.is_refusal
        status: Status = {"status": "skipped" if is_skipped else "failed", "error": failure.error}
        _log.warning("%s %s: %s", cell.path, status["status"], failure.error)
        _record(
            self.run_,
            self.out,
            cell,
            status | ({} if is_skipped else {"traceback": failure.traceback}),
        )

    def _finish(self, cell: Cell, plan: Plan) -> None:
        """Combine the parts, write the result, and record the cell."""
        analysis, spent, asked = (
            self.study.make(cell),
            self.spent.get(cell, Spent()),
            plan.questions[cell],
        )
        every = [prompt for shard in plan.shards for prompt in shard]
        measured = [prompt for i in asked.keys for prompt in plan.shards[i]]
        try:
            result = analysis.combine(self._parts(cell, plan))
            status = {
                "status": "ok",
                "parameters": asdict(analysis),
                "question": type(analysis).question,
                "how": type(analysis).how,
                "caveat": type(analysis).caveat,
                "n_prompts": len(measured),
                "n_shards": len(asked.keys),
                "left_out": ", ".join(filter(None, (plan.left_out, asked.left_out))),
                "identity": asdict(asked.identity),
                "summary": result.summary(),
                "findings": [finding.to_json() for finding in result.findings()],
                "seconds": round(spent.seconds, 3),
                "forwards_per_prompt": round(
                    spent.block_tokens / max(spent.forward_tokens, 1.0), 4
                ),
                "peak_memory_mb": spent.peak_memory_mb,
            }
            if asked.left_out:
                ids = {prompt.id for prompt in measured}
                status["prompts"] = [i for i, prompt in enumerate(every) if prompt.id in ids]
                write_atomically(
                    self.out / cell.path / "prompts.jsonl",
                    Task("measured", tuple(measured)).to_lines(),
                )
            write_result(result, self.out / cell.path, status)
        except Exception as error:
            self._fail(cell, Failure.of(error))
            return
        _log.info("%s finished", cell.path)
        _record(self.run_, self.out, cell, status)

    def _parts(self, cell: Cell, plan: Plan) -> list[Tensors]:
        parts = []
        for i, key in plan.questions[cell].keys.items():
            path = part_path(self.out, cell, i)
            part = read_part(path, key)
            if part is None:
                raise RunError(
                    f"{path} was damaged after it was written; the same command computes it again"
                )
            parts.append(part)
        return parts


# The folder


def _open(study: Study, out: Path, tasks: Mapping[str, Task]) -> dict[str, Any]:
    """Return run.json of a new run, or of the same one started earlier."""
    config = json.loads(json.dumps(asdict(study)))
    before = read_run(out) if (out / "run.json").exists() else None
    if before is not None and before["schema"] < SCHEMA:
        version = before["versions"].get("interp")
        raise RunError(
            f"{out} was written by interp {version}, whose runs can be read, not resumed; choose"
            " another --out"
        )
    if before is not None and (
        before["models"] or before["cells"]
    ):  # otherwise nothing was begun in it
        run = before
        for key, value in config.items():
            if run["config"].get(key) != value:
                raise RunError(
                    f"{out} holds a run with {key} = {run['config'].get(key)}; {value} was asked"
                    " for; choose another --out"
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
    _remember_tasks(run, tasks, out)
    return run


def _remember_tasks(run: dict[str, Any], tasks: Mapping[str, Task], out: Path) -> None:
    """Note what the tasks' files hold; raise RunError if they have changed since the run was begun."""
    for name, task in tasks.items():
        file = hash_of_task(task)
        if run["tasks"].get(name, {}).get("file", file) != file:
            raise RunError(
                f"{out} holds results of another {name!r}: its prompts have changed; choose another"
                " --out"
            )
        run["tasks"][name] = (
            {"prompts": len(task), "hash": file} | run["tasks"].get(name, {}) | {"file": file}
        )
    write_json(out / "run.json", run)


def _last_computed_with(run: dict[str, Any]) -> dict[str, Any]:
    last = (run.get("resumed") or [run])[-1]
    return {key: last[key] for key in ("versions", "machine")}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    """Return what computes: packages, and the commit if the library runs from a clone."""
    packages = {name: version_of(name) for name in ("transformers", "transformer-lens", "numpy")}
    known = {
        "interp": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **packages,
    }
    clone = Path(__file__).parents[2]
    if (clone / ".git").exists() and (git := shutil.which("git")):
        done = subprocess.run(
            [git, "-C", clone, "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=False,
        )
        known |= {"commit": done.stdout.strip()} if done.returncode == 0 else {}
    return known | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def _machine() -> str:
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(
        [
            f"{platform.system()} {platform.machine()}",
            f"{torch.get_num_threads()} threads",
            *devices,
        ]
    )


def _record(run: dict[str, Any], out: Path, cell: Cell, status: Status) -> None:
    run["cells"][cell.path] = cell.names | status
    run["finished"] = _now()  # the last cell's is the run's
    write_json(out / "run.json", run)


def _files(folder: Path) -> list[Path]:
    return [folder / name for name in ("frame.parquet", "figure.json", "result.json")]


def write_result(result: Result, folder: Path, status: Status) -> None:
    """Write frame.parquet, figure.json and, last, result.json, which has the hashes of the others."""
    frame = result.to_frame()
    narrow = frame.astype(dict.fromkeys(frame.select_dtypes("float64"), "float32"))
    contents = {
        "frame.parquet": narrow.to_parquet(index=False),
        "figure.json": str(result.plot().to_json()).encode(),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
    write_json(
        folder / "result.json",
        status | {"files": {name: digest_of(content) for name, content in contents.items()}},
    )


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Hold a run folder; the lock goes with the process, however it ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise RunError(
            f"another process is at work in {out}; wait for it, or choose another --out"
        ) from None
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
    """Set by the first interruption, so that what is being measured is finished; the second one is
    let through.
    """

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
    """A run folder: `run["zoo/hops-4l", "two-hop", "layer_skip"]` is that cell's result;
    "layer_skip@LABEL" a label's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info = read_run(folder)

    def __getitem__(self, key: tuple[str, str, str]) -> Result:
        analysis, label = _name_and_label(key[2])
        cell, info = self._cell(Cell(key[0], key[1], analysis, label))
        parts = [
            unpack(path)
            for path in sorted((self.folder / cell.path / "parts").glob("*.safetensors"))
        ]
        if len(parts) != info["n_shards"]:
            raise RunError(
                f"{self.folder / cell.path} has {len(parts)} of {info['n_shards']} parts; run the"
                " study again"
            )
        result = make_analysis(cell.analysis, info["parameters"]).combine(parts)
        object.__setattr__(
            result, "_place", (self.folder, cell)
        )  # for `interp.view`; results are frozen values
        return result

    def _cell(self, asked: Cell) -> tuple[Cell, dict[str, Any]]:
        finished = {
            cell: info for cell, info in cells_of(self.info).items() if info["status"] == "ok"
        }
        if asked not in finished:
            there_is = ", ".join(cell.path for cell in finished) or "none"
            raise RunError(f"no result {asked.path} in {self.folder}; there is {there_is}")
        return next((cell, info) for cell, info in finished.items() if cell == asked)

    def prompts(self, model: str, task: str, analysis: str | None = None) -> tuple[Prompt, ...]:
        """Return the prompts of a task in the order in which results number them.

        An analysis that cannot use all of them numbers its own: those are returned if it is named.
        """
        folder = self.folder / task_folder(self.info, model, task)
        own = (
            None
            if analysis is None
            else self._cell(Cell(model, task, *_name_and_label(analysis)))[0]
        )
        if own is not None and (self.folder / own.path / "prompts.jsonl").exists():
            folder = self.folder / own.path
        return Task.from_jsonl(folder / "prompts.jsonl").prompts


def _name_and_label(analysis: str) -> tuple[str, str]:
    name, _, label = analysis.partition("@")
    return name, label


def open_run(folder: str | Path) -> Run:
    """Open a run folder; raises RunError if there is none."""
    return Run(Path(folder))
