"""What an analysis is: a question with parameters, measured shard by shard and combined into a
result.

A new analysis is one file in `interp/analyses/`: a frozen dataclass that extends `Analysis`, and a
`Result`.
"""

import json
import math
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from html import escape
from typing import Any, ClassVar

import pandas as pd
import plotly.graph_objects as go
import torch
from tqdm import tqdm

from interp.errors import InterpError
from interp.figures.pictures import svg_of
from interp.models import Model
from interp.parameters import fit, hints_of
from interp.replay import Recording
from interp.shapes import Tensors
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

_ROWS_SHOWN = 5
_PATIENCE = 2.0  # seconds before a bar of progress is shown


@dataclass(frozen=True)
class Finding:
    """One claim with its number: the `value` of a `measure`, its 95 % interval, over `n` prompts.

    `measure` says what the value is and does not change with the model or the task, so that
    findings can be compared.
    """

    claim: str
    value: float | None = None
    measure: str = ""
    low: float | None = None
    high: float | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        """Take numbers that are not finite as not there; half an interval is none."""
        for name in ("value", "low", "high"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                object.__setattr__(self, name, None)
        if self.low is None or self.high is None:
            object.__setattr__(self, "low", None)
            object.__setattr__(self, "high", None)


class Result(ABC):
    """What an analysis found, rebuilt from its parts at any time."""

    @abstractmethod
    def to_frame(self) -> pd.DataFrame:
        """Return the finding as a tidy frame: one value a row."""

    @abstractmethod
    def plot(self) -> go.Figure:
        """Return a titled figure."""

    @abstractmethod
    def summary(self) -> str:
        """Return one finding in words, with numbers."""

    def findings(self) -> tuple[Finding, ...]:
        """Return what a report says first; the summary, unless an analysis puts its numbers apart."""
        return (Finding(self.summary()),)

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self.summary()}"

    def _repr_html_(self) -> str:
        """Return what notebooks show: findings, a small still picture, the first rows; no scripts."""
        frame, name = self.to_frame(), type(self).__name__
        picture = svg_of(json.loads(str(self.plot().to_json())))
        table = frame.head(_ROWS_SHOWN).map(_short).to_html(index=False, border=0)
        shape = f"{len(frame)} rows: {', '.join(frame.columns)}"
        return (
            f"<div><b>{name}</b> ·"
            f" {escape(self.summary())}</div>{picture}{table}<div><small>{escape(shape)}; all of"
            " them are in <code>.to_frame()</code>, the figure in"
            " <code>.plot()</code>.</small></div>"
        )


def _short(value: object) -> str:
    if value is None or value is pd.NA or value != value:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Cost:
    """What a shard costs beyond its clean pass: forwards of that shard, numbers left behind,
    numbers held at once.

    `is_bound`: how many forwards it takes is known only afterwards, and never more than these.
    """

    forwards: float
    numbers: int
    held: int = 0
    is_bound: bool = False


Measure = Callable[[Any, Recording, TokenBatch, Tensors], Tensors]


def _as_a_whole(measure: Measure) -> Measure:
    @wraps(measure)
    def measured(
        analysis: Any, recording: Recording, shard: TokenBatch, prepared: Tensors
    ) -> Tensors:
        with recording.running():
            return measure(analysis, recording, shard, prepared)

    return measured


@dataclass(frozen=True)
class Analysis(ABC):
    """A question; its fields are its parameters. `how` is the method in short, `caveat` how an
    answer could be wrong.

    Values are checked against the declared types, from Python as from files; a subclass with checks
    of its own in `__post_init__` calls `super().__post_init__()` first.
    """

    question: ClassVar[str] = ""
    how: ClassVar[str] = ""
    caveat: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        """Let `measure` run as a whole: the model is looked at once, not in front of every block."""
        if "measure" in vars(cls):
            cls.measure = _as_a_whole(cls.measure)  # type: ignore[assignment,method-assign]

    def __post_init__(self) -> None:
        """Take every parameter as its declared type (a list as a tuple, 1 as 1.0); raise
        AnalysisError if it is none.
        """
        hints = hints_of(type(self))
        for field in fields(self):
            value = fit(
                hints[field.name], getattr(self, field.name), f"{name_of(type(self))}.{field.name}"
            )
            object.__setattr__(self, field.name, value)

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return what every shard needs, computed once; nothing for most analyses."""
        return {}

    @abstractmethod
    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return named tensors of one shard whose first axis is the prompt."""

    @abstractmethod
    def combine(self, parts: Sequence[Tensors]) -> Result:
        """Return the result of all shards, in their order; pure."""

    @abstractmethod
    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return what `measure` will cost on one shard."""

    def check(self, model: Model, shard: TokenBatch) -> None:  # noqa: B027
        """Raise before any work if this shard cannot be measured."""

    def others(self, model: Model) -> Mapping[str, str]:
        """Return the fingerprints of other models that the answer depends on, by what they are
        here; none for most.
        """
        return {}

    @torch.inference_mode(mode=False)  # its tensors could not be in a graph
    @torch.no_grad()
    def run(self, model: Model, task: Task) -> Result:
        """Measure every shard and combine; warn of prompts that the tokenizer or this analysis
        cannot use.
        """
        with model.running:
            fitted = model.fit(task)
            batches = [model.tokenize(shard) for shard in model.shards(fitted.task)]
            usable = usable_shards(self, model, batches)
            for left_out in filter(None, (str(fitted), usable.left_out(batches))):
                warnings.warn(f"{task.name}: {left_out} are left out", stacklevel=2)
            chosen = [batches[i] for i in usable.shards]
            prepared = self.prepare(model, usable.task(fitted.task, batches))
            bar = tqdm(chosen, desc=name_of(type(self)), delay=_PATIENCE, leave=False)
            return self.combine(
                [self.measure(model.record(shard), shard, prepared) for shard in bar]
            )


@dataclass(frozen=True)
class Usable:
    """The numbers of the shards that an analysis can measure, and why it cannot measure each of the
    others.
    """

    shards: tuple[int, ...]
    why_not: Mapping[int, InterpError]

    def task(self, task: Task, batches: Sequence[TokenBatch]) -> Task:
        """Return the task with the prompts of these shards alone."""
        return (
            task.of([prompt for i in self.shards for prompt in batches[i].prompts])
            if self.why_not
            else task
        )

    def left_out(self, batches: Sequence[TokenBatch]) -> str:
        """Return how many prompts are left out, and why; nothing if none is."""
        of_cause: dict[str, list[tuple[str, int]]] = {}
        for i, error in self.why_not.items():
            cause = re.sub(r"'[^']*'|\d+", "", str(error))  # the same of another prompt
            of_cause.setdefault(cause, []).append((str(error), len(batches[i].prompts)))
        counted = [(sum(n for _, n in alike), alike[0][0]) for alike in of_cause.values()]
        return ", ".join(f"{n} prompt{'s' * (n > 1)} ({first})" for n, first in counted)


def usable_shards(analysis: Analysis, model: Model, batches: Sequence[TokenBatch]) -> Usable:
    """Return which shards an analysis can measure; raise what it says of the first if it can
    measure none.
    """
    why_not: dict[int, InterpError] = {}
    for i, batch in enumerate(batches):
        try:
            analysis.check(model, batch)
        except InterpError as error:
            why_not[i] = error
    if len(why_not) == len(batches):
        raise why_not[0]
    return Usable(tuple(i for i in range(len(batches)) if i not in why_not), why_not)


def name_of(analysis: type[Analysis]) -> str:
    """Return the name of an analysis: its class in snake case, which is also its module's."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", analysis.__name__).lower()
