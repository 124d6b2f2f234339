"""What an analysis is: a question with parameters, measured by shard and combined into a result.

A new analysis is one file, or one package, in `interp/analyses/`: a frozen dataclass that extends
`Analysis`, and a `Result`.
"""

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial, wraps
from typing import Any, ClassVar

import torch
from tqdm import tqdm

from interp.errors import InterpError, UnsuitedError
from interp.figures.words import counted
from interp.models import Model
from interp.models.mixers import MIXERS
from interp.models.quantised import Asked, quantised
from interp.models.turns import grouped, in_turns
from interp.parameters import coerce, hints_of
from interp.replay import Recording
from interp.result import Compared, Finding, Result, joined
from interp.shapes import Tensors
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

__all__ = [
    "Analysis",
    "Compared",
    "Cost",
    "Finding",
    "Result",
    "joined",
    "name_of",
    "usable_shards",
]
_PATIENCE = 2.0  # seconds before a progress bar is shown


@dataclass(frozen=True)
class Cost:
    """What a shard costs beyond its clean pass.

    `forwards` of that shard, `numbers` that are kept, and numbers `held` in memory at once. With
    `is_bound`, `forwards` is an upper bound and the true number is known only afterwards.
    `backwards` are those of `forwards` that go back. `weight` is how long they take in all,
    relative to as many plain passes: less than 1 where a bound is seldom met, more where passes
    are taken apart. `logits` is of how many rows, each one position of one variant, logits are
    made. `once` is what `prepare` takes besides passes, once for all shards, as so many tokens'
    passes. `pieces` is into how many passes and readings of logits the work is cut; None: into as
    few as fit into memory. `sweeps` is how often, at least, the blocks are gone through in order
    beyond the clean pass: so often their weights are read where they lie on disk.
    """

    forwards: float
    numbers: int
    held: int = 0
    is_bound: bool = False
    weight: float = 1.0
    backwards: float = 0.0
    logits: int = 0
    once: float = 0.0
    pieces: int | None = None
    sweeps: int = 1


Measure = Callable[[Any, Recording, TokenBatch, Tensors], Tensors]
Combine = Callable[[Any, Sequence[Tensors]], Result]
GROUP = "prompt.group"  # in every part: the prompts' groups [batch]
MIXER = "layer.mixer"  # where not all are attention: the layers' mixers [batch layer]
OF_ALL = (GROUP, MIXER)


def _as_a_whole(measure: Measure) -> Measure:
    @wraps(measure)
    def measured(
        analysis: Any, recording: Recording, shard: TokenBatch, prepared: Tensors
    ) -> Tensors:
        with recording.running():
            part = {**measure(analysis, recording, shard, prepared), GROUP: shard.groups}
        codes = [MIXERS.index(block.mixer) for block in recording.blocks]
        if any(codes):  # not attention alone
            part[MIXER] = torch.tensor([codes] * len(shard.prompts), dtype=torch.uint8)
        return part

    return measured


def _with_groups(combine: Combine) -> Combine:
    @wraps(combine)
    def combined(analysis: Any, parts: Sequence[Tensors]) -> Result:
        own = [{k: tensor for k, tensor in part.items() if k not in OF_ALL} for part in parts]
        result = combine(analysis, own)
        if all(MIXER in part for part in parts):
            result = result.of_mixers([MIXERS[code] for code in parts[0][MIXER][0].tolist()])
        if not all(GROUP in part for part in parts):  # parts of interp 0.1
            return result
        return result.of_groups(torch.cat([part[GROUP] for part in parts]).cpu().numpy())

    return combined


@dataclass(frozen=True)
class Analysis(ABC):
    """A question; its fields are its parameters.

    Values are checked against the declared types (`Literal`, `Annotated[int, AtLeast(1)]`, …), from
    Python as from files; a subclass with checks of its own in `__post_init__` calls
    `super().__post_init__()` first. `how` is the method in short, `caveat` how an answer could be
    wrong. `rank` orders analyses in reports and in budgets, the lowest first; `page` is the
    viewer's page. `names_other` is the parameter that names a second model, for `--against`.
    `asks_of_weights` is what quantised weights, or weights on disk, may not give.
    """

    question: ClassVar[str] = ""
    how: ClassVar[str] = ""
    caveat: ClassVar[str] = ""
    rank: ClassVar[int] = 100
    page: ClassVar[str] = "analysis"
    names_other: ClassVar[str] = ""
    asks_of_weights: ClassVar[Asked | None] = None
    formerly: ClassVar[Mapping[str, str]] = {}  # former names of parameters, to those of today

    def __init_subclass__(cls) -> None:
        """Check the model once for all of `measure`, and pass the prompts' groups to the result."""
        if "measure" in vars(cls):
            cls.measure = _as_a_whole(cls.measure)  # type: ignore[assignment,method-assign]
        if "combine" in vars(cls):
            cls.combine = _with_groups(cls.combine)  # type: ignore[assignment,method-assign]

    def __post_init__(self) -> None:
        """Convert every parameter to its declared type; raise AnalysisError if that fails."""
        hints = hints_of(type(self))
        for field in fields(self):
            value = coerce(
                hints[field.name], getattr(self, field.name), f"{name_of(type(self))}.{field.name}"
            )
            object.__setattr__(self, field.name, value)

    @property
    def runs_from_disk(self) -> bool:
        """Tell whether blocks may lie on disk, of which one at a time is read."""
        return self.asks_of_weights in (None, "gradients")

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return what every shard needs, computed once; nothing for most analyses."""
        return {}

    @abstractmethod
    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return named tensors of one shard whose first axis is the prompt."""

    @abstractmethod
    def combine(self, parts: Sequence[Tensors]) -> Result:
        """Return the result of all shards, given in order; pure."""

    @abstractmethod
    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return what `measure` will cost on one shard."""

    def coarser(self) -> "Analysis | None":
        """Return the same with fewer layers or nodes, for a budget; None if that cannot be."""
        return None

    def check(self, model: Model, shard: TokenBatch) -> None:  # noqa: B027
        """Raise before any work if this shard cannot be measured."""

    def check_all(self, model: Model, shards: Sequence[TokenBatch]) -> None:  # noqa: B027
        """Raise before any work if these shards, of which each could be measured, are too few."""

    def others(self, model: Model) -> Mapping[str, str]:
        """Return the fingerprints, by role, of other models that the answer depends on."""
        return {}

    @torch.inference_mode(mode=False)  # its tensors could not be in a graph
    @torch.no_grad()
    def run(self, model: Model, task: Task) -> Result:
        """Measure every shard and combine; warn of prompts that cannot be used and are left out."""
        with model.running:
            fitted = model.fit(task)
            batches = [model.tokenize(shard) for shard in model.shards(fitted.task)]
            usable = usable_shards(self, model, batches)
            for left_out in filter(None, (str(fitted), usable.left_out)):
                warnings.warn(f"{task.name}, left out: {left_out}", stacklevel=2)
            prepared = self.prepare(model, usable.task(fitted.task))
            parts: dict[int, Tensors] = {}
            groups = groups_of([self], model, usable.batches)
            for group in tqdm(groups, desc=name_of(type(self)), delay=_PATIENCE, leave=False):
                jobs = [partial(self._recorded, model, usable.batches[i], prepared) for i in group]
                parts |= zip(group, in_turns(model, jobs), strict=True)
            return self.combine([parts[i] for i in usable.batches])

    def _recorded(self, model: Model, shard: TokenBatch, prepared: Tensors) -> Tensors:
        return self.measure(model.record(shard), shard, prepared)


@dataclass(frozen=True)
class Usable:
    """What an analysis can measure: by a shard's number, those of its prompts that it can use.

    `why_not` says by a prompt's id why it cannot use that one.
    """

    batches: Mapping[int, TokenBatch]
    why_not: Mapping[str, InterpError]

    @property
    def shards(self) -> tuple[int, ...]:
        """Return the numbers of the shards of which something can be measured."""
        return tuple(self.batches)

    def task(self, task: Task) -> Task:
        """Return the task with only the prompts that can be measured, shard by shard."""
        kept = [prompt for batch in self.batches.values() for prompt in batch.prompts]
        return task if len(kept) == len(task) else task.of(kept)

    @property
    def left_out(self) -> str:
        """Return how many prompts are left out, and why; "" if none is."""
        by_cause: dict[str, list[str]] = {}
        for error in self.why_not.values():
            cause = re.sub(r"'[^']*'|\d+", "", str(error))  # the same for every prompt
            by_cause.setdefault(cause, []).append(str(error))
        return ", ".join(
            f"{counted(len(alike), 'prompt')} ({alike[0]})" for alike in by_cause.values()
        )


def usable_shards(analysis: Analysis, model: Model, batches: Sequence[TokenBatch]) -> Usable:
    """Return what an analysis can measure; raise the first prompt's error if that is nothing.

    Raises UnsuitedError where the analysis does not suit the model.
    """
    refuse_weights(analysis, model)
    usable: dict[int, TokenBatch] = {}
    why_not: dict[str, InterpError] = {}
    for i, batch in enumerate(batches):
        errors = _errors_of(analysis, model, batch)
        why_not |= errors
        kept = [row for row, prompt in enumerate(batch.prompts) if prompt.id not in errors]
        if kept:
            usable[i] = batch.only(kept) if errors else batch
    if not usable:
        raise next(iter(why_not.values()))
    analysis.check_all(model, [*usable.values()])
    return Usable(usable, why_not)


def groups_of(
    analyses: Sequence[Analysis], model: Model, batches: Mapping[int, TokenBatch]
) -> list[tuple[int, ...]]:
    """Return which shards are measured in turns, so that blocks on disk are read once for all."""
    if model.stream is None:
        return [(i,) for i in batches]
    costs = {i: [each.cost(model, batch) for each in analyses] for i, batch in batches.items()}
    held = {i: max((cost.held for cost in of), default=0) for i, of in costs.items()}
    return grouped(model, batches, held)


def refuse_weights(analysis: Analysis, model: Model) -> None:
    """Raise UnsuitedError where an analysis asks of weights what a model's do not give."""
    asked = analysis.asks_of_weights
    if model.stream is not None and not analysis.runs_from_disk:
        raise UnsuitedError(
            f"{name_of(type(analysis))} needs {asked}, and {model.name} has them on disk:"
            " load it without device_map='disk' for that"
        )
    if asked and (how := quantised(model.module)):
        raise UnsuitedError(
            f"{name_of(type(analysis))} needs {asked}, and {model.name} is quantised ({how}):"
            " load its weights unquantised for that"
        )


def _errors_of(analysis: Analysis, model: Model, batch: TokenBatch) -> dict[str, InterpError]:
    """Return by id why prompts of a shard cannot be measured, found by halving it."""
    try:
        analysis.check(model, batch)
    except UnsuitedError:
        raise
    except InterpError as error:
        n = len(batch.prompts)
        halves = [range(n // 2), range(n // 2, n)] if n > 1 else []
        errors: dict[str, InterpError] = {}
        for half in halves:
            errors |= _errors_of(analysis, model, batch.only(half))
        return errors or {prompt.id: error for prompt in batch.prompts}
    return {}


def name_of(analysis: type[Analysis]) -> str:
    """Return an analysis's name: its class's in snake case, which is also its module's."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", analysis.__name__).lower()
