"""`check_analysis` passes an analysis that keeps the contract, and names broken promises."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

import interp
from interp.analysis import Analysis, Cost, Finding, Result, joined
from interp.models import Model
from interp.replay import Recording
from interp.shapes import Tensors
from interp.stats.estimate import Estimate, estimate
from interp.tasks import Task
from interp.tasks.batch import TokenBatch
from interp.testing import check_analysis
from interp.testing.contract import PROMISES, Trial, broken_promise, broken_promises

loaded = cache(interp.load_model)
CALLS = [0]


@dataclass(frozen=True)
class LastNormResult(Result):
    """One norm a prompt."""

    norms: Any

    def to_frame(self) -> pd.DataFrame:
        return pd.DataFrame({"norm": self.norms})

    def plot(self) -> go.Figure:
        return go.Figure(go.Histogram(x=self.norms), layout={"title": "The last norm"})

    def findings(self) -> tuple[Finding, ...]:
        norm = estimate(self.norms)
        return (Finding(f"The last residual has a norm of {norm:.2f}.", norm, "last norm"),)


@dataclass(frozen=True)
class LastNorm(Analysis):
    """Measure the norm of the last residual."""

    seed: int = 0
    question: ClassVar[str] = "How long is the stream, in the end?"
    how: ClassVar[str] = "The norm of the last residual at the last position."
    caveat: ClassVar[str] = "A norm alone says nothing about directions."

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        resid = recording.resid(recording.n_layers)[torch.arange(len(shard.last)), shard.last]
        return {"norm": resid.float().norm(dim=-1)}

    def combine(self, parts: Sequence[Tensors]) -> Result:
        return LastNormResult(joined(parts)["norm"])

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        return Cost(0.0, len(shard.prompts))


def task(n: int = 6) -> Task:
    return interp.load_task("two-hop", n=n)


def test_one_that_keeps_all_promises_passes() -> None:
    check_analysis(LastNorm(), loaded("zoo/hops-4l"), task())


Method = Callable[..., Any]


def wrong(**members: Any) -> Analysis:
    """Return an analysis of which one thing is wrong."""
    return dataclass(frozen=True)(type("Wrong", (LastNorm,), {"__doc__": "Wrong.", **members}))()


def result(**methods: Method) -> Method:
    """Return a `combine` whose result does one thing wrong."""
    of = type("WrongResult", (LastNormResult,), methods)
    return lambda self, parts: of(joined(parts)["norm"])


def measuring(change: Callable[[torch.Tensor, TokenBatch], torch.Tensor]) -> Method:
    """Return a `measure` that changes the tensor."""

    def measure(self: LastNorm, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Any:
        return {"norm": change(LastNorm.measure(self, recording, shard, prepared)["norm"], shard)}

    return measure


def another(norm: torch.Tensor, _: TokenBatch) -> torch.Tensor:
    CALLS[0] += 1
    return norm + CALLS[0]


def overflowing(_: LastNorm, recording: Recording, shard: TokenBatch, __: Tensors) -> Tensors:
    resid = recording.resid(recording.n_layers)[torch.arange(len(shard.last)), shard.last]
    return {"norm": resid.norm(dim=-1) * 6e4}


def finding(claim: str, value: float = 2.0) -> Method:
    return lambda self: (Finding(claim, Estimate(value, 1.0, 3.0, 6), "last norm"),)


def remembering(_: LastNorm, parts: Sequence[Tensors]) -> Result:
    """Combine parts into other numbers every time."""
    CALLS[0] += 1
    return LastNormResult(joined(parts)["norm"] + CALLS[0])


WRONG: dict[str, tuple[Analysis, str]] = {
    "a type that is no dataclass of its own": (
        type("Wrong", (LastNorm,), {"__doc__": "Wrong."})(),
        "frozen parameters with defaults and a seed: Wrong is not a frozen dataclass of its own",
    ),
    "no question": (
        wrong(question="The norm of the stream."),
        "question, how and caveat: question 'The norm of the stream.' does not end in '?'",
    ),
    "no caveat": (wrong(caveat=""), "question, how and caveat: caveat '' does not end in '.'"),
    "a long how": (
        wrong(how="x" * 400 + "."),
        "question, how and caveat: how has 401 characters; at most 360",
    ),
    "a cost that is not stated": (
        wrong(cost=lambda self, model, shard: Cost(3.0, 1)),
        "the stated cost: 3 forwards are stated, 0 were run",
    ),
    "a bound that nothing reaches": (
        wrong(cost=lambda self, model, shard: Cost(3.0, 1, is_bound=True)),
        "the stated cost: at most 3 forwards are stated, 0 were run",
    ),
    "a mean over the batch": (
        wrong(measure=measuring(lambda norm, _: norm - norm.mean())),
        "any batch size: ",
    ),
    "other numbers the second time": (
        wrong(measure=measuring(another)),
        "the same tensors twice: norm differs the second time",
    ),
    "a number for all prompts": (
        wrong(measure=measuring(lambda norm, _: norm.mean()[None])),
        "the first axis is the prompt: norm has shape (1,)",
    ),
    "a result that is not the parts'": (wrong(combine=remembering), "parts that are read again: "),
    "a number too large for half precision": (
        wrong(measure=overflowing),
        "half precision, float16: infinite numbers",
    ),
    "an empty frame": (
        wrong(combine=result(to_frame=lambda self: pd.DataFrame({"norm": []}))),
        "a tidy frame: the frame is empty",
    ),
    "a frame that parquet cannot hold": (
        wrong(combine=result(to_frame=lambda self: pd.DataFrame({"norm": [1, "a"]}))),
        "a tidy frame: ",
    ),
    "two columns of one name": (
        wrong(combine=result(to_frame=lambda self: pd.DataFrame([[1, 2]], columns=["a", "a"]))),
        "a tidy frame: two columns have one name",
    ),
    "a figure without a title": (
        wrong(combine=result(plot=lambda self: go.Figure())),
        "a titled figure: the figure has no title",
    ),
    "no finding": (wrong(combine=result(findings=lambda self: ())), "findings: 0 findings; 1 to 3"),
    "a long claim": (
        wrong(combine=result(findings=finding("The norm is 2" + " or 3" * 40))),
        "findings: 213 characters (at most 160)",
    ),
    "two sentences": (
        wrong(combine=result(findings=finding("The norm is 2. It is long."))),
        "findings: more than one sentence",
    ),
    "a number outside of its interval": (
        wrong(combine=result(findings=finding("The norm is 5.", 5.0))),
        "findings: ",
    ),
    "a claim without a number": (
        wrong(combine=result(findings=finding("The norm is large."))),
        "findings: no number in 'The norm is large.'",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_broken_promise_is_named(what: str) -> None:
    analysis, message = WRONG[what]
    promise = message.partition(":")[0]
    if promise in PROMISES:
        trial = Trial(analysis, loaded("zoo/hops-4l"), task())
        with torch.no_grad():
            broken = [broken_promise(promise, PROMISES[promise], trial)]
    else:
        broken = broken_promises(analysis, loaded("zoo/hops-4l"), task())
    assert any(line.startswith(message) for line in broken), broken


def test_every_promise_is_broken_by_one_of_them() -> None:
    named = {message.partition(":")[0] for _, message in WRONG.values()}
    assert {*PROMISES, "half precision, float16"} <= named


def test_all_broken_promises_are_one_error() -> None:
    analysis = wrong(question="", combine=result(findings=lambda self: ()))
    with pytest.raises(AssertionError, match=r"(?s)Wrong breaks 2 promises:.*question.*findings"):
        check_analysis(analysis, loaded("zoo/hops-4l"), task())
