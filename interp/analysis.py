"""What an analysis is: a question with parameters, measured shard by shard and combined into a result.

A new analysis is one file in `interp/analyses/`: a frozen dataclass that extends `Analysis`, and a `Result`.
"""

import json
import math
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import ClassVar

import pandas as pd
import plotly.graph_objects as go
import torch
from tqdm import tqdm

from interp.models import Model
from interp.pictures import svg_of
from interp.replay import Recording
from interp.shapes import Tensors
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

_ROWS_SHOWN = 5
_PATIENCE = 2.0  # seconds before a bar of progress is shown


@dataclass(frozen=True)
class Finding:
    """One claim with its number: the `value` of a `measure`, its 95 % interval, over `n` prompts.

    `measure` says what the value is and does not change with the model or the task, so that findings can be compared.
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
            f"<div><b>{name}</b> · {escape(self.summary())}</div>{picture}{table}"
            f"<div><small>{escape(shape)}; all of them are in <code>.to_frame()</code>, the figure in <code>.plot()</code>."
            "</small></div>"
        )


def _short(value: object) -> str:
    if value is None or value is pd.NA or value != value:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Cost:
    """What a shard costs beyond its clean pass: forwards of that shard, numbers left behind, numbers held at once.

    `is_bound`: how many forwards it takes is known only afterwards, and never more than these.
    """

    forwards: float
    numbers: int
    held: int = 0
    is_bound: bool = False


@dataclass(frozen=True)
class Analysis(ABC):
    """A question; its fields are its parameters. `how` is the method in short, `caveat` how an answer could be wrong."""

    question: ClassVar[str] = ""
    how: ClassVar[str] = ""
    caveat: ClassVar[str] = ""

    def prepare(self, model: Model, task: Task) -> Tensors:  # noqa: ARG002
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

    @torch.inference_mode(mode=False)  # its tensors could not be in a graph
    @torch.no_grad()
    def run(self, model: Model, task: Task) -> Result:
        """Measure every shard and combine; warn of prompts that the model's tokenizer cannot serve."""
        fitted = model.fit(task)
        if fitted.left_out:
            warnings.warn(f"{task.name}: {fitted} are left out", stacklevel=2)
        task = fitted.task
        shards = [model.tokenize(shard) for shard in model.shards(task)]
        for shard in shards:
            self.check(model, shard)
        prepared = self.prepare(model, task)
        bar = tqdm(shards, desc=name_of(type(self)), delay=_PATIENCE, leave=False)
        return self.combine([self.measure(model.record(shard), shard, prepared) for shard in bar])


def name_of(analysis: type[Analysis]) -> str:
    """Return the name of an analysis: its class in snake case, which is also its module's."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", analysis.__name__).lower()
