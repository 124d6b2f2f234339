"""Executing a study into a run folder, shard by shard, resumable at any moment."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from itertools import product, starmap
from pathlib import Path
from typing import Any

from interp.analysis import Analysis
from interp.errors import ChangedError, ModelError, RunError
from interp.files.whole import write_atomically
from interp.models.dtypes import AutoDtype
from interp.result import Result
from interp.runs.budget import TaskPlanned, choose, share_of_next
from interp.runs.cluster import connect, kind_of_workers, make_executors
from interp.runs.executors import Executor, call, run_jobs
from interp.runs.folder import Cell
from interp.runs.parts import read_part
from interp.runs.plan import Failure, Job, PlannedCell, Spent, TaskPlan, part_path
from interp.runs.progress import OnCell, Progress, Standing, WorkLeft
from interp.runs.record import RunRecord, Status, damaged_files, write_result
from interp.runs.session import Stopping, alone_in, logged
from interp.runs.study import Study
from interp.runs.worker import Worker, is_prepared
from interp.shapes import Tensors
from interp.tasks import Prompt, Task

_log = logging.getLogger(__name__)
_CHEAP = 2.0  # forwards of each prompt, its clean pass among them


def execute(
    study: Study,
    out: Path,
    *,
    store: str | Path | None = None,
    workers: int = 1,
    ray: str | None = None,
    gpus: float | None = None,
    announce: Callable[[TaskPlanned], None] = lambda _: None,
    progress: Progress = lambda _: None,
    on_cell: OnCell = lambda *_: None,
) -> dict[str, Any]:
    """Run what is not finished and return run.json; parts of an interrupted run are kept.

    `announce` is told of every task on a model what will be run of it and how long that takes,
    before it is; `progress`, how far it is; `on_cell`, of every cell as it ends, and of those that
    an earlier call has finished.

    `workers` processes share the work, or as many actors (of `gpus` GPUs each) of the Ray cluster
    at the address `ray`; numbers do not depend on it. A cell that fails is recorded with its error
    and does not stop the others. A first interruption ends the run after the shards that are being
    measured, a second one at once.

    Raises before any work for names and values that do not exist, for a folder of another
    configuration or version, and for one in which another process is at work. Raises at the end if
    finished results are of other weights, tokens or prompts than the present ones.
    """
    tasks = study.check()
    with alone_in(out), logged(out), Stopping() as stopping:
        if ray is not None:
            connect(ray)
        kind = kind_of_workers(ray_address=ray, gpus=gpus, device_map=study.device_map)
        record = RunRecord(study, out, tasks, auto=AutoDtype.on(kind), on_cell=on_cell)
        study = replace(study, files=record.keep_files(study.files))
        worker = Worker(study, out.absolute(), record.dtype, store)
        executors = make_executors(worker, workers=workers, ray_address=ray, gpus=gpus)
        run = _Run(study, record, executors, stopping, announce, progress)
        try:
            errors = starmap(run.run_task, product(study.models, study.tasks))
            changed = [error for error in errors if error is not None]
        finally:
            for executor in executors:
                executor.close()
    if stopping.is_set():
        raise KeyboardInterrupt
    if changed:
        raise changed[0]
    return record.values


@dataclass(frozen=True)
class _Run:
    """What all cells of a run share."""

    study: Study
    record: RunRecord
    executors: Sequence[Executor]
    stopping: Stopping
    announce: Callable[[TaskPlanned], None]
    progress: Progress
    began: float = field(default_factory=time.monotonic)

    def run_task(self, model: str, task: str) -> ChangedError | None:
        """Run a task on a model; return the error if what is finished is of something else."""
        try:
            _TaskOnModel(self, model, task).run()
        except ChangedError as error:
            return error
        return None


@dataclass
class _TaskOnModel:
    """All cells of one task on one model."""

    shared: _Run
    model: str
    task: str
    spent: dict[Cell, Spent] = field(default_factory=dict)
    failed: dict[Cell, Failure] = field(default_factory=dict)
    work: WorkLeft = field(default_factory=lambda: WorkLeft({}))

    def run(self) -> None:
        """Price, plan, prepare, measure and combine what is not finished.

        Raises ChangedError if finished results are of something else.
        """
        if self._is_stopping():
            return
        cells = self.shared.study.planned(self.model, self.task)
        self.shared.record.expect(planned.cell for planned in cells)
        finished = {planned.cell for planned in cells if self._is_finished(planned.cell)}
        chosen = self._chosen(cells, finished)
        if chosen is None:
            return
        todo = [planned for planned in chosen.planned if planned.cell not in finished]
        if todo:
            self.shared.announce(chosen)
        for cell, why in chosen.left_out.items():
            if cell in finished:
                continue
            self.shared.record.note_cell(cell, {"status": "skipped", "error": why})
        plan = self._plan(chosen.planned, todo)
        if plan is None:
            return
        for cell in (planned.cell for planned in cells if planned.cell in finished):
            self.shared.record.on_cell(cell, self.shared.record.of(cell))
        for planned in todo:
            if (failure := plan.refused.get(planned.cell)) is not None:
                self._fail(planned.cell, failure, may_skip=True)
        going = self._going(todo)
        seconds = {cost.cell: cost.seconds for cost in chosen.costs}
        self.work = WorkLeft(
            {each.cell: seconds.get(each.cell) for each in going},
            n_workers=len(self.shared.executors),
        )
        jobs = [job for some in _together(going, chosen) for job in self._jobs(some, plan)]
        if len(self.shared.executors) > 1:  # of what is prepared, every worker has need
            self._do([job for job in jobs if job.shard is None], plan)
            jobs = [job for job in jobs if job.shard is not None]
        self._do(jobs, plan)

    def _jobs(self, cells: Sequence[PlannedCell], plan: TaskPlan) -> list[Job]:
        """Return the jobs of cells that share clean passes: what is prepared, then the shards."""
        prepared = [planned for planned in cells if is_prepared(planned.analysis)]
        jobs = [Job(self.model, self.task, (planned,), None) for planned in prepared]
        keys = {planned.cell: plan.cells[planned.cell].keys for planned in cells}
        for group in plan.groups:
            shards = [i for i in group if any(i in of_cell for of_cell in keys.values())]
            asked = tuple(p for p in cells if not keys[p.cell].keys().isdisjoint(group))
            if shards:
                jobs.append(Job(self.model, self.task, asked, shards[0], (*shards[1:],)))
        return jobs

    def _is_stopping(self) -> bool:
        return self.shared.stopping.is_set()

    def _going(self, cells: Sequence[PlannedCell]) -> list[PlannedCell]:
        return [planned for planned in cells if planned.cell not in self.failed]

    def _is_finished(self, cell: Cell) -> bool:
        """Tell whether a cell is finished and its files are what was written."""
        record = self.shared.record
        if record.of(cell).get("status") != "ok":
            return False
        if damaged := damaged_files(record.out / cell.path):
            _log.warning("%s: %s damaged; made again from its parts", cell.path, ", ".join(damaged))
        return not damaged

    def _chosen(self, cells: Sequence[PlannedCell], finished: Set[Cell]) -> TaskPlanned | None:
        """Return what is to be run, as recorded if it was begun before; None if it cannot be."""
        record, n_workers = self.shared.record, len(self.shared.executors)
        if (kept := record.plan_of(self.model, self.task)) is not None:
            return TaskPlanned.from_json(kept, cells)
        todo = [planned for planned in cells if planned.cell not in finished]
        if not todo:
            return TaskPlanned(None, tuple(cells), ())
        doing = f"{self.model} · {self.task}: loading and timing{self._which_of_tasks}"
        self.shared.progress(Standing(doing))
        prices = self._asked("price", todo, cells)
        if prices is None:
            return None
        n_before = len(record.values.get("plan", {}))
        gone = time.monotonic() - self.shared.began
        minutes = share_of_next(self.shared.study, n_before, seconds=gone)
        chosen = choose(self.shared.study, cells, prices, minutes=minutes, n_workers=n_workers)
        record.note_plan(self.model, self.task, chosen.to_json())
        return chosen

    def _plan(self, cells: Sequence[PlannedCell], todo: Sequence[PlannedCell]) -> TaskPlan | None:
        """Return what is to be done; None, after failing `todo`, without a model or a task."""
        record = self.shared.record
        finished = {p.cell: record.of(p.cell)["identity"] for p in cells if p not in todo}
        plan: TaskPlan | None = self._asked("plan", todo, cells, finished)
        if plan is None:
            return None
        for cell, why in plan.changed.items():
            raise ChangedError(f"{record.out / cell.path} {why}; choose another --out")
        record.note_model(self.model, plan.model)
        record.note_task(self.task, plan.task)
        return plan

    def _asked(self, what: str, todo: Sequence[PlannedCell], *about: Any) -> Any:
        """Return what a worker answers; None, after failing `todo`, without a model or a task."""
        out = self.shared.record.out
        try:
            return call(self.shared.executors[0], what, self.model, self.task, *about)
        except Exception as error:
            if not todo:
                unchecked = f"what is finished of {self.model!r} cannot be checked: {error}"
                raise ChangedError(f"{out}: {unchecked}") from error
            if len(self.shared.study.models) == 1 and isinstance(error, ModelError):
                raise
            for planned in todo:
                self._fail(planned.cell, Failure.of(error))
            return None

    def _do(self, jobs: Sequence[Job], plan: TaskPlan) -> None:
        """Let workers do jobs; failed cells are skipped from then on, whole ones are finished."""
        outcomes = run_jobs(
            self.shared.executors,
            jobs,
            is_stopping=self._is_stopping,
            failed=self.failed,
            begin=lambda job: self._report(job, plan),
        )
        left = Counter(planned.cell for job in jobs for planned in job.cells)
        for job, outcome in outcomes:
            for planned in job.cells:
                cell, each = planned.cell, outcome.get(planned.cell)
                left[cell] -= 1
                if isinstance(each, Spent):
                    self.spent[cell] = self.spent.get(cell, Spent()) + each
                    if job.shard is not None:
                        self.work.add(cell, _share(cell, job, plan), each)
                elif each is not None and cell not in self.failed:
                    self._fail(cell, each, may_skip=job.shard is None)
                if job.shard is not None and not left[cell] and cell not in self.failed:
                    self._finish(planned, plan)

    def _report(self, job: Job, plan: TaskPlan) -> None:
        """Say which analysis of which prompts is begun."""
        cell = job.cells[0].cell
        keys = list(plan.cells[cell].keys)
        if job.shard is None:
            what = "preparing"
        else:
            counts = [len(plan.shards[i]) for i in keys]
            n = [count for i, count in zip(keys, counts, strict=True) if i in job.shards]
            done = sum(counts[: keys.index(job.shard)]) if job.shard in keys else 0
            what = f"prompts {done + 1}–{done + sum(n)} of {sum(counts)}"
            if len(n) > 1:
                what = f"{sum(n)} of {sum(counts)} prompts in turns"
        more = f" and {len(job.cells) - 1} more" if len(job.cells) > 1 else ""
        doing = f"{cell.model} · {cell.task} · {cell.name}{more}: {what}{self._which_of_tasks}"
        self.shared.progress(Standing(doing, self.work.share, self.work.seconds_left))

    @property
    def _which_of_tasks(self) -> str:
        """Return which of the run's tasks this is, for what is left is of this one only."""
        pairs = [*product(self.shared.study.models, self.shared.study.tasks)]
        if len(pairs) == 1:
            return ""
        return f"; of task {pairs.index((self.model, self.task)) + 1} of {len(pairs)}"

    def _fail(self, cell: Cell, failure: Failure, *, may_skip: bool = False) -> None:
        self.failed[cell] = failure
        self.work.drop(cell)
        is_skipped = may_skip and self.shared.study.only_fitting and failure.is_refusal
        status: Status = {"status": "skipped" if is_skipped else "failed", "error": failure.error}
        _log.warning("%s %s: %s", cell.path, status["status"], failure.error)
        trace = {} if is_skipped else {"traceback": failure.traceback}
        self.shared.record.note_cell(cell, status | trace)

    def _finish(self, planned: PlannedCell, plan: TaskPlan) -> None:
        """Combine the parts, write the result, and record the cell."""
        cell, folder = planned.cell, self.shared.record.out / planned.cell.path
        own = plan.cells[cell]
        measured = [
            prompt for i in own.keys for prompt in plan.shards[i] if prompt.id not in own.without
        ]
        try:
            result = planned.analysis.combine(self._parts(cell, plan))
            status = _status_of(planned.analysis, result) | {
                "n_prompts": len(measured),
                "n_shards": len(own.keys),
                "left_out": ", ".join(filter(None, (plan.left_out, own.left_out))),
                "identity": asdict(own.identity),
                **_costs(self.spent.get(cell, Spent())),
            }
            if own.left_out:
                status["prompts"] = _numbers_of(measured, plan)
                lines = Task("measured", tuple(measured)).to_lines()
                write_atomically(folder / "prompts.jsonl", lines)
            self._remove_earlier(cell, plan)
            write_result(result, folder, status)
        except Exception as error:
            self._fail(cell, Failure.of(error))
            return
        _log.info("%s finished", cell.path)
        self.shared.record.note_cell(cell, status)

    def _remove_earlier(self, cell: Cell, plan: TaskPlan) -> None:
        """Remove the parts and prompts that a cell's folder has of an earlier plan."""
        out, own = self.shared.record.out, plan.cells[cell]
        parts = {part_path(out, cell, i) for i in own.keys}
        for path in (out / cell.path / "parts").glob("*.safetensors"):
            if path not in parts:
                path.unlink(missing_ok=True)
        if not own.left_out:
            (out / cell.path / "prompts.jsonl").unlink(missing_ok=True)

    def _parts(self, cell: Cell, plan: TaskPlan) -> list[Tensors]:
        parts = []
        for i, key in plan.cells[cell].keys.items():
            path = part_path(self.shared.record.out, cell, i)
            part = read_part(path, key)
            if part is None:
                raise RunError(
                    f"{path} was damaged after it was written; the same command computes it again"
                )
            parts.append(part)
        return parts


def _together(cells: Sequence[PlannedCell], chosen: TaskPlanned) -> list[list[PlannedCell]]:
    """Return cells in the groups in which they run: those that hardly cost more than a clean pass.

    They share it and come first; the others run one after another, so that each is soon finished.
    """
    per_prompt = {cost.cell: cost.forwards / max(1, cost.n_prompts) for cost in chosen.costs}
    cheap = [planned for planned in cells if per_prompt.get(planned.cell, 0.0) <= _CHEAP]
    rest = [[planned] for planned in cells if planned not in cheap]
    return [cheap, *rest] if cheap else rest


def _share(cell: Cell, job: Job, plan: TaskPlan) -> float:
    """Return which share of its prompts a cell measures in a job."""
    n_prompts = {i: len(plan.shards[i]) for i in plan.cells[cell].keys}
    return sum(n_prompts.get(i, 0) for i in job.shards) / sum(n_prompts.values())


def _status_of(analysis: Analysis, result: Result) -> Status:
    """Return what run.json says of an analysis and its findings."""
    findings = result.findings()
    return {
        "status": "ok",
        "parameters": asdict(analysis),
        "question": type(analysis).question,
        "how": type(analysis).how,
        "caveat": type(analysis).caveat,
        "summary": findings[0].claim,
        "findings": [finding.to_json() for finding in findings],
    }


def _costs(spent: Spent) -> Status:
    return {
        "seconds": round(spent.seconds, 3),
        "forwards_per_prompt": round(spent.block_tokens / max(spent.forward_tokens, 1.0), 4),
        "peak_memory_mb": spent.peak_memory_mb,
    }


def _numbers_of(measured: Sequence[Prompt], plan: TaskPlan) -> list[int]:
    """Return which of the task's prompts were measured."""
    ids = {prompt.id for prompt in measured}
    every = [prompt for shard in plan.shards for prompt in shard]
    return [i for i, prompt in enumerate(every) if prompt.id in ids]
