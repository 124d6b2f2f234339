"""Executing a study into a run folder: shard by shard, one recording for every analysis, resumable at any moment."""

import json
import platform
import resource
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from interp import __version__
from interp.analysis import Analysis, Result
from interp.catalogue import make_analysis
from interp.errors import InterpError, ModelError, RunError, TaskError
from interp.folder import SCHEMA, Cell, read_run, write_atomically, write_json
from interp.models import Model, load_model
from interp.models.loading import locate
from interp.replay import Recording
from interp.shapes import Tensors
from interp.tasks import Task, load_task
from interp.tasks.batch import TokenBatch
from interp.tasks.fitting import Fitted

Progress = Callable[[str, int, int], None]
Status = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """Analyses (name to parameters) of tasks on models; `n` prompts of each task, drawn with `seed`.

    With `only_fitting`, an analysis that a task does not suit is skipped with the reason, instead of failed.
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    analyses: Mapping[str, Mapping[str, Any]]
    n: int | None = None
    seed: int = 0
    only_fitting: bool = False

    def cells(self) -> list[Cell]:
        """Return every cell of the study in the order in which it runs."""
        return [Cell(m, t, a) for m in self.models for t in self.tasks for a in self.analyses]

    def make(self, name: str) -> Analysis:
        """Return one analysis with its parameters; the study's seed, unless it has its own."""
        return make_analysis(name, {"seed": self.seed} | dict(self.analyses[name]))

    def load_tasks(self) -> dict[str, Task]:
        """Return the study's tasks, whole."""
        return {name: load_task(name) for name in self.tasks}

    def draw(self, model: Model, task: Task) -> Fitted:
        """Return `n` of the prompts that a model's tokenizer can serve."""
        fitted = model.fit(task)
        return fitted if self.n is None else replace(fitted, task=fitted.task.take(self.n, seed=self.seed))

    def check(self) -> dict[str, Task]:
        """Return the study's prompts; raise for names and values that do not exist, before any work."""
        for name in self.analyses:
            self.make(name)
        for name in self.models:
            locate(name)
        if self.n is not None and self.n < 1:
            raise TaskError(f"{self.n} prompts asked for; at least 1 is needed")
        return self.load_tasks()


@dataclass(frozen=True)
class Estimate:
    """What a cell would cost: forwards of one prompt, memory held at once, disk written (the store not counted)."""

    cell: Cell
    n_prompts: int
    n_shards: int
    forwards: float
    memory_mb: float
    disk_mb: float


def estimate(study: Study) -> list[Estimate]:
    """Return the cost of every cell, without running any."""
    tasks = study.check()
    estimates = []
    for model_name in study.models:
        model = load_model(model_name)
        for task_name, task in tasks.items():
            drawn = study.draw(model, task).task
            shards = [model.tokenize(shard) for shard in model.shards(drawn)]
            for name in study.analyses:
                costs = [study.make(name).cost(model, shard) for shard in shards]
                forwards = sum((1 + cost.forwards) * len(shard.prompts) for cost, shard in zip(costs, shards, strict=True))
                clean = max((3 * model.n_layers + 1) * shard.tokens.numel() * model.d_model for shard in shards)
                held = model.module.get_memory_footprint() + 4 * (clean + max(cost.held for cost in costs))
                disk = 4 * sum(cost.numbers for cost in costs)
                cell = Cell(model_name, task_name, name)
                estimates.append(Estimate(cell, len(drawn), len(shards), forwards, held / 1e6, disk / 1e6))
    return estimates


def execute(study: Study, out: Path, *, store: Path | None = None, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Run what is not finished yet and return run.json; finished parts of an interrupted run are kept.

    A cell that fails is recorded with its error and does not stop the others. Raises before any work for names and values
    that do not exist, and for a folder that holds a run of another configuration.
    """
    tasks = study.check()
    run = _open(study, out, tasks)
    for model_name in study.models:
        done = {path for path, cell in run["cells"].items() if cell["status"] == "ok"}
        todo = [cell for cell in study.cells() if cell.model == model_name and cell.path not in done]
        if not todo:
            continue
        try:
            model = load_model(model_name, store=store)
            _remember(run, "models", model_name, _describe(model), out)
        except ModelError as error:
            if len(study.models) == 1:
                raise
            _record(run, out, ((cell, _failed(error)) for cell in todo))
            continue
        for task_name, task in tasks.items():
            cells = [cell for cell in todo if cell.task == task_name]
            _record(run, out, _run_cells(study, model, task, cells, out, progress=progress))
    return run


def _open(study: Study, out: Path, tasks: Mapping[str, Task]) -> dict[str, Any]:
    """Return run.json of a new run, or of the same one started earlier."""
    config = json.loads(json.dumps(asdict(study)))
    if (out / "run.json").exists():
        run = read_run(out)
        for key, value in config.items():
            if run["config"].get(key) != value:
                raise RunError(
                    f"{out} holds a run with {key} = {run['config'].get(key)}; {value} was asked for; choose another --out"
                )
    else:
        run = {
            "schema": SCHEMA,
            "config": config,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {
                "interp": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
            "models": {},
            "tasks": {},
            "cells": {},
        }
    for name, task in tasks.items():
        _remember(run, "tasks", name, _describe_task(task), out)
    return run


def _remember(run: dict[str, Any], kind: str, name: str, described: dict[str, Any], out: Path) -> None:
    """Note what a model or task is; refuse to go on with a run whose model or prompts have changed since."""
    before = run[kind].get(name)
    identity = {"models": "fingerprint", "tasks": "hash"}[kind]
    if before is not None and before[identity] != described[identity]:
        raise RunError(f"{out} holds results of another {name!r}: its {identity} has changed; choose another --out")
    run[kind][name] = described
    try:
        write_json(out / "run.json", run)
    except OSError as error:
        raise RunError(f"cannot write {out / 'run.json'}: {error.strerror}") from None


def _describe(model: Model) -> dict[str, Any]:
    return {
        "fingerprint": model.fingerprint,
        "layers": model.n_layers,
        "d_model": model.d_model,
        "d_vocab": model.d_vocab,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
    }


def _describe_task(task: Task) -> dict[str, Any]:
    prompts = json.dumps([asdict(prompt) for prompt in task.prompts], sort_keys=True, ensure_ascii=False)
    return {"prompts": len(task), "hash": blake2b(prompts.encode(), digest_size=16).hexdigest()}


def _record(run: dict[str, Any], out: Path, finished: Iterator[tuple[Cell, Status]]) -> None:
    for cell, status in finished:
        run["cells"][cell.path] = asdict(cell) | status
        try:
            write_json(out / "run.json", run)
        except OSError as error:
            raise RunError(f"cannot write {out / 'run.json'}: {error.strerror}; what is finished is kept") from None


def _failed(error: Exception) -> Status:
    return {"status": "failed", "error": str(error) or type(error).__name__, "traceback": traceback.format_exc()}


@torch.no_grad()
def _run_cells(
    study: Study, model: Model, task: Task, cells: Sequence[Cell], out: Path, *, progress: Progress
) -> Iterator[tuple[Cell, Status]]:
    """Measure the shards of several analyses side by side, one recording a shard; yield each cell's status."""
    try:
        drawn = study.draw(model, task)
        task = drawn.task
        shards = [model.tokenize(shard) for shard in model.shards(task)]
    except InterpError as error:
        yield from ((cell, _failed(error)) for cell in cells)
        return
    running: dict[Cell, _Running] = {}
    for cell in cells:
        try:
            analysis = study.make(cell.analysis)
            for shard in shards:
                analysis.check(model, shard)
            running[cell] = _prepared(analysis, model, task, folder=out / cell.path)
        except InterpError as error:
            yield cell, {"status": "skipped", "error": str(error)} if study.only_fitting else _failed(error)
        except (RuntimeError, ValueError, OSError) as error:
            yield cell, _failed(error)
    for i, shard in enumerate(shards):
        progress(f"{model.name} · {task.name}", i, len(shards))
        recording = model.record(shard)
        for cell in list(running):
            try:
                running[cell].measure(i, recording, shard)
            except (InterpError, RuntimeError, ValueError, OSError) as error:
                del running[cell]
                yield cell, _failed(error)
    for cell, state in running.items():
        try:
            yield cell, state.finish(shards, left_out=str(drawn))
        except (InterpError, RuntimeError, ValueError, OSError) as error:
            yield cell, _failed(error)
    progress(f"{model.name} · {task.name}", len(shards), len(shards))


def _prepared(analysis: Analysis, model: Model, task: Task, *, folder: Path) -> "_Running":
    began, before = time.monotonic(), model.work.block_tokens
    prepared = analysis.prepare(model, task)
    seconds, block_tokens = time.monotonic() - began, model.work.block_tokens - before
    return _Running(analysis, prepared, folder, seconds=seconds, block_tokens=block_tokens)


@dataclass
class _Running:
    """One cell under way: its finished parts and what they cost."""

    analysis: Analysis
    prepared: Tensors
    folder: Path
    parts: list[Tensors] = field(default_factory=list)
    seconds: float = 0.0
    block_tokens: float = 0.0
    forward_tokens: float = 0.0

    def measure(self, i: int, recording: Recording, shard: TokenBatch) -> None:
        """Measure one shard, or read it if an interrupted run left it whole."""
        path = self.folder / "parts" / f"{i:05d}.safetensors"
        began, before = time.monotonic(), recording.work.block_tokens
        part = _read_part(path)
        if part is None:
            part = {k: v.contiguous() for k, v in self.analysis.measure(recording, shard, self.prepared).items()}
            write_atomically(path, save(part))
        self.parts.append(part)
        self.seconds += time.monotonic() - began
        self.block_tokens += recording.work.block_tokens - before
        self.forward_tokens += shard.tokens.numel() * recording.n_layers

    def finish(self, shards: Sequence[TokenBatch], *, left_out: str) -> Status:
        """Combine the parts, write the result, and return the cell's status."""
        result = self.analysis.combine(self.parts)
        status = {
            "status": "ok",
            "parameters": asdict(self.analysis),
            "question": type(self.analysis).question,
            "n_prompts": sum(len(shard.prompts) for shard in shards),
            "n_shards": len(shards),
            "left_out": left_out,
            "summary": result.summary(),
            "seconds": round(self.seconds, 3),
            "forwards_per_prompt": round(self.block_tokens / self.forward_tokens, 4),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        prompts = [prompt for shard in shards for prompt in shard.prompts]
        Task("measured", tuple(prompts)).to_jsonl(self.folder.parent / "prompts.jsonl")
        write_result(result, self.folder, status)
        return status


def _read_part(path: Path) -> Tensors | None:
    """Return a part that an interrupted run finished; None if there is none, or it is not whole."""
    if not path.exists():
        return None
    try:
        return load_file(path)
    except (SafetensorError, OSError):
        path.unlink()
        return None


def write_result(result: Result, folder: Path, status: Status) -> None:
    """Write frame.parquet, figure.json and, last, result.json."""
    frame = result.to_frame()
    narrow = frame.astype(dict.fromkeys(frame.select_dtypes("float64"), "float32"))
    write_atomically(folder / "frame.parquet", narrow.to_parquet(index=False))
    write_atomically(folder / "figure.json", str(result.plot().to_json()))
    write_json(folder / "result.json", status)


class Run:
    """A run folder: `run["zoo/hops-4l", "two-hop", "layer_skip"]` is that cell's result."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info = read_run(folder)

    def __getitem__(self, key: tuple[str, str, str]) -> Result:
        cell = Cell(*key)
        info = self.info["cells"].get(cell.path)
        if info is None or info["status"] != "ok":
            there_is = ", ".join(path for path, c in self.info["cells"].items() if c["status"] == "ok")
            raise RunError(f"no result {cell.path} in {self.folder}; there is {there_is or 'none'}")
        parts = [load_file(path) for path in sorted((self.folder / cell.path / "parts").glob("*.safetensors"))]
        return make_analysis(cell.analysis, info["parameters"]).combine(parts)

    def prompts(self, model: str, task: str) -> tuple[Any, ...]:
        """Return the prompts of a task in the order in which its results number them."""
        return Task.from_jsonl(self.folder / Cell(model, task, "").path / "prompts.jsonl").prompts


def open_run(folder: str | Path) -> Run:
    """Open a run folder; raises RunError if there is none."""
    return Run(Path(folder))
