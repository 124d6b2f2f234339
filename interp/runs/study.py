"""What a run is asked to do: a matrix of models, tasks and analyses, checked as a whole before
anything runs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from interp.analysis import Analysis, usable_shards
from interp.errors import InterpError, RunError, TaskError
from interp.models import Model, load_model
from interp.models.loading import check_dtype, locate
from interp.runs.folder import Cell, folder_name
from interp.runs.registry import make_analysis
from interp.tasks import Task, load_task
from interp.tasks.batch import TokenBatch
from interp.tasks.fitting import Fitted
from interp.tasks.spacing import check_space


@dataclass(frozen=True)
class Study:
    """Analyses (name to parameters) of tasks on models; `n` prompts of each task, drawn with
    `seed`.

    "ANALYSIS@LABEL" names a set of parameters, so that one analysis can be there several times.
    With `only_fitting`, an analysis that a task does not suit is skipped with the reason, instead
    of failed. `dtype` and `device_map` are how models are loaded. With `chat`, texts are what a
    user says; `columns` maps fields of a prompt to the keys of task files, and `space` is how
    answers follow texts (as in `Task.from_hf`).
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    analyses: Mapping[str, Mapping[str, Any]]
    n: int | None = None
    seed: int = 0
    only_fitting: bool = False
    dtype: str = "auto"
    device_map: str | None = None
    chat: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    space: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", str(self.dtype).removeprefix("torch."))

    def cells(self) -> list[Cell]:
        """Return every cell of the study in the order in which it runs."""
        named = [name.partition("@") for name in self.analyses]
        return [
            Cell(m, t, name, label)
            for m in self.models
            for t in self.tasks
            for name, _, label in named
        ]

    def make(self, cell: Cell) -> Analysis:
        """Return a cell's analysis with its parameters; the study's seed, unless it has its own."""
        name = f"{cell.analysis}@{cell.label}" if cell.label else cell.analysis
        return make_analysis(cell.analysis, self.analyses[name], seed=self.seed)

    def load_tasks(self) -> dict[str, Task]:
        """Return the study's tasks, whole."""
        how: dict[str, Any] = {
            "column_map": dict(self.columns) or None,
            "chat": self.chat,
            "space": self.space,
        }
        return {name: load_task(name, **how) for name in self.tasks}

    def draw(self, model: Model, task: Task) -> Fitted:
        """Return `n` of the prompts that a model's tokenizer can serve."""
        fitted = model.fit(task)
        return (
            fitted
            if self.n is None
            else replace(fitted, task=fitted.task.take(self.n, seed=self.seed))
        )

    def check(self) -> dict[str, Task]:
        """Return the study's prompts; raise for names and values that do not exist, before any
        work.
        """
        for what, names in (("model", self.models), ("task", self.tasks)):
            if isinstance(names, str):
                raise RunError(f"{what}s is {names!r}; a tuple of names is needed")
            if len({*names}) < len(names):
                raise RunError(f"a {what} is named twice: {', '.join(names)}")
            folders = {name: folder_name(name).casefold() for name in names}
            if same := [
                name for name, folder in folders.items() if [*folders.values()].count(folder) > 1
            ]:
                raise RunError(
                    f"{what}s {' and '.join(map(repr, same))} would share a folder; rename one"
                )
        for cell in self.cells():
            self.make(cell)
        for name in self.models:
            locate(name)
        check_dtype(self.dtype)
        check_space(self.space)
        if self.n is not None and self.n < 1:
            raise TaskError(f"{self.n} prompts asked for; at least 1 is needed")
        return self.load_tasks()


@dataclass(frozen=True)
class Estimate:
    """What a cell would cost: forwards of one prompt, memory held at once, disk written (the store
    not counted).

    `left_out` says which prompts it cannot use; `why_not`, instead of all else, why it would not
    run. `example` is the first prompt's last token, and the first of its answer.
    """

    cell: Cell
    n_prompts: int = 0
    n_shards: int = 0
    forwards: float = 0.0
    memory_mb: float = 0.0
    disk_mb: float = 0.0
    left_out: str = ""
    why_not: str = ""
    example: str = ""


def estimate(study: Study) -> list[Estimate]:
    """Return the cost of every cell, without running any."""
    tasks = study.check()
    estimates: list[Estimate] = []
    for name in study.models:
        model = load_model(name, dtype=study.dtype, device_map=study.device_map)
        with model.running:
            for task_name, task in tasks.items():
                estimates += _estimates(study, model, task, task_name)
    return estimates


def _estimates(study: Study, model: Model, task: Task, name: str) -> Iterator[Estimate]:
    """Yield what the analyses of a task on a model would cost."""
    fitted = study.draw(model, task)
    batches = [model.tokenize(shard) for shard in model.shards(fitted.task)]
    for cell in study.cells():
        if (cell.model, cell.task) != (model.name, name):
            continue
        analysis = study.make(cell)
        try:
            usable = usable_shards(analysis, model, batches)
            shards = [batches[i] for i in usable.shards]
            costs = [analysis.cost(model, shard) for shard in shards]
        except InterpError as error:
            if not study.only_fitting:
                raise
            yield Estimate(cell, why_not=str(error))
            continue
        forwards = sum(
            (1 + cost.forwards) * len(shard.prompts)
            for cost, shard in zip(costs, shards, strict=True)
        )
        clean = max(
            (3 * model.n_layers + 1) * shard.tokens.numel() * model.d_model for shard in shards
        )
        held = model.module.get_memory_footprint() + 4 * (clean + max(cost.held for cost in costs))
        disk = 4 * sum(cost.numbers for cost in costs)
        n_prompts = sum(len(shard.prompts) for shard in shards)
        left_out = ", ".join(filter(None, (str(fitted), usable.left_out(batches))))
        example = shown_end(model, batches[0])
        yield Estimate(
            cell,
            n_prompts,
            len(shards),
            forwards,
            held / 1e6,
            disk / 1e6,
            left_out,
            example=example,
        )


def shown_end(model: Model, batch: TokenBatch) -> str:
    """Return the first prompt's last tokens, and the first token of its answer, as they are fed."""
    end = int(batch.last[0]) + 1
    shown = " ".join(map(repr, model.token_names(batch.tokens[0, max(0, end - 3) : end].tolist())))
    if batch.answer is None:
        return f"prompts end like {shown}"
    (answer,) = model.token_names([int(batch.answer[0])])
    return f"prompts end like {shown}, followed by {answer!r}"
