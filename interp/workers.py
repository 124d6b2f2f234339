"""Who does the work of a run: this process, several processes, or actors of a Ray cluster; all run the same `Worker`.

A job is a shard of prompts and the analyses that ask about it (or one analysis to prepare). Its outcome is written into the
run folder, whole or not at all, so that a job can be done twice, by anyone, at any time.
"""

import json
import resource
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from interp.analysis import Analysis
from interp.errors import InterpError
from interp.folder import Cell, digest_of, write_json
from interp.models import Model, load_model
from interp.parts import key_of, pack, read_part, write_part
from interp.shapes import Tensors
from interp.study import Study
from interp.tasks import Prompt, Task
from interp.tasks.batch import TokenBatch, put_in_front
from interp.tasks.fitting import Fitted

EXPECTED = (InterpError, RuntimeError, ValueError, OSError)


@dataclass(frozen=True)
class Job:
    """A shard that is measured for several cells, or (`shard` None) one cell that is prepared."""

    model: str
    task: str
    cells: tuple[Cell, ...]
    shard: int | None = None


@dataclass(frozen=True)
class Spent:
    """What a cell cost: seconds, blocks run (as tokens) beside those of one forward, and the process's peak memory."""

    seconds: float = 0.0
    block_tokens: float = 0.0
    forward_tokens: float = 0.0
    peak_memory_mb: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            self.seconds + other.seconds,
            self.block_tokens + other.block_tokens,
            self.forward_tokens + other.forward_tokens,
            max(self.peak_memory_mb, other.peak_memory_mb),
        )


@dataclass(frozen=True)
class Failure:
    """Why a cell failed."""

    error: str
    traceback: str
    is_refusal: bool = False

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        return cls(
            str(error) or type(error).__name__, "".join(traceback.format_exception(error)), isinstance(error, InterpError)
        )


Outcome = dict[Cell, Spent | Failure]


@dataclass(frozen=True)
class Plan:
    """A task on a model: the model's description, the prompts of every shard, and which cells do not suit them."""

    model: dict[str, Any]
    shards: tuple[tuple[Prompt, ...], ...]
    left_out: str
    refused: Mapping[Cell, Failure]


def part_key(fingerprint: str, analysis: Analysis, prompts: Iterable[Prompt]) -> str:
    """Return a hash of all that a part depends on."""
    return key_of(fingerprint, type(analysis).__name__, asdict(analysis), [asdict(prompt) for prompt in prompts])


def part_path(out: Path, cell: Cell, shard: int) -> Path:
    """Return where a cell's part of one shard is."""
    return out / cell.path / "parts" / f"{shard:05d}.safetensors"


@dataclass
class Worker:
    """Holds one model at a time and does jobs on it."""

    study: Study
    out: Path
    store: str | Path | None = None
    _model: Model | None = None
    _drawn: dict[tuple[str, str], Fitted] = field(default_factory=dict)
    _prepared: dict[Cell, Tensors] = field(default_factory=dict)

    def plan(self, model: str, task: str) -> Plan:
        """Return the shards of a task on a model."""
        loaded, drawn = self._load(model), self._draw(model, task)
        shards = tuple(loaded.shards(drawn.task))
        batches, refused = [loaded.tokenize(shard) for shard in shards], {}
        self._keep_tokens(loaded, task, batches)
        for cell in (cell for cell in self.study.cells() if (cell.model, cell.task) == (model, task)):
            try:
                for batch in batches:
                    self.study.make(cell).check(loaded, batch)
            except EXPECTED as error:
                refused[cell] = Failure.of(error)
        return Plan(describe(loaded), shards, str(drawn), refused)

    def _keep_tokens(self, model: Model, task: str, batches: Sequence[TokenBatch]) -> None:
        """Write the tokens of every prompt, and once a model the text of every token, for readers without a tokenizer."""
        rows = [row[row_mask].tolist() for batch in batches for row, row_mask in zip(batch.tokens, batch.mask, strict=True)]
        write_json(self.out / Cell(model.name, task, "").path / "tokens.json", {"tokens": rows}, indent=None)
        path = self.out / Cell(model.name, "", "").path / "vocabulary.json"
        if not path.exists():
            texts = model.tokenizer.batch_decode([[i] for i in range(model.d_vocab)])
            write_json(path, {"vocabulary": texts})

    @torch.no_grad()
    def do(self, job: Job) -> Outcome:
        """Do a job and return what it cost, or why it failed, by cell."""
        if job.shard is None:
            return {cell: self._prepare(cell) for cell in job.cells}
        model = self._load(job.model)
        prompts = model.shards(self._draw(job.model, job.task).task)[job.shard]
        shard = model.tokenize(prompts)
        recording = model.record(shard)
        return {cell: self._measure(cell, job.shard, recording, shard) for cell in job.cells}

    def _load(self, name: str) -> Model:
        if self._model is None or self._model.name != name:
            self._model = None
            self._prepared.clear()
            self._model = load_model(name, store=self.store, dtype=self.study.dtype, device_map=self.study.device_map)
        return self._model

    def _draw(self, model: str, task: str) -> Fitted:
        if (model, task) not in self._drawn:
            self._drawn[model, task] = self.study.draw(self._load(model), self._task(task))
        return self._drawn[model, task]

    def _task(self, name: str) -> Task:
        return self.study.load_tasks()[name]

    def _prepare(self, cell: Cell) -> Spent | Failure:
        model, analysis = self._load(cell.model), self.study.make(cell)
        began, before = time.monotonic(), model.work.block_tokens
        try:
            self._prepared[cell] = self._prepared_for(cell, analysis, model)
        except EXPECTED as error:
            return Failure.of(error)
        return Spent(time.monotonic() - began, model.work.block_tokens - before, 0.0, _peak_mb())

    def _prepared_for(self, cell: Cell, analysis: Analysis, model: Model) -> Tensors:
        """Return what a cell needs for every shard: computed once, by whichever worker comes first, and kept."""
        if type(analysis).prepare is Analysis.prepare:
            return {}
        task = self._draw(cell.model, cell.task).task
        path, key = self.out / cell.path / "prepared.safetensors", part_key(model.fingerprint, analysis, task.prompts)
        if (found := read_part(path, key, device=model.device)) is not None:
            return found
        prepared = analysis.prepare(model, task)
        write_part(path, pack(prepared, key))
        return prepared

    def _measure(self, cell: Cell, i: int, recording: Any, shard: TokenBatch) -> Spent | Failure:
        model, analysis, path = self._load(cell.model), self.study.make(cell), part_path(self.out, cell, i)
        key = part_key(model.fingerprint, analysis, shard.prompts)
        began, before = time.monotonic(), recording.work.block_tokens
        try:
            if read_part(path, key) is None:
                if cell not in self._prepared:
                    self._prepared[cell] = self._prepared_for(cell, analysis, model)
                write_part(path, pack(analysis.measure(recording, shard, self._prepared[cell]), key))
        except EXPECTED as error:
            return Failure.of(error)
        spent = recording.work.block_tokens - before
        return Spent(time.monotonic() - began, spent, float(shard.tokens.numel() * recording.n_layers), _peak_mb())


def describe(model: Model) -> dict[str, Any]:
    """Return what a run remembers of a model."""
    made_from = getattr(model.module.config, "made_from", None)  # of weights that are not the published ones
    return ({"made from": made_from} if made_from else {}) | {
        "fingerprint": model.fingerprint,
        "layers": model.n_layers,
        "d_model": model.d_model,
        "d_vocab": model.d_vocab,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "attention": getattr(model.module.config, "_attn_implementation", None),
        "revision": getattr(model.module.config, "_commit_hash", None),
        "tokenizer": None if model.tokenizer is None else _hash_of(model.tokenizer),
        "before every prompt": None if model.tokenizer is None else " ".join(put_in_front(model.tokenizer)) or "nothing",
    }


def _hash_of(tokenizer: Any) -> str:
    """Return a hash of how a tokenizer turns text into tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)  # without one, its words alone are known
    told = json.dumps(sorted(tokenizer.get_vocab().items())) if backend is None else backend.to_str()
    return digest_of(f"{told}{tokenizer.special_tokens_map}{tokenizer.chat_template}".encode())


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
