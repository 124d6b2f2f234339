"""Who does the work of a run: this process, several processes, or actors of a Ray cluster; all run
the same `Worker`.

A job is a shard of prompts and the analyses that ask about it (or one analysis to prepare). Its
outcome is written into the run folder, whole or not at all, so that a job can be done twice, by
anyone, at any time.
"""

import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from interp.analysis import Analysis, Usable, usable_shards
from interp.errors import InterpError
from interp.files.whole import write_atomically, write_json
from interp.models import Model, load_model
from interp.runs.folder import Cell, folder_name, task_path
from interp.runs.identity import Fed, NumberIdentity, hash_of_task, hash_of_tokenizer
from interp.runs.parts import pack, read_part, write_part
from interp.runs.study import Study
from interp.shapes import Tensors
from interp.tasks import Prompt, Task
from interp.tasks.batch import TokenBatch
from interp.tasks.encoding import put_in_front
from interp.tasks.fitting import Fitted


@dataclass(frozen=True)
class Job:
    """A shard that is measured for several cells, or (`shard` None) one cell that is prepared."""

    model: str
    task: str
    cells: tuple[Cell, ...]
    shard: int | None = None


@dataclass(frozen=True)
class Spent:
    """What a cell cost: seconds, blocks run (as tokens) beside those of one forward, and the
    process's peak memory.
    """

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
        is_refusal = isinstance(error, InterpError)
        told = str(error) if is_refusal or isinstance(error, OSError) else _with_place(error)
        return cls(
            told or type(error).__name__, "".join(traceback.format_exception(error)), is_refusal
        )


def _with_place(error: BaseException) -> str:
    """Return an error that nobody expected as its class, its message and where it came from."""
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = (
        f" ({Path(place[0].filename).name}:{place[0].lineno}, in {place[0].name})" if place else ""
    )
    return f"{type(error).__name__}: {str(error).strip()}{where}"


Outcome = dict[Cell, Spent | Failure]


@dataclass(frozen=True)
class Question:
    """A cell of a plan: what its numbers would be of, as a whole and shard by shard, and the
    prompts that it leaves out.
    """

    identity: NumberIdentity
    keys: Mapping[int, str]
    left_out: str


@dataclass(frozen=True)
class Plan:
    """A task on a model: the model's description, the task's hash, the prompts of every shard, and
    what becomes of cells.

    Every cell is in one of `questions`, `refused` (it does not suit the task) and `changed` (what
    is finished of it is of something else, named in words).
    """

    model: dict[str, Any]
    task: dict[str, Any]
    shards: tuple[tuple[Prompt, ...], ...]
    left_out: str
    questions: Mapping[Cell, Question]
    refused: Mapping[Cell, Failure]
    changed: Mapping[Cell, str]


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
    _batches: dict[tuple[str, str], list[TokenBatch]] = field(default_factory=dict)
    _fed: dict[tuple[str, str], list[Fed]] = field(default_factory=dict)
    _usable: dict[Cell, Usable] = field(default_factory=dict)

    @torch.no_grad()
    def plan(self, model: str, task: str, finished: Mapping[Cell, Mapping[str, str]]) -> Plan:
        """Return the shards of a task on a model, and what its cells would be of; `finished` is
        what they were of.
        """
        loaded = self._load(model)
        with loaded.running:
            drawn, batches = self._draw(model, task), self._tokenized(model, task)
            questions: dict[Cell, Question] = {}
            refused: dict[Cell, Failure] = {}
            changed: dict[Cell, str] = {}
            of_model = NumberIdentity.of_model(loaded)
            for cell in (
                cell for cell in self.study.cells() if (cell.model, cell.task) == (model, task)
            ):
                try:
                    questions[cell] = self._question(cell, of_model)
                except Exception as error:
                    refused[cell] = Failure.of(error)
                    if cell in finished:
                        changed[cell] = "prompts or weights, which it cannot measure"
                    continue
                if cell in finished and (other := questions[cell].identity.changed(finished[cell])):
                    changed[cell] = ", ".join(other)
            if not changed:
                self._keep_prompts(loaded, task, batches, is_new=not finished)
            shards = tuple(batch.prompts for batch in batches)
            about = {"prompts": len(drawn.task), "hash": hash_of_task(drawn.task)}
            return Plan(describe(loaded), about, shards, str(drawn), questions, refused, changed)

    def _question(self, cell: Cell, of_model: NumberIdentity) -> Question:
        usable, asked = (
            self._usable_shards(cell),
            of_model.asking(self.study.make(cell), self._load(cell.model)),
        )
        fed = self._fed_with(cell.model, cell.task)
        return Question(
            asked.about([fed[i] for i in usable.shards]),
            {i: asked.about([fed[i]]).key for i in usable.shards},
            usable.left_out(self._tokenized(cell.model, cell.task)),
        )

    def _keep_prompts(
        self, model: Model, task: str, batches: Sequence[TokenBatch], *, is_new: bool
    ) -> None:
        """Write prompts and their tokens, and once a model the text of every token, for readers
        without a tokenizer.
        """
        folder = self.out / task_path(model.name, task)
        prompts = Task("measured", tuple(prompt for batch in batches for prompt in batch.prompts))
        write_atomically(folder / "prompts.jsonl", prompts.to_lines())
        rows = [
            row[row_mask].tolist()
            for batch in batches
            for row, row_mask in zip(batch.tokens, batch.mask, strict=True)
        ]
        write_json(folder / "tokens.json", {"tokens": rows}, indent=None)
        path, names = (
            self.out / folder_name(model.name) / "vocabulary.json",
            self._draw(model.name, task).task.names,
        )
        if not path.exists() or names or is_new:
            write_json(path, {"vocabulary": _vocabulary(model, names)})

    @torch.no_grad()
    def do(self, job: Job) -> Outcome:
        """Do a job and return what it cost, or why it failed, by cell."""
        model = self._load(job.model)
        with model.running:
            of_model = NumberIdentity.of_model(model)
            if job.shard is None:
                return {cell: self._prepare(cell, of_model) for cell in job.cells}
            shard = self._tokenized(job.model, job.task)[job.shard]
            recording = model.record(shard)
            return {cell: self._measure(cell, job.shard, recording, of_model) for cell in job.cells}

    def _load(self, name: str) -> Model:
        if self._model is None or self._model.name != name:
            self._model = None
            for known in (self._prepared, self._batches, self._fed, self._usable):
                known.clear()
            self._model = load_model(
                name, store=self.store, dtype=self.study.dtype, device_map=self.study.device_map
            )
        return self._model

    def _draw(self, model: str, task: str) -> Fitted:
        if (model, task) not in self._drawn:
            self._drawn[model, task] = self.study.draw(self._load(model), self._task(task))
        return self._drawn[model, task]

    def _task(self, name: str) -> Task:
        return self.study.load_tasks()[name]

    def _tokenized(self, model: str, task: str) -> list[TokenBatch]:
        """Return all shards of a task."""
        if (model, task) not in self._batches:
            loaded = self._load(model)
            shards = loaded.shards(self._draw(model, task).task)
            self._batches[model, task] = [loaded.tokenize(shard) for shard in shards]
        return self._batches[model, task]

    def _fed_with(self, model: str, task: str) -> list[Fed]:
        """Return the hashes of all shards of a task."""
        if (model, task) not in self._fed:
            drawn = self._draw(model, task).task
            self._fed[model, task] = [
                Fed.of(drawn, batch) for batch in self._tokenized(model, task)
            ]
        return self._fed[model, task]

    def _usable_shards(self, cell: Cell) -> Usable:
        if cell not in self._usable:
            model, batches = self._load(cell.model), self._tokenized(cell.model, cell.task)
            self._usable[cell] = usable_shards(self.study.make(cell), model, batches)
        return self._usable[cell]

    def _prepare(self, cell: Cell, of_model: NumberIdentity) -> Spent | Failure:
        model = self._load(cell.model)
        began, before = time.monotonic(), model.work.block_tokens
        try:
            self._prepared[cell] = self._prepared_for(cell, of_model)
        except Exception as error:
            return Failure.of(error)
        return Spent(time.monotonic() - began, model.work.block_tokens - before, 0.0, _peak_mb())

    def _prepared_for(self, cell: Cell, of_model: NumberIdentity) -> Tensors:
        """Return what a cell needs for every shard: computed once, by whichever worker comes first,
        and kept.
        """
        model, analysis = self._load(cell.model), self.study.make(cell)
        if type(analysis).prepare is Analysis.prepare:
            return {}
        path, key = (
            self.out / cell.path / "prepared.safetensors",
            self._question(cell, of_model).identity.key,
        )
        if (found := read_part(path, key, device=model.device)) is not None:
            return found
        task, batches = (
            self._draw(cell.model, cell.task).task,
            self._tokenized(cell.model, cell.task),
        )
        prepared = analysis.prepare(model, self._usable_shards(cell).task(task, batches))
        write_part(path, pack(prepared, key))
        return prepared

    def _measure(
        self, cell: Cell, i: int, recording: Any, of_model: NumberIdentity
    ) -> Spent | Failure:
        model, analysis, path = (
            self._load(cell.model),
            self.study.make(cell),
            part_path(self.out, cell, i),
        )
        shard = self._tokenized(cell.model, cell.task)[i]
        began, before = time.monotonic(), recording.work.block_tokens
        try:
            key = (
                of_model.asking(analysis, model)
                .about([self._fed_with(cell.model, cell.task)[i]])
                .key
            )
            if read_part(path, key) is None:
                if cell not in self._prepared:
                    self._prepared[cell] = self._prepared_for(cell, of_model)
                write_part(
                    path, pack(analysis.measure(recording, shard, self._prepared[cell]), key)
                )
        except Exception as error:
            return Failure.of(error)
        spent = recording.work.block_tokens - before
        return Spent(
            time.monotonic() - began,
            spent,
            float(shard.tokens.numel() * recording.n_layers),
            _peak_mb(),
        )


def _vocabulary(model: Model, names: Sequence[str]) -> list[str]:
    """Return the text of every token: the names given for the ids, or what the tokenizer makes of
    them, or numbers.
    """
    ids = range(model.d_vocab)
    texts = (
        list(map(str, ids))
        if model.tokenizer is None
        else model.tokenizer.batch_decode([[i] for i in ids])
    )
    return [*names[: model.d_vocab], *texts[len(names) :]]


def describe(model: Model) -> dict[str, Any]:
    """Return what a run remembers of a model."""
    made_from = getattr(
        model.module.config, "made_from", None
    )  # of weights that are not the published ones
    return ({"made from": made_from} if made_from else {}) | {
        "fingerprint": model.fingerprint,
        "layers": model.n_layers,
        "d_model": model.d_model,
        "d_vocab": model.d_vocab,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "attention": getattr(model.module.config, "_attn_implementation", None),
        "revision": getattr(model.module.config, "_commit_hash", None),
        "tokenizer": None if model.tokenizer is None else hash_of_tokenizer(model.tokenizer),
        "before every prompt": (
            None
            if model.tokenizer is None
            else " ".join(put_in_front(model.tokenizer)) or "nothing"
        ),
    }


def _peak_mb() -> int:
    """Return the largest memory that this process has had; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 2**20 if sys.platform == "darwin" else peak // 1024
