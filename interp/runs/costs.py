"""What a study would cost, without running any of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from interp.analysis import Cost, Usable, usable_shards
from interp.errors import InterpError
from interp.models import Model, load_model
from interp.runs.folder import Cell
from interp.runs.study import Study
from interp.tasks import Task
from interp.tasks.batch import TokenBatch


@dataclass(frozen=True)
class CellCost:
    """What a cell would cost: forwards of one prompt, memory held at once, disk without the store.

    `left_out` says which prompts it cannot use; `why_not`, instead of all else, why it would not
    run. `example` shows the end of the first prompt and the start of its answer.
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


def estimate_costs(study: Study) -> list[CellCost]:
    """Return the cost of every cell, without running any."""
    tasks = study.check()
    costs: list[CellCost] = []
    for name in study.models:
        model = load_model(name, dtype=study.dtype, device_map=study.device_map)
        with model.running:
            for task_name, task in tasks.items():
                costs += _costs_of(study, model, task, task_name)
    return costs


def _costs_of(study: Study, model: Model, task: Task, name: str) -> Iterator[CellCost]:
    """Yield what the analyses of a task on a model would cost."""
    fitted = study.draw(model, task)
    batches = [model.tokenize(shard) for shard in model.shards(fitted.task)]
    for planned in study.planned(model.name, name):
        try:
            usable = usable_shards(planned.analysis, model, batches)
            costs = [planned.analysis.cost(model, shard) for shard in usable.batches.values()]
        except InterpError as error:
            if not study.only_fitting:
                raise
            yield CellCost(planned.cell, why_not=str(error))
            continue
        left_out = ", ".join(filter(None, (str(fitted), usable.left_out)))
        yield _cost_of(planned.cell, model, batches, usable, costs, left_out)


def _cost_of(
    cell: Cell,
    model: Model,
    batches: Sequence[TokenBatch],
    usable: Usable,
    costs: Sequence[Cost],
    left_out: str,
) -> CellCost:
    shards = [*usable.batches.values()]
    n_prompts = [len(shard.prompts) for shard in shards]
    n_recorded = (3 * model.n_layers + 1) * model.d_model  # numbers of a clean pass, per token
    clean = n_recorded * max(shard.tokens.numel() for shard in shards)
    held = model.module.get_memory_footprint() + 4 * (clean + max(cost.held for cost in costs))
    return CellCost(
        cell,
        n_prompts=sum(n_prompts),
        n_shards=len(shards),
        forwards=sum((1 + cost.forwards) * n for cost, n in zip(costs, n_prompts, strict=True)),
        memory_mb=held / 1e6,
        disk_mb=4 * sum(cost.numbers for cost in costs) / 1e6,
        left_out=left_out,
        example=_example_of(model, batches[0]),
    )


def _example_of(model: Model, batch: TokenBatch) -> str:
    """Return the first prompt's last tokens, and the first token of its answer, as they are fed."""
    end = int(batch.last[0]) + 1
    tokens = model.token_names(batch.tokens[0, max(0, end - 3) : end].tolist())
    example = f"prompts end like {' '.join(map(repr, tokens))}"
    if batch.answer is None:
        return example
    (answer,) = model.token_names([int(batch.answer[0])])
    return f"{example}, followed by {answer!r}"
