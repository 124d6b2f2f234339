"""The worker that does a run's jobs in any process: it plans, prepares and measures.

What it computes is written into the run folder, whole or not at all, so that a job can be done
twice, by anyone, at any time.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import torch

from interp.analysis import Analysis, Usable, usable_shards
from interp.figures.words import counted
from interp.files.whole import write_atomically, write_json
from interp.models import Model, load_model
from interp.models.dtypes import AutoDtype, how_computed, name_of
from interp.models.turns import grouped, in_turns
from interp.replay import Recording
from interp.runs.costs import Offer, Prices, Pricing
from interp.runs.folder import Cell, folder_name, task_path
from interp.runs.identity import Fed, NumberIdentity, hash_of_task, hash_of_tokenizer
from interp.runs.memory import peak_mb
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
from interp.runs.speed import Speed, measure_speed
from interp.runs.study import Study
from interp.shapes import Tensors
from interp.tasks import Task
from interp.tasks.batch import TokenBatch
from interp.tasks.encoding import put_in_front
from interp.tasks.fitting import Fitted

_log = logging.getLogger(__name__)

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
    _ends: dict[Key, list[int]] = field(default_factory=dict)
    _usable: dict[Cell, Usable] = field(default_factory=dict)
    _recorded: dict[tuple[str, str, int], Recording] = field(default_factory=dict)

    @torch.no_grad()
    def price(self, model: str, task: str, cells: Sequence[PlannedCell]) -> Prices:
        """Return what cells would cost, whole or, where the study has a budget, shrunk.

        What can be run is found out as in `plan`.
        """
        loaded = self._load(model)
        with loaded.running:
            batches = self._tokenized(model, task)
            pricing = Pricing(loaded, batches, self._ends[model, task], _speed_of(loaded, batches))
            of_model, about = NumberIdentity.of_model(loaded), str(self._draw(model, task))
            offers: dict[Cell, tuple[Offer, ...]] = {}
            refused: dict[Cell, Failure] = {}
            for planned in cells:
                try:
                    left_out = self._plan_of(planned, of_model).left_out
                    left_out = ", ".join(filter(None, (about, left_out)))
                    ways = pricing.offers(planned, self._usable_shards(planned), left_out)
                    n_ways = None if self.study.budget is not None else 1
                    offers[planned.cell] = tuple(islice(ways, n_ways))
                except Exception as error:
                    refused[planned.cell] = Failure.of(error)
            return Prices(offers, refused)

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
            groups = self._groups(loaded, batches, [p for p in cells if p.cell in plans])
            return TaskPlan(
                describe(loaded), about, shards, groups, str(drawn), plans, refused, changed
            )

    def _groups(
        self, model: Model, batches: Sequence[TokenBatch], cells: Sequence[PlannedCell]
    ) -> tuple[tuple[int, ...], ...]:
        """Return which shards are measured in turns."""
        held = dict.fromkeys(range(len(batches)), 0)
        for planned in cells if model.stream is not None else ():
            for i, batch in self._usable_shards(planned).batches.items():
                held[i] = max(held[i], planned.analysis.cost(model, batch).held)
        return (*grouped(model, dict(enumerate(batches)), held),)

    def _plan_of(self, planned: PlannedCell, of_model: NumberIdentity) -> CellPlan:
        usable, spared = self._usable_shards(planned), self._spared(planned)
        asked = of_model.asking(planned.analysis, self._load(planned.cell.model))
        fed = {i: self._fed_with(planned, i) for i in usable.shards}
        n_spared = sum(len(batch.prompts) for batch in spared.values())
        budget = f"{counted(n_spared, 'prompt')} to fit the budget" if n_spared else ""
        return CellPlan(
            asked.about([*fed.values()]),
            {i: asked.about([each]).key for i, each in fed.items()},
            ", ".join(filter(None, (usable.left_out, budget))),
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
            wanted = {(job.model, job.task, i) for i in job.shards}
            self._recorded = {key: known for key, known in self._recorded.items() if key in wanted}
            return {p.cell: self._measure_all(p, job.shards, of_model) for p in job.cells}

    def _recording(self, planned: PlannedCell, shard: int) -> Recording:
        """Return a shard's recording, which the cells that measure all of the shard share."""
        key = planned.cell.model, planned.cell.task, shard
        whole = self._tokenized(*key[:2])[shard]
        own = self._usable_shards(planned).batches[shard]
        if own is not whole:
            return self._load(planned.cell.model).record(own)
        if key not in self._recorded:
            self._recorded[key] = self._load(planned.cell.model).record(whole)
        return self._recorded[key]

    def _load(self, name: str) -> Model:
        if self._model is None or self._model.name != name:
            self._model = None
            for known in (
                self._recorded,
                self._prepared,
                self._batches,
                self._fed,
                self._ends,
                self._usable,
            ):
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
            loaded, drawn = self._load(model), self._draw(model, task).task
            parts = [loaded.shards(part) for part in self.study.levels(drawn)]
            self._ends[model, task] = list(accumulate(map(len, parts)))
            self._batches[model, task] = [
                loaded.tokenize(shard) for part in parts for shard in part
            ]
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
        """Return the shards that a cell measures."""
        usable, spared = self._all_usable(planned), self._spared(planned)
        kept = {i: batch for i, batch in usable.batches.items() if i not in spared}
        return replace(usable, batches=kept)

    def _spared(self, planned: PlannedCell) -> dict[int, TokenBatch]:
        """Return what a cell could measure, but does not."""
        n, usable = planned.n_shards, self._all_usable(planned)
        return {} if n is None else {i: batch for i, batch in usable.batches.items() if i >= n}

    def _all_usable(self, planned: PlannedCell) -> Usable:
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
        return Spent(time.monotonic() - began, model.work.block_tokens - before, 0.0, peak_mb())

    def _prepared_for(self, planned: PlannedCell, of_model: NumberIdentity) -> Tensors:
        """Return what a cell needs for every shard, from disk if any worker has computed it."""
        cell, analysis = planned.cell, planned.analysis
        if not is_prepared(analysis):
            return {}
        model, path = self._load(cell.model), self.out / cell.path / "prepared.safetensors"
        key = self._plan_of(planned, of_model).identity.key
        if (kept := read_part(path, key, device=model.device)) is not None:
            return kept
        task = self._draw(cell.model, cell.task).task
        prepared = analysis.prepare(model, self._usable_shards(planned).task(task))
        write_part(path, pack(prepared, key))
        return prepared

    def _measure_all(
        self, planned: PlannedCell, shards: Sequence[int], of_model: NumberIdentity
    ) -> Spent | Failure:
        """Measure those of these shards that a cell has, in turns where blocks are on disk."""
        began, model = time.monotonic(), self._load(planned.cell.model)
        own = [i for i in shards if i in self._usable_shards(planned).batches]
        if len(own) > 1 and planned.cell not in self._prepared:  # once, and not in turns
            try:
                self._prepared[planned.cell] = self._prepared_for(planned, of_model)
            except Exception as error:
                return Failure.of(error)
        jobs = [
            partial(self._measure, planned, i, self._recording(planned, i), of_model) for i in own
        ]
        spent = Spent()
        for outcome in in_turns(model, jobs):
            if isinstance(outcome, Failure):
                return outcome
            spent += outcome
        return replace(spent, seconds=time.monotonic() - began)

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
        return Spent(time.monotonic() - began, run, forward, peak_mb())


def is_prepared(analysis: Analysis) -> bool:
    """Tell whether an analysis computes something once for all shards."""
    return type(analysis).prepare is not Analysis.prepare


def _speed_of(model: Model, batches: Sequence[TokenBatch]) -> Speed | None:
    """Return how fast passes are; None, and the reason is logged, where they fail."""
    try:
        return measure_speed(model, batches)
    except Exception as error:
        _log.warning("%s: passes cannot be timed: %s", model.name, error)
        return None


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
