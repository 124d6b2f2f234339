"""Executing a study into a run folder: shard by shard, one recording for every analysis, resumable at any moment."""

import platform
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from interp import __version__
from interp.analysis import Analysis, Result
from interp.catalogue import make_analysis
from interp.errors import InterpError, RunError
from interp.folder import SCHEMA, Cell, read_run, write_atomically, write_json
from interp.models import Model, load_model
from interp.shapes import Tensors
from interp.tasks import Task, load_task
from interp.tasks.batch import TokenBatch


@dataclass(frozen=True)
class Study:
    """Analyses (name to parameters) of tasks on models; `n` prompts of each task, drawn with `seed`."""

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    analyses: dict[str, dict[str, Any]]
    n: int | None = None
    seed: int = 0

    def cells(self) -> list[Cell]:
        """Return every cell of the study in the order in which it runs."""
        return [Cell(m, t, a) for m in self.models for t in self.tasks for a in self.analyses]

    def make(self, name: str) -> Analysis:
        """Return one analysis with its parameters."""
        parameters = self.analyses[name]
        return make_analysis(name, {"seed": self.seed} | parameters)


Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Plan:
    """What a run would do: shards, forwards and numbers written, per cell."""

    cell: Cell
    n_prompts: int
    n_shards: int
    forwards: float
    megabytes: float


def plan(study: Study) -> list[Plan]:
    """Return the cost of every cell, without running any; raises for whatever would make the run fail at once."""
    plans = []
    for model_name in study.models:
        model = load_model(model_name)
        for task_name in study.tasks:
            task = load_task(task_name, n=study.n, seed=study.seed)
            shards = [model.tokenize(shard) for shard in model.shards(task)]
            for name in study.analyses:
                costs = [study.make(name).cost(model, shard) for shard in shards]
                forwards = sum(c.forwards * len(s.prompts) for c, s in zip(costs, shards, strict=True)) + len(task)
                megabytes = sum(c.numbers for c in costs) * 4 / 1e6
                plans.append(Plan(Cell(model_name, task_name, name), len(task), len(shards), forwards, megabytes))
    return plans


def execute(study: Study, out: Path, *, store: Path | None = None, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Run what is not finished yet and return run.json; finished parts of an interrupted run are kept.

    Raises RunError if the folder holds a run of another configuration.
    """
    for name in study.analyses:
        study.make(name)
    tasks = {name: load_task(name, n=study.n, seed=study.seed) for name in study.tasks}
    run = _open(study, out)
    for model_name in study.models:
        todo = [c for c in study.cells() if c.model == model_name and run["cells"].get(c.path, {}).get("status") != "ok"]
        if not todo:
            continue
        model = load_model(model_name, store=store)
        run["models"][model_name] = _describe(model)
        for task_name, task in tasks.items():
            cells = [cell for cell in todo if cell.task == task_name]
            for cell, status in _run_cells(study, model, task, cells, out, progress=progress):
                run["cells"][cell.path] = asdict(cell) | status
                write_json(out / "run.json", run)
    return run


def _open(study: Study, out: Path) -> dict[str, Any]:
    config = asdict(study)
    config = {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
    if (out / "run.json").exists():
        run = read_run(out)
        different = [key for key in config if run["config"].get(key) != config[key]]
        if different:
            key = different[0]
            raise RunError(
                f"{out} holds a run with {key} = {run['config'].get(key)}; {config[key]} was asked for; choose another --out"
            )
        return run
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
        "machine": f"{platform.system()} {platform.machine()}",
        "models": {},
        "cells": {},
    }
    try:
        write_json(out / "run.json", run)
    except OSError as error:
        raise RunError(f"cannot write to {out}: {error.strerror}") from None
    return run


def _describe(model: Model) -> dict[str, Any]:
    return {
        "fingerprint": model.fingerprint,
        "layers": model.n_layers,
        "d_model": model.d_model,
        "d_vocab": model.d_vocab,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
    }


@torch.no_grad()
def _run_cells(
    study: Study, model: Model, task: Task, cells: list[Cell], out: Path, *, progress: Progress
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Measure the shards of several analyses side by side, one recording a shard; yield each cell's status."""
    shards = [model.tokenize(shard) for shard in model.shards(task)]
    running: dict[Cell, _Running] = {}
    for cell in cells:
        try:
            analysis = study.make(cell.analysis)
            for shard in shards:
                analysis.check(model, shard)
            running[cell] = _Running(analysis, analysis.prepare(model, task), out / cell.path)
        except InterpError as error:
            yield cell, {"status": "failed", "error": str(error)}
    for i, shard in enumerate(shards):
        progress(f"{model.name} · {task.name}", i, len(shards))
        recording = model.record(shard)
        for cell in list(running):
            try:
                running[cell].measure(i, recording, shard)
            except (InterpError, RuntimeError, ValueError, OSError) as error:
                del running[cell]
                yield cell, {"status": "failed", "error": str(error), "traceback": traceback.format_exc()}
    for cell, state in running.items():
        yield cell, state.finish(n_prompts=len(task))
    progress(f"{model.name} · {task.name}", len(shards), len(shards))


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

    def measure(self, i: int, recording: Any, shard: TokenBatch) -> None:
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

    def finish(self, *, n_prompts: int) -> dict[str, Any]:
        """Combine the parts, write the result, and return the cell's status."""
        result = self.analysis.combine(self.parts)
        write_result(result, self.folder)
        return {
            "status": "ok",
            "parameters": asdict(self.analysis),
            "question": type(self.analysis).question,
            "n_prompts": n_prompts,
            "n_shards": len(self.parts),
            "summary": result.summary(),
            "seconds": round(self.seconds, 3),
            "forwards_per_prompt": round(self.block_tokens / self.forward_tokens, 4),
        }


def _read_part(path: Path) -> Tensors | None:
    if not path.exists():
        return None
    try:
        return load_file(path)
    except (SafetensorError, OSError):
        path.unlink()
        return None


def write_result(result: Result, folder: Path) -> None:
    """Write frame.parquet and figure.json."""
    frame = result.to_frame()
    narrow = frame.astype({column: "float32" for column in frame.select_dtypes("float64")})
    write_atomically(folder / "frame.parquet", narrow.to_parquet(index=False))
    write_atomically(folder / "figure.json", str(result.plot().to_json()))


class Run:
    """A finished run folder: `run["zoo/hops-4l", "two-hop", "layer_skip"]` is that cell's result."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info = read_run(folder)

    def __getitem__(self, key: tuple[str, str, str]) -> Result:
        cell = Cell(*key)
        info = self.info["cells"].get(cell.path)
        if info is None or info["status"] != "ok":
            there_is = ", ".join(path for path, c in self.info["cells"].items() if c["status"] == "ok")
            raise RunError(f"no result {cell.path} in {self.folder}; there is {there_is or 'none'}")
        parts = sorted((self.folder / cell.path / "parts").glob("*.safetensors"))
        parameters = {k: v for k, v in info["parameters"].items() if v is not None}
        return make_analysis(cell.analysis, parameters).combine([load_file(part) for part in parts])


def open_run(folder: str | Path) -> Run:
    """Open a run folder."""
    return Run(Path(folder))
