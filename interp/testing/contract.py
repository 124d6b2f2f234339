"""The contract of an analysis: what this library relies on, checked on a model and a task.

interp.testing.check_analysis(analysis, model, task)    raises, naming every promise that is broken
"""

import copy
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from interp.analysis import Analysis, usable_shards
from interp.errors import AnalysisError
from interp.models import Model
from interp.models.quantised import quantised
from interp.result import Result, faults_of
from interp.runs.parts import pack, unpack, write_part
from interp.shapes import Tensors
from interp.tasks import Prompt, Task
from interp.tasks.batch import TokenBatch

HALVES = (torch.bfloat16, torch.float16)
_LONGEST_HOW = 360  # characters: four lines in a report
_FEW = 4  # prompts that are measured one by one as well
_ANY_OF_A_TIE = ["prompt", "position"]  # columns in which a tie may go to either


@dataclass
class Trial:
    """An analysis that measures shards of a task; what is measured is kept for all checks."""

    analysis: Analysis
    model: Model
    task: Task

    def __post_init__(self) -> None:
        fitted = self.model.fit(self.task).task
        batches = [self.model.tokenize(shard) for shard in self.model.shards(fitted)]
        usable = usable_shards(self.analysis, self.model, batches)
        self.shards = [*usable.batches.values()]
        self.largest = max(self.shards, key=lambda shard: len(shard.prompts))
        self.usable_task = usable.task(fitted)

    @cached_property
    def prepared(self) -> Tensors:
        """Return what the analysis prepares for the whole task."""
        return self.analysis.prepare(self.model, self.usable_task)

    @cached_property
    def part_and_forwards(self) -> tuple[Tensors, float]:
        """Return what the largest shard's `measure` returns, and the forwards that it took."""
        prepared, recording = self.prepared, self.model.record(self.largest)
        recording.resid(0)  # the clean pass, which is not counted
        clean = recording.work.block_tokens
        part = self.analysis.measure(recording, self.largest, prepared)
        return part, (recording.work.block_tokens - clean) / clean

    @cached_property
    def parts(self) -> list[Tensors]:
        """Return the part of every shard."""
        part = self.part_and_forwards[0]
        return [part if shard is self.largest else self.measured(shard) for shard in self.shards]

    @cached_property
    def result(self) -> Result:
        """Return the result of all shards."""
        return self.analysis.combine(self.parts)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """Return the result's frame."""
        return self.result.to_frame()

    def measured(self, shard: TokenBatch) -> Tensors:
        """Return what `measure` returns of one shard."""
        return self.analysis.measure(self.model.record(shard), shard, self.prepared)

    def frame_of(self, *groups: Sequence[Prompt]) -> pd.DataFrame:
        """Return the frame of shards of these prompts."""
        parts = [self.measured(self.model.tokenize(group)) for group in groups]
        return self.analysis.combine(parts).to_frame()


def check_analysis(
    analysis: Analysis, model: Model, task: Task, *, in_half: Analysis | None = None
) -> None:
    """Raise AssertionError, with one line for every promise that an analysis breaks.

    `in_half` is the same analysis with less to do: half precision is slow on most CPUs. Raises the
    analysis's own error if it cannot measure this task on this model at all.
    """
    broken = broken_promises(analysis, model, task, in_half=in_half)
    if broken:
        name = type(analysis).__name__
        raise AssertionError(f"{name} breaks {len(broken)} promises:\n" + "\n".join(broken))


def broken_promises(
    analysis: Analysis, model: Model, task: Task, *, in_half: Analysis | None = None
) -> list[str]:
    """Return one line for every promise that an analysis breaks; see `check_analysis`."""
    trial = Trial(analysis, _in(torch.float32, model), task)
    return [*broken_in_fp32(trial), *broken_in_half(in_half or analysis, model, task)]


@torch.inference_mode(mode=False)
@torch.no_grad()
def broken_in_fp32(trial: Trial) -> list[str]:
    """Return one line for every promise that is broken, but for those of half precision."""
    with trial.model.running:
        broken = [broken_promise(name, check, trial) for name, check in PROMISES.items()]
    return list(filter(None, broken))


@torch.inference_mode(mode=False)
@torch.no_grad()
def broken_in_half(analysis: Analysis, model: Model, task: Task) -> list[str]:
    """Return one line for bf16 and for fp16 if an analysis breaks its promise there."""
    broken = []
    for dtype in HALVES:
        half = _in(dtype, model)
        with half.running:
            trial = Trial(analysis, half, task)
            broken.append(broken_promise(f"half precision, {_name(dtype)}", _half_precision, trial))
    return list(filter(None, broken))


def broken_promise(promise: str, check: Callable[[Trial], None], trial: Trial) -> str:
    """Return how a promise is broken, in one line; "" if it is kept."""
    try:
        check(trial)
    except AssertionError as error:
        return f"{promise}: {' '.join(str(error).split())}"
    except Exception as error:
        return f"{promise}: {type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def _require(is_kept: bool, otherwise: str) -> None:
    if not is_kept:
        raise AssertionError(otherwise)


def _parameters(trial: Trial) -> None:
    declared = type(trial.analysis)
    is_own = "__dataclass_params__" in vars(declared)
    _require(is_own, f"{declared.__name__} is not a frozen dataclass of its own")
    without = [
        field.name
        for field in fields(declared)
        if field.default is MISSING and field.default_factory is MISSING
    ]
    _require(not without, f"{', '.join(without)} without a default")
    names = [field.name for field in fields(declared)]
    _require("seed" in names, f"the parameters are {', '.join(names) or 'none'}; a seed is needed")
    hash(trial.analysis)


def _words(trial: Trial) -> None:
    declared = type(trial.analysis)
    _require(bool((declared.__doc__ or "").strip()), "it has no docstring")
    _require(declared.question.endswith("?"), f"question {declared.question!r} does not end in '?'")
    for name in ("how", "caveat"):
        text = getattr(declared, name)
        _require(text.endswith("."), f"{name} {text!r} does not end in '.'")
    long = f"how has {len(declared.how)} characters; at most {_LONGEST_HOW} fit"
    _require(len(declared.how) <= _LONGEST_HOW, long)


def _prompts_first(trial: Trial) -> None:
    n_prompts = len(trial.largest.prompts)
    for name, tensor in trial.part_and_forwards[0].items():
        shape = tuple(tensor.shape)
        message = f"{name} has shape {shape}; its first axis is the prompt, and there are"
        _require(shape[:1] == (n_prompts,), f"{message} {n_prompts}")


def _same_twice(trial: Trial) -> None:
    _require_equal(trial.part_and_forwards[0], trial.measured(trial.largest))


def _require_equal(first: Tensors, second: Tensors) -> None:
    _require(first.keys() == second.keys(), f"{[*first]} at first, {[*second]} the second time")
    for name, tensor in first.items():
        again = second[name]
        is_same = tensor.shape == again.shape and bool(
            torch.equal(tensor.nan_to_num(), again.nan_to_num())
        )
        _require(is_same, f"{name} differs the second time")


def _stated_cost(trial: Trial) -> None:
    cost, forwards = trial.analysis.cost(trial.model, trial.largest), trial.part_and_forwards[1]
    is_stated = math.isclose(forwards, cost.forwards, rel_tol=1e-6, abs_tol=1e-9)
    is_below = cost.is_bound and 0 < forwards <= cost.forwards
    if type(trial.analysis).prepare is not Analysis.prepare:
        is_below |= forwards <= cost.forwards  # what `prepare` runs may be stated with it
    bound = "at most " if cost.is_bound else ""
    stated = f"{bound}{cost.forwards:.6g} forwards are stated"
    _require(is_stated or is_below, f"{stated}, {forwards:.6g} were run")


def _any_batch_size(trial: Trial) -> None:
    prompts = trial.largest.prompts[:_FEW]
    together = trial.frame_of(prompts)
    apart = trial.frame_of(*((prompt,) for prompt in prompts))
    places = [column for column in _ANY_OF_A_TIE if column in together]
    pd.testing.assert_frame_equal(
        together.drop(columns=places), apart.drop(columns=places), rtol=1e-4, atol=1e-5
    )


def _resumed(trial: Trial) -> None:
    """Check that parts that were written and read again give the same frame and figure."""
    with tempfile.TemporaryDirectory() as folder:
        read = []
        for i, part in enumerate(trial.parts):
            path = Path(folder) / f"{i}.safetensors"
            write_part(path, pack(part, "key"))
            read.append(unpack(path, key="key"))
    again = trial.analysis.combine(read)
    pd.testing.assert_frame_equal(again.to_frame(), trial.frame)
    is_same = again.plot().to_json() == trial.result.plot().to_json()
    _require(is_same, "the figure changes when parts are written and read again")


def _tidy_frame(trial: Trial) -> None:
    frame = trial.frame
    _require(len(frame) > 0, "the frame is empty")
    _require(frame.columns.is_unique, "two columns have one name")
    others = [column for column in frame.columns if not isinstance(column, str)]
    _require(not others, f"columns {others} are not strings")
    with tempfile.TemporaryDirectory() as folder:
        frame.to_parquet(Path(folder) / "frame.parquet", index=False)
        pd.testing.assert_frame_equal(pd.read_parquet(Path(folder) / "frame.parquet"), frame)


def _titled_figure(trial: Trial) -> None:
    _require(bool(trial.result.plot().layout.title.text), "the figure has no title")


def _findings(trial: Trial) -> None:
    findings = trial.result.findings()
    faults = faults_of(findings)
    _require(not faults, "; ".join(faults))
    claim = findings[0].claim
    _require(any(map(str.isdigit, claim)), f"no number in {claim!r}")


def _half_precision(trial: Trial) -> None:
    """Check that there are no infinities, and that batch size changes numbers by rounding alone."""
    prompts = [trial.largest.prompts[0], *trial.largest.prompts[-2:]]  # it is slow on most CPUs
    together = trial.frame_of(prompts)
    apart = trial.frame_of(prompts[:1], prompts[1:])
    floats = together.select_dtypes(np.floating)
    _require(not bool(np.isinf(floats.to_numpy()).any()), "infinite numbers")
    is_same = bool(together.isna().equals(apart.isna()))
    _require(is_same, "numbers are missing for one batch size and not for another")
    rounding = 4 * torch.finfo(trial.model.dtype).eps
    for column in floats:
        here, there = (
            np.nan_to_num(frame[column].to_numpy(np.float64)) for frame in (together, apart)
        )
        gap, norm = (float(np.linalg.norm(numbers)) for numbers in (here - there, here))
        _require(gap <= rounding * norm + 1e-6, f"{column} depends on the batch size")


PROMISES: dict[str, Callable[[Trial], None]] = {
    "frozen parameters with defaults and a seed": _parameters,
    "question, how and caveat": _words,
    "the first axis is the prompt": _prompts_first,
    "the same tensors twice": _same_twice,
    "the stated cost": _stated_cost,
    "any batch size": _any_batch_size,
    "parts that are read again": _resumed,
    "a tidy frame": _tidy_frame,
    "a titled figure": _titled_figure,
    "findings": _findings,
}


def _in(dtype: torch.dtype, model: Model) -> Model:
    """Return the model itself, or a copy whose weights are of another type."""
    if model.dtype == dtype:
        return model
    if quantised(model.module):
        raise AnalysisError(f"{model.name} is quantised; check_analysis needs other precisions")
    module: Any = copy.deepcopy(model.module)
    return Model(model.name, module.to(dtype), model.tokenizer, load_another=model.load_another)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
