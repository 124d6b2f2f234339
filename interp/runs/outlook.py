"""What cells would cost of a model that is not loaded: counted from its configuration."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from interp.analysis import Cost
from interp.errors import InterpError
from interp.models.headers import headers_of
from interp.models.locating import ADAPTER, GGUF, locate
from interp.models.turns import grouped_on_disk
from interp.models.weightless import NoNumbers, WeightlessModel, without_weights
from interp.runs.costs import CellCost, Pricing, passes_over, working_mb
from interp.runs.machines import Assumptions, Machine, machines_for
from interp.runs.memory import free_mb
from interp.runs.plan import Failure, PlannedCell
from interp.runs.study import Study
from interp.runs.worker import Worker
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

_PART = 3  # of the free memory, by which weights are small enough to be loaded for a dry run


@dataclass(frozen=True)
class Outlook:
    """What a cell would cost: `seconds` by machine, None where it does not fit, and disk reads.

    `cost` has no seconds; its memory is that of a GPU, or of as many as hold the model.
    """

    cost: CellCost
    seconds: dict[str, float | None]
    read_mb: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return it as one object of plain values."""
        return {**self.cost.to_json(), "seconds": self.seconds, "read_mb": self.read_mb}


@dataclass(frozen=True)
class ModelOutlook:
    """The cells of one model that is not loaded, where it could run, and what is assumed."""

    model: str
    about: str
    machines: tuple[Machine, ...]
    cells: tuple[Outlook, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as one object of plain values."""
        machines = [
            {key: getattr(each, key) for key in ("name", "about", "n_workers", "why_not")}
            for each in self.machines
        ]
        cells = [each.to_json() for each in self.cells]
        return {"model": self.model, "about": self.about, "machines": machines, "cells": cells}


def why_without(name: str, *, revision: str | None = None) -> str:
    """Return why a dry run does not load a model's weights; "" if it does.

    It does not where they are not on this machine, and where they are more than a third of the
    memory that is free. Raises ModelError for names and for headers that cannot be read.
    """
    source = locate(name, needs_weights=False)
    if source.endswith(GGUF) or (Path(source) / ADAPTER).is_file():
        return ""
    n_bytes, free = headers_of(source, revision).n_bytes, 1e6 * free_mb()
    if not n_bytes:
        return "its weights are not on this machine"
    if free and n_bytes > free / _PART:
        return f"its weights are {n_bytes / 1e9:.3g} GB; {free / 1e9:.3g} GB are free"
    return ""


def outlooks(study: Study, assumed: Assumptions) -> list[ModelOutlook]:
    """Return what a study's cells would cost of models of which no weights are read.

    A budget shrinks nothing. Raises before any work what a run raises, but for weights; of several
    models, the cells of one that cannot be built have the reason.
    """
    whole = replace(study, budget=None)
    whole.check(needs_weights=False)
    with NoNumbers(), torch.no_grad():  # type: ignore[no-untyped-call]
        return [_outlook_of(whole, model, assumed) for model in whole.models]


def _outlook_of(study: Study, model: str, assumed: Assumptions) -> ModelOutlook:
    try:
        return _Planner(study, Path(), study.dtype).outlook(model, assumed)
    except InterpError as error:
        if len(study.models) == 1:
            raise
        own = [cell for cell in study.cells() if cell.model == model]
        cells = (Outlook(CellCost(cell, why_not=str(error)), {}) for cell in own)
        return ModelOutlook(model, "it cannot be built", (), tuple(cells))


class _Planner(Worker):
    """A worker that knows models without weights."""

    _has_assumed = False  # what the tokens are

    def outlook(self, name: str, assumed: Assumptions) -> ModelOutlook:
        """Return what all cells of a model would cost."""
        model = self._load(name)
        batches: dict[str, list[TokenBatch]] = {}
        why_not: dict[str, Failure] = {}
        for task in self.study.tasks:
            try:
                batches[task] = self._tokenized(name, task)
            except Exception as error:
                why_not[task] = Failure.of(error)
        n_pos = [batch.tokens.shape[1] for each in batches.values() for batch in each]
        machines = machines_for(model, self.study.dtype, n_pos or [1], assumed)
        cells: list[Outlook] = []
        for task, planned in self._cells(name):
            failure = why_not.get(task)
            cells.append(
                Outlook(CellCost(planned.cell, why_not=failure.error), {})
                if failure is not None
                else self._outlook(planned, model, batches[task], machines)
            )
        return ModelOutlook(name, self._about(model), tuple(machines), tuple(cells))

    def _cells(self, name: str) -> list[tuple[str, PlannedCell]]:
        tasks = self.study.tasks
        return [(task, each) for task in tasks for each in self.study.planned(name, task)]

    def _outlook(
        self,
        planned: PlannedCell,
        model: WeightlessModel,
        batches: Sequence[TokenBatch],
        machines: Sequence[Machine],
    ) -> Outlook:
        try:
            usable = self._usable_shards(planned)
            about = str(self._draw(planned.cell.model, planned.cell.task))
            left_out = ", ".join(filter(None, (about, usable.left_out)))
            pricing = Pricing(model, batches, [len(batches)], None)
            whole = next(iter(pricing.offers(planned, usable, left_out)))
            own = [*usable.batches.values()]
            costs = [planned.analysis.cost(model, batch) for batch in own]
        except Exception as error:
            return Outlook(CellCost(planned.cell, why_not=Failure.of(error).error), {})
        working = working_mb(model, own, costs)
        gpu = next(machine for machine in machines if machine.name == "1 GPU")
        groups = grouped_on_disk(
            model, dict(enumerate(own)), {i: c.held for i, c in enumerate(costs)}
        )
        passes = passes_over(costs, groups) if planned.analysis.runs_from_disk else 0
        seconds = {m.name: _seconds(m, costs, own, working, passes) for m in machines}
        read = sum(passes * m.read_mb for m in machines if seconds[m.name] is not None)
        return Outlook(replace(whole.cost, memory_mb=gpu.weights_mb + working), seconds, read)

    def _load(self, name: str) -> WeightlessModel:
        if not isinstance(self._model, WeightlessModel) or self._model.name != name:
            self._model = None
            for known in (self._batches, self._ends, self._usable):
                known.clear()
            self._model = without_weights(
                name, dtype=str(self.dtype), make_tokenizer=self._words_of_tasks
            )
        return self._model

    def _words_of_tasks(self, d_vocab: int) -> Any:
        self._has_assumed = True
        return words_as_tokens([*map(self.study.load_task, self.study.tasks)], d_vocab=d_vocab)

    def _about(self, model: WeightlessModel) -> str:
        sizes = model.sizes
        used = f", of which a token uses {_number(sizes.used + sizes.others)}"
        words = "; it has no tokenizer: one token per word and punctuation mark is assumed"
        return (
            f"{model.n_layers} layers, {_number(sizes.in_all)} weights"
            f"{used if sizes.used < sizes.blocks else ''}"
            f"{words if self._has_assumed else ''}"
        )


def _number(n: int) -> str:
    return f"{n / 1e9:.3g} billion" if n >= 1e9 else f"{n / 1e6:.3g} million"


def _seconds(
    machine: Machine,
    costs: Sequence[Cost],
    shards: Sequence[TokenBatch],
    working: float,
    passes: int,
) -> float | None:
    """Return how long a machine takes; None where it cannot hold or do it.

    `passes` is how often blocks on disk are read: not known, or not done, where it is 0 and for
    gradients, which read them for every shard.
    """
    if machine.why_not or machine.weights_mb + working > machine.capacity_mb:
        return None
    seconds = machine.speed.seconds_of(costs, shards) / min(machine.n_workers, len(shards))
    if not machine.read_mb:
        return seconds
    if not passes or any(cost.backwards for cost in costs):
        return None
    return max(seconds, passes * machine.read_mb / machine.read_rate)


def words_as_tokens(tasks: Sequence[Task], *, d_vocab: int) -> Any:
    """Return a tokenizer with a token for every word and mark of these tasks."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.WordLevelTrainer(
        vocab_size=d_vocab, special_tokens=["<unk>"], show_progress=False
    )
    texts = (text for task in tasks for prompt in task.prompts for text in _texts_of(prompt))
    tokenizer.train_from_iterator((each for text in texts for each in (text, f" {text}")), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def _texts_of(prompt: Any) -> list[str]:
    one = (prompt.text, prompt.answer, prompt.wrong, prompt.corrupted, prompt.subject)
    return [*filter(None, (*one, prompt.bridge, *prompt.aliases, *prompt.choices))]
