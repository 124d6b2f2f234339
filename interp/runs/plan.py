"""What workers are asked to do and what they answer: jobs, plans and outcomes, all picklable."""

import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp.analysis import Analysis
from interp.errors import InterpError
from interp.runs.folder import Cell
from interp.runs.identity import NumberIdentity
from interp.tasks import Prompt


@dataclass(frozen=True)
class PlannedCell:
    """A cell of a study, and its analysis with its parameters.

    Of the task's shards it has the first `n_shards`; all, if they are None.
    """

    cell: Cell
    analysis: Analysis = field(compare=False)
    n_shards: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Job:
    """A shard that is measured for several cells, or (`shard` None) one cell that is prepared.

    `others` are shards that are measured in turns with it, where blocks are read from disk.
    """

    model: str
    task: str
    cells: tuple[PlannedCell, ...]
    shard: int | None = None
    others: tuple[int, ...] = ()

    @property
    def shards(self) -> tuple[int, ...]:
        """Return the shards that are measured; none, where a cell is prepared."""
        return () if self.shard is None else (self.shard, *self.others)


@dataclass(frozen=True)
class Spent:
    """What a cell cost: seconds, the blocks that it ran, and the process's peak memory.

    `block_tokens` are tokens put through blocks; `forward_tokens` those of one forward pass.
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
    """Why a cell failed; a refusal is an InterpError, by which the analysis says what it needs."""

    error: str
    traceback: str
    is_refusal: bool = False

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Return an exception as a failure."""
        is_refusal = isinstance(error, InterpError)
        is_plain = is_refusal or isinstance(error, OSError)
        message = str(error) if is_plain else _with_place(error)
        trace = "".join(traceback.format_exception(error))
        return cls(message or type(error).__name__, trace, is_refusal)


def _with_place(error: BaseException) -> str:
    """Return an unexpected error's class, message and the line that raised it."""
    message = f"{type(error).__name__}: {str(error).strip()}"
    for frame in traceback.extract_tb(error.__traceback__)[-1:]:
        message += f" ({Path(frame.filename).name}:{frame.lineno}, in {frame.name})"
    return message


Outcome = dict[Cell, Spent | Failure]


def failed_alike(job: Job, error: BaseException) -> Outcome:
    """Return the outcome of a job whose cells all failed for one reason."""
    failure = Failure.of(error)
    return {planned.cell: failure for planned in job.cells}


@dataclass(frozen=True)
class CellPlan:
    """What a cell's numbers will depend on, as a whole and by shard, and the prompts left out.

    `without` are their ids, `left_out` says how many they are and why.
    """

    identity: NumberIdentity
    keys: Mapping[int, str]
    left_out: str
    without: frozenset[str] = frozenset()


@dataclass(frozen=True)
class TaskPlan:
    """One task on one model: what both are, the prompts of every shard, and what becomes of cells.

    Every cell is in `cells` or `refused` (the task does not suit it). Finished cells whose results
    are not of this model and these prompts are in `changed` too, with the reason as a predicate.
    `groups` are the numbers of the shards, those together that are measured in turns.
    """

    model: dict[str, Any]
    task: dict[str, Any]
    shards: tuple[tuple[Prompt, ...], ...]
    groups: tuple[tuple[int, ...], ...]
    left_out: str
    cells: Mapping[Cell, CellPlan]
    refused: Mapping[Cell, Failure]
    changed: Mapping[Cell, str]


def part_path(out: Path, cell: Cell, shard: int) -> Path:
    """Return the path of a cell's part for one shard."""
    return out / cell.path / "parts" / f"{shard:05d}.safetensors"
