"""What an analysis is: a question with parameters, measured shard by shard and combined into a result.

A new analysis is one file in `interp/analyses/`: a frozen dataclass that extends `Analysis`, and a `Result`.
"""

import math
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import plotly.graph_objects as go
import torch

from interp.models import Model
from interp.replay import Recording
from interp.shapes import Tensors
from interp.tasks import Task
from interp.tasks.batch import TokenBatch


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
        """Take numbers that are not finite as not there."""
        for name in ("value", "low", "high"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                object.__setattr__(self, name, None)


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
        return self.combine([self.measure(model.record(shard), shard, prepared) for shard in shards])


def name_of(analysis: type[Analysis]) -> str:
    """Return the name of an analysis: its class in snake case, which is also its module's."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", analysis.__name__).lower()
