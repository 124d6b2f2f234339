"""The worker that does a run's jobs in any process: it plans, prepares and measures.

What it computes is written into the run folder, whole or not at all, so that a job can be done
twice, by anyone, at any time.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from interp.analysis import Analysis, Usable, usable_shards
from interp.files.whole import write_atomically, write_json
from interp.models import Model, load_model
from interp.models.dtypes import AutoDtype, how_computed, name_of
from interp.replay import Recording
from interp.runs.folder import Cell, folder_name, task_path
from interp.runs.identity import Fed, NumberIdentity, hash_of_task, hash_of_tokenizer
from interp.runs.parts import pack, read_part, write_part
from interp.runs.plan import (
    CellPlan,
    Failure,
    Job,
    Outcome,
    PlannedCell,
    Spent,
    TaskPlan,
    part_path,
)
from interp.runs.study import Study
from interp.shapes import Tensors
from interp.tasks import Task
from interp.tasks.batch import TokenBatch
from interp.tasks.encoding import put_in_front
from interp.tasks.fitting import Fitted

Key = tuple[str, str]  # names of a model and a task


@dataclass
class Worker:
    """Holds one model at a time and does jobs on it.

    `dtype` is the type of models, or what the driver of the run decided that "auto" means.
    """

    study: Study
    out: Path
    dtype: str | AutoDtype
    store: str | Path | None = None
    _model: Model | None = None
    _drawn: dict[Key, Fitted] = field(default_factory=dict)
    _prepared: dict[Cell, Tensors] = field(default_factory=dict)
    _batches: dict[Key, list[TokenBatch]] = field(default_factory=dict)
    _fed: dict[tuple[str, str, int], Fed] = field(default_factory=dict)
    _usable: dict[Cell, Usable] = field(default_factory=dict)

    @torch.no_grad()
    def plan(
        self,
        model: str,
        task: str,
        cells: Sequence[PlannedCell],
        finished: Mapping[Cell, Mapping[str, str]],
    ) -> TaskPlan:
        """Return the shards of a task on a model, and what its cells' numbers will depend on.

        `finished` maps finished cells to the identity that was recorded of their numbers.
        """
        loaded = self._load(model)
        with loaded.running:
            drawn, batches = self._draw(model, task), self._tokenized(model, task)
            of_model = NumberIdentity.of_model(loaded)
            plans: dict[Cell, CellPlan] = {}
            refused: dict[Cell, Failure] = {}
            changed: dict[Cell, str] = {}
            for planned in cells:
                cell = planned.cell
                try:
                    plans[cell] = self._plan_of(planned, of_model)
                except Exception as error:
                    refused[cell] = Failure.of(error)
                    if cell in finished:
                        changed[cell] = f"can no longer be measured: {error}"
                    continue
                if cell in finished and (what := plans[cell].identity.changed(finished[cell])):
                    changed[cell] = f"was computed from other {', '.join(what)}"
            if not changed:
                self._keep_prompts(loaded, task, batches, is_new=not finished)
            shards = tuple(batch.prompts for batch in batches)
            about = {"prompts": len(drawn.task), "hash": hash_of_task(drawn.task)}
            return TaskPlan(describe(loaded), about, shards, str(drawn), plans, refused, changed)

    def _plan_of(self, planned: PlannedCell, of_model: NumberIdentity) -> CellPlan:
        usable = self._usable_shards(planned)
        asked = of_model.asking(planned.analysis, self._load(planned.cell.model))
        fed = {i: self._fed_with(planned, i) for i in usable.shards}
        return CellPlan(
            asked.about([*fed.values()]),
            {i: asked.about([each]).key for i, each in fed.items()},
            usable.left_out,
            frozenset(usable.why_not),
        )

    def _keep_prompts(
        self, model: Model, task: str, batches: Sequence[TokenBatch], *, is_new: bool
    ) -> None:
        """Write prompts, tokens and the model's vocabulary, for readers without a tokenizer."""
        folder = self.out / task_path(model.name, task)
        prompts = Task("measured", tuple(prompt for batch in batches for prompt in batch.prompts))
        write_atomically(folder / "prompts.jsonl", prompts.to_lines())
        rows = [
            row[row_mask].tolist()
            for batch in batches
            for row, row_mask in zip(batch.tokens, batch.mask, strict=True)
        ]
        write_json(folder / "tokens.json", {"tokens": rows}, indent=None)
        path = self.out / folder_name(model.name) / "vocabulary.json"
        names = self._draw(model.name, task).task.names
        if not path.exists() or names or is_new:
            write_json(path, {"vocabulary": _vocabulary(model, names)})

    @torch.no_grad()
    def do(self, job: Job) -> Outcome:
        """Do a job and return what it cost, or why it failed, by cell."""
        model = self._load(job.model)
        with model.running:
            of_model = NumberIdentity.of_model(model)
            if job.shard is None:
                return {planned.cell: self._prepare(planned, of_model) for planned in job.cells}
            whole = self._tokenized(job.model, job.task)[job.shard]
            recording, outcome = model.record(whole), {}
            for planned in job.cells:
                own = self._usable_shards(planned).batches[job.shard]
                asked = recording if own is whole else model.record(own)
                outcome[planned.cell] = self._measure(planned, job.shard, asked, of_model)
            return outcome

    def _load(self, name: str) -> Model:
        if self._model is None or self._model.name != name:
            self._model = None
            for known in (self._prepared, self._batches, self._fed, self._usable):
                known.clear()
            self._model = load_model(
                name, store=self.store, dtype=self.dtype, device_map=self.study.device_map
            )
        return self._model

    def _draw(self, model: str, task: str) -> Fitted:
        if (model, task) not in self._drawn:
            whole = self.study.load_task(task)
            self._drawn[model, task] = self.study.draw(self._load(model), whole)
        return self._drawn[model, task]

    def _tokenized(self, model: str, task: str) -> list[TokenBatch]:
        """Return all shards of a task."""
        if (model, task) not in self._batches:
            loaded = self._load(model)
            shards = loaded.shards(self._draw(model, task).task)
            self._batches[model, task] = [loaded.tokenize(shard) for shard in shards]
        return self._batches[model, task]

    def _fed_with(self, planned: PlannedCell, i: int) -> Fed:
        """Return the hashes of what a cell measures of a shard."""
        model, task = planned.cell.model, planned.cell.task
        drawn, whole = self._draw(model, task).task, self._tokenized(model, task)[i]
        own = self._usable_shards(planned).batches[i]
        if own is not whole:
            return Fed.of(drawn, own)
        if (model, task, i) not in self._fed:
            self._fed[model, task, i] = Fed.of(drawn, whole)
        return self._fed[model, task, i]

    def _usable_shards(self, planned: PlannedCell) -> Usable:
        cell = planned.cell
        if cell not in self._usable:
            model, batches = self._load(cell.model), self._tokenized(cell.model, cell.task)
            self._usable[cell] = usable_shards(planned.analysis, model, batches)
        return self._usable[cell]

    def _prepare(self, planned: PlannedCell, of_model: NumberIdentity) -> Spent | Failure:
        model = self._load(planned.cell.model)
        began, before = time.monotonic(), model.work.block_tokens
        try:
            self._prepared[planned.cell] = self._prepared_for(planned, of_model)
        except Exception as error:
            return Failure.of(error)
        return Spent(time.monotonic() - began, model.work.block_tokens - before, 0.0, _peak_mb())

    def _prepared_for(self, planned: PlannedCell, of_model: NumberIdentity) -> Tensors:
        """Return what a cell needs for every shard, from disk if any worker has computed it."""
        cell, analysis = planned.cell, planned.analysis
        if type(analysis).prepare is Analysis.prepare:
            return {}
        model, path = self._load(cell.model), self.out / cell.path / "prepared.safetensors"
        key = self._plan_of(planned, of_model).identity.key
        if (kept := read_part(path, key, device=model.device)) is not None:
            return kept
        task = self._draw(cell.model, cell.task).task
        prepared = analysis.prepare(model, self._usable_shards(planned).task(task))
        write_part(path, pack(prepared, key))
        return prepared

    def _measure(
        self, planned: PlannedCell, i: int, recording: Recording, of_model: NumberIdentity
    ) -> Spent | Failure:
        cell, analysis = planned.cell, planned.analysis
        path, shard = part_path(self.out, cell, i), self._usable_shards(planned).batches[i]
        began, before = time.monotonic(), recording.work.block_tokens
        try:
            asked = of_model.asking(analysis, self._load(cell.model))
            key = asked.about([self._fed_with(planned, i)]).key
            if read_part(path, key) is None:
                if cell not in self._prepared:
                    self._prepared[cell] = self._prepared_for(planned, of_model)
                part = analysis.measure(recording, shard, self._prepared[cell])
                write_part(path, pack(part, key))
        except Exception as error:
            return Failure.of(error)
        run = recording.work.block_tokens - before
        forward = float(shard.tokens.numel() * recording.n_layers)
        return Spent(time.monotonic() - began, run, forward, _peak_mb())


def _vocabulary(model: Model, names: Sequence[str]) -> list[str]:
    """Return the text of every token: a name given for its id, the tokenizer's text, or the id."""
    ids = range(model.d_vocab)
    decode = None if model.tokenizer is None else model.tokenizer.batch_decode
    texts = list(map(str, ids)) if decode is None else decode([[i] for i in ids])
    return [*names[: model.d_vocab], *texts[len(names) :]]


def describe(model: Model) -> dict[str, Any]:
    """Return what a run records of a model."""
    config, tokenizer = model.module.config, model.tokenizer
    made_from = getattr(config, "made_from", None)  # of weights that are not the published ones
    front = None if tokenizer is None else " ".join(put_in_front(tokenizer)) or "nothing"
    return ({"made from": made_from} if made_from else {}) | {
        "fingerprint": model.fingerprint,
        "layers": model.n_layers,
        "d_model": model.d_model,
        "d_vocab": model.d_vocab,
        "dtype": name_of(model.dtype),
        "checkpoint": model.checkpoint or None,
        "computed": how_computed(model),
        "device": str(model.device),
        "attention": getattr(config, "_attn_implementation", None),
        "revision": getattr(config, "_commit_hash", None),
        "tokenizer": None if tokenizer is None else hash_of_tokenizer(tokenizer),
        "before every prompt": front,
    }


def _peak_mb() -> int:
    """Return this process's peak memory in MB; 0 if the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 2**20 if sys.platform == "darwin" else peak // 1024
