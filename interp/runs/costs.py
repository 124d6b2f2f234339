"""What cells would cost here, whole and with fewer prompts or layers; nothing of them is run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from interp.analysis import Cost, Usable
from interp.errors import InterpError
from interp.models import Model
from interp.models.turns import grouped
from interp.runs.folder import Cell
from interp.runs.memory import resident_mb
from interp.runs.plan import Failure, PlannedCell
from interp.runs.speed import Speed
from interp.tasks.batch import TokenBatch

FEWEST = 8  # prompts that a budget leaves an analysis that can use so many


@dataclass(frozen=True)
class CellCost:
    """What a cell would cost: forwards of one prompt, seconds of one worker, memory and disk.

    Memory is held at once, disk is without the store, and `read_mb` is what is read, at least, of
    weights that lie on disk; `seconds` is None where passes could not be timed. `left_out` says
    which prompts it cannot use, `shrunk` what a budget took from it; both come with the price of
    the whole. `why_not`, instead of all else, is why it would not run. `example` shows the end of
    the first prompt and the start of its answer.
    """

    cell: Cell
    n_prompts: int = 0
    n_shards: int = 0
    forwards: float = 0.0
    seconds: float | None = None
    memory_mb: float = 0.0
    disk_mb: float = 0.0
    read_mb: float = 0.0
    left_out: str = ""
    shrunk: str = ""
    why_not: str = ""
    example: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as one object of plain values, with the cell's folder and names."""
        return {**asdict(self), "cell": self.cell.path, **self.cell.names}


@dataclass(frozen=True)
class Offer:
    """One way to run a cell, and what it would cost."""

    planned: PlannedCell
    cost: CellCost


@dataclass(frozen=True)
class Prices:
    """The ways to run each cell, the whole first and the cheapest last, or why it cannot run."""

    offers: Mapping[Cell, tuple[Offer, ...]]
    refused: Mapping[Cell, Failure]


@dataclass(frozen=True)
class Pricing:
    """What prices of cells depend on: the shards of a task on a model, and how fast this is.

    `ends` are the numbers of shards that hold the first 8, 16, 32, … prompts, the last of all.
    """

    model: Model
    batches: Sequence[TokenBatch]
    ends: Sequence[int]
    speed: Speed | None

    def offers(self, planned: PlannedCell, usable: Usable, left_out: str) -> Iterator[Offer]:
        """Yield the cell as it is, then with fewer prompts, then of fewer layers."""
        own = usable.batches
        count = [len(own[i].prompts) if i in own else 0 for i in range(len(self.batches))]
        fewest, end = min(FEWEST, sum(count)), self.ends[-1]
        yield self._offer(planned, usable, left_out)
        for smaller in reversed(self.ends[:-1]):
            if fewest <= sum(count[:smaller]) < sum(count[:end]):
                fewer = [batch for i, batch in own.items() if i < smaller]
                if not self._suffice(planned, fewer):
                    break
                planned, end = replace(planned, n_shards=smaller), smaller
                yield self._offer(planned, usable, left_out)
        while (coarser := planned.analysis.coarser()) is not None:
            planned = replace(planned, analysis=coarser)
            yield self._offer(planned, usable, left_out)

    def _suffice(self, planned: PlannedCell, shards: Sequence[TokenBatch]) -> bool:
        try:
            planned.analysis.check_all(self.model, shards)
        except InterpError:
            return False
        return True

    def _offer(self, planned: PlannedCell, usable: Usable, left_out: str) -> Offer:
        n = len(self.batches) if planned.n_shards is None else planned.n_shards
        batches = [batch for i, batch in usable.batches.items() if i < n]
        costs = [planned.analysis.cost(self.model, batch) for batch in batches]
        n_prompts = [len(batch.prompts) for batch in batches]
        cost = CellCost(
            planned.cell,
            n_prompts=sum(n_prompts),
            n_shards=len(batches),
            forwards=sum((1 + cost.forwards) * n for cost, n in zip(costs, n_prompts, strict=True)),
            seconds=None if self.speed is None else self.speed.seconds_of(costs, batches),
            memory_mb=_memory_mb(self.model, batches, costs),
            read_mb=_read_mb(self.model, batches, costs),
            disk_mb=4 * sum(cost.numbers for cost in costs) / 1e6,
            left_out=left_out,
            example=_example_of(self.model, self.batches[0]),
        )
        return Offer(planned, cost)


def working_mb(model: Model, batches: Sequence[TokenBatch], costs: Sequence[Cost]) -> float:
    """Return what is held at once besides weights: a clean pass, and what the analysis adds."""
    n_recorded = (3 * model.n_layers + 1) * model.d_model  # numbers of a clean pass, per token
    numbers = [
        sum(n_recorded * batches[i].tokens.numel() + costs[i].held for i in group)
        for group in _groups(model, batches, costs)
    ]
    return 4 * max(numbers) / 1e6


def _groups(
    model: Model, batches: Sequence[TokenBatch], costs: Sequence[Cost]
) -> list[tuple[int, ...]]:
    """Return which shards are measured in turns; each is alone where all weights are in memory."""
    return grouped(model, dict(enumerate(batches)), {i: c.held for i, c in enumerate(costs)})


def _memory_mb(model: Model, batches: Sequence[TokenBatch], costs: Sequence[Cost]) -> float:
    """Return what is held at once: what the analysis needs, and what is held now.

    That is the process with its libraries and weights, or, of an accelerator's memory, the weights.
    """
    weights_mb = float(model.module.get_memory_footprint()) / 1e6
    if model.stream is not None:
        weights_mb += (model.stream.held_bytes - model.stream.streamed_bytes) / 1e6
    held_mb = max(resident_mb(), weights_mb) if model.device.type == "cpu" else weights_mb
    return held_mb + working_mb(model, batches, costs)


def _read_mb(model: Model, batches: Sequence[TokenBatch], costs: Sequence[Cost]) -> float:
    """Return what is read at least of blocks that lie on disk; 0 if they are in memory."""
    if model.stream is None:
        return 0.0
    return passes_over(costs, _groups(model, batches, costs)) * model.stream.disk_bytes / 1e6


def passes_over(costs: Sequence[Cost], groups: Sequence[tuple[int, ...]]) -> int:
    """Return how often, at least, all blocks are read from disk for groups of shards."""
    return sum(max(1 + costs[i].sweeps * (costs[i].forwards > 0) for i in each) for each in groups)


def _example_of(model: Model, batch: TokenBatch) -> str:
    """Return the first prompt's last tokens, and the first token of its answer, as they are fed."""
    end = int(batch.last[0]) + 1
    tokens = model.token_names(batch.tokens[0, max(0, end - 3) : end].tolist())
    example = f"prompts end like {' '.join(map(repr, tokens))}"
    if batch.answer is None:
        return example
    (answer,) = model.token_names([int(batch.answer[0])])
    return f"{example}, followed by {answer!r}"
