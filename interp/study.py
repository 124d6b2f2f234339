"""What a run is asked to do: a matrix of models, tasks and analyses, checked as a whole before anything runs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from interp.analysis import Analysis
from interp.catalogue import make_analysis
from interp.errors import RunError, TaskError
from interp.folder import Cell
from interp.models import Model, load_model
from interp.models.loading import check_dtype, locate
from interp.tasks import Task, load_task
from interp.tasks.fitting import Fitted


@dataclass(frozen=True)
class Study:
    """Analyses (name to parameters) of tasks on models; `n` prompts of each task, drawn with `seed`.

    "ANALYSIS@LABEL" names a set of parameters, so that one analysis can be there several times. With `only_fitting`, an
    analysis that a task does not suit is skipped with the reason, instead of failed. `dtype` and `device_map` are how models
    are loaded.
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    analyses: Mapping[str, Mapping[str, Any]]
    n: int | None = None
    seed: int = 0
    only_fitting: bool = False
    dtype: str = "auto"
    device_map: str | None = None

    def cells(self) -> list[Cell]:
        """Return every cell of the study in the order in which it runs."""
        named = [name.partition("@") for name in self.analyses]
        return [Cell(m, t, name, label) for m in self.models for t in self.tasks for name, _, label in named]

    def make(self, cell: Cell) -> Analysis:
        """Return a cell's analysis with its parameters; the study's seed, unless it has its own."""
        name = f"{cell.analysis}@{cell.label}" if cell.label else cell.analysis
        return make_analysis(cell.analysis, self.analyses[name], seed=self.seed)

    def load_tasks(self) -> dict[str, Task]:
        """Return the study's tasks, whole."""
        return {name: load_task(name) for name in self.tasks}

    def draw(self, model: Model, task: Task) -> Fitted:
        """Return `n` of the prompts that a model's tokenizer can serve."""
        fitted = model.fit(task)
        return fitted if self.n is None else replace(fitted, task=fitted.task.take(self.n, seed=self.seed))

    def check(self) -> dict[str, Task]:
        """Return the study's prompts; raise for names and values that do not exist, before any work."""
        for what, names in (("model", self.models), ("task", self.tasks)):
            if isinstance(names, str):
                raise RunError(f"{what}s is {names!r}; a tuple of names is needed")
            if len({*names}) < len(names):
                raise RunError(f"a {what} is named twice: {', '.join(names)}")
        for cell in self.cells():
            self.make(cell)
        for name in self.models:
            locate(name)
        check_dtype(self.dtype)
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
        model = load_model(model_name, dtype=study.dtype, device_map=study.device_map)
        drawn = {name: study.draw(model, task).task for name, task in tasks.items()}
        for cell in study.cells():
            if cell.model != model_name:
                continue
            task = drawn[cell.task]
            shards = [model.tokenize(shard) for shard in model.shards(task)]
            costs = [study.make(cell).cost(model, shard) for shard in shards]
            forwards = sum((1 + cost.forwards) * len(shard.prompts) for cost, shard in zip(costs, shards, strict=True))
            clean = max((3 * model.n_layers + 1) * shard.tokens.numel() * model.d_model for shard in shards)
            held = model.module.get_memory_footprint() + 4 * (clean + max(cost.held for cost in costs))
            disk = 4 * sum(cost.numbers for cost in costs)
            estimates.append(Estimate(cell, len(task), len(shards), forwards, held / 1e6, disk / 1e6))
    return estimates
