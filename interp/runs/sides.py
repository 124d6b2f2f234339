"""One analysis of several runs, prompt by prompt; refused unless all of them asked the same."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from interp.analysis import GROUP
from interp.errors import RunError, unknown
from interp.figures.words import counted
from interp.runs.evidence import is_control
from interp.runs.folder import Cell, cells_of
from interp.runs.run_folder import RunFolder, open_run
from interp.shapes import Tensors
from interp.tasks import Prompt

_OTHER = ("n_prompts", "max", "percentile", "median")  # no keys of a row
_SETTINGS = ("chat", "space")  # of a study, which change what is read of the same prompts
_IDENTITY = {"code": "code of the analysis", "others": "model compared with"}

Place = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Row:
    """A number of a table: what it is, and its layer (or first and last layer, …)."""

    measure: str
    place: Place = ()


@dataclass(frozen=True)
class Side:
    """One analysis of one model in a run; `name` is how a user called it."""

    name: str
    run: RunFolder
    cell: Cell
    record: dict[str, Any]

    @property
    def layers(self) -> int | None:
        """Return the model's number of layers; None if that is not recorded."""
        layers: int | None = self.run.info["models"].get(self.cell.model, {}).get("layers")
        return layers

    @property
    def versions(self) -> set[str]:
        """Return the versions of this library that measured it."""
        info = self.run.info
        return {each["versions"]["interp"] for each in (info, *info.get("resumed", ()))}

    def prompts(self) -> dict[str, Prompt]:
        """Return the prompts measured, by id, in the order of the parts."""
        names = self.cell.model, self.cell.task, self.cell.name
        return {prompt.id: prompt for prompt in self.run.prompts(*names)}

    def numbers(self) -> tuple[list[dict[Row, float]], list[int] | None]:
        """Return the numbers of every prompt alone, and the prompts' groups, if recorded.

        A prompt's are those of the analysis's table of that prompt; no model is needed.
        """
        analysis, parts = self.run.parts_of(self.cell.model, self.cell.task, self.cell.name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # means of nothing are no numbers
            numbers = [
                _numbers(analysis.combine([alone]).to_frame())
                for part in parts
                for alone in _prompt_by_prompt(part)
            ]
        if not all(GROUP in part for part in parts):  # of interp 0.1
            return numbers, None
        return numbers, torch.cat([part[GROUP] for part in parts]).tolist()


def sides_of(
    runs: Sequence[str | Path], *, analysis: str | None, task: str | None, trust_code: bool
) -> list[Side]:
    """Return the sides of a comparison, "RUN" or "RUN:MODEL"; raise RunError if they are unlike.

    The analysis and the task may be left out where there is but one of them in common.
    """
    if len(runs) < 2:
        raise RunError(f"{counted(len(runs), 'run')} to compare; at least two are needed")
    opened = [_opened(str(run), trust_code=trust_code) for run in runs]
    cells = [_cells(run, model, str(name)) for name, (run, model) in zip(runs, opened, strict=True)]
    names = [{cell.name for cell in of} for of in cells]
    chosen = _one("analysis", analysis, names, runs)
    cells = [{c: record for c, record in of.items() if c.name in chosen} for of in cells]
    tasks = _one("task", task, [{cell.task for cell in of} for of in cells], runs)
    sides = [
        Side(str(name), run, *next((c, r) for c, r in of.items() if c.task in tasks))
        for name, (run, _), of in zip(runs, opened, cells, strict=True)
    ]
    for other in sides[1:]:
        _require_alike(sides[0], other)
    return sides


def run_named(name: str | Path) -> Path:
    """Return the run folder of "RUN" or "RUN:MODEL"; raise RunError if there is none."""
    return _opened(str(name), trust_code=False)[0].folder


def _opened(name: str, *, trust_code: bool) -> tuple[RunFolder, str | None]:
    """Return the run of "RUN" or "RUN:MODEL", and the model if one is named."""
    ends = [len(name), *(i for i, letter in enumerate(name) if letter == ":")]
    for end in ends:
        if (Path(name[:end]) / "run.json").is_file():
            return open_run(name[:end], trust_code=trust_code), name[end + 1 :] or None
    return open_run(name, trust_code=trust_code), None


def _cells(run: RunFolder, model: str | None, name: str) -> dict[Cell, dict[str, Any]]:
    """Return the finished cells of one model of a run."""
    finished = {c: r for c, r in cells_of(run.info).items() if r["status"] == "ok"}
    named = run.info["config"]["models"]
    models = list(dict.fromkeys(cell.model for cell in finished))
    if model is None:
        tested = [each for each in models if not is_control(each, named)]
        if len(tested) > 1:
            raise RunError(f"{name} has {', '.join(models)}; name one, as {name}:{tested[0]}")
        model = next(iter(tested or models), "")
    if model not in models:
        raise RunError(f"{unknown('model', model, models)} in {run.folder}")
    return {cell: record for cell, record in finished.items() if cell.model == model}


def _one(
    what: str, asked: str | None, there: Sequence[set[str]], runs: Sequence[str | Path]
) -> set[str]:
    """Return what was asked for, or the only one in common; of tasks, the only one of each."""
    if asked is not None:
        for name, names in zip(runs, there, strict=True):
            if asked not in names:
                raise RunError(f"{unknown(what, asked, names)} in {name}")
        return {asked}
    if what == "task" and all(len(names) == 1 for names in there):
        return set().union(*there)  # the same prompts in files of two names
    common: set[str] = reduce(lambda one, other: one & other, there)
    if len(common) == 1:
        return common
    if common:
        raise RunError(f"several to compare; name one with --{what}: {', '.join(sorted(common))}")
    of = "; ".join(
        f"{name} has {', '.join(sorted(names)) or 'none'}"
        for name, names in zip(runs, there, strict=True)
    )
    raise RunError(f"no {what} in common: {of}")


def _require_alike(one: Side, other: Side) -> None:
    """Raise RunError, naming the difference, unless two sides asked the same of the same prompts.

    Models, types of numbers and machines may differ: that is what is compared.
    """
    asked = [side.record["parameters"] for side in (one, other)]
    settings = [{k: s.run.info["config"].get(k) for k in _SETTINGS} for s in (one, other)]
    for kind, (left, right) in (("parameter", asked), ("setting", settings)):
        for key in dict.fromkeys([*left, *right]):
            if left.get(key) != right.get(key):
                values = f"{left.get(key)} in {one.name}, {right.get(key)} in {other.name}"
                raise RunError(f"another {kind}: {key} is {values}")
    left, right = (side.record.get("identity", {}) for side in (one, other))
    for key, what in _IDENTITY.items():
        if key in left and key in right and left[key] != right[key]:
            raise RunError(f"another {what}: {one.name} and {other.name} are not of the same")
    if one.versions != other.versions:
        by = (f"{s.name} is of interp {', '.join(sorted(s.versions))}" for s in (one, other))
        raise RunError(f"another version: {'; '.join(by)}")
    _require_same_prompts(one, other)


def _require_same_prompts(one: Side, other: Side) -> None:
    left, right = one.prompts(), other.prompts()
    for side, here, there in ((one, left, right), (other, right, left)):
        if alone := [key for key in here if key not in there]:
            n = f"{len(alone)} of {counted(len(here), 'prompt')}"
            raise RunError(f"other prompts: {n} are only in {side.name}, the first {alone[0]!r}")
    for key, prompt in left.items():
        if prompt != right[key]:
            raise RunError(f"other prompts: {key!r} is not the same in {one.name} and {other.name}")


def _prompt_by_prompt(part: Tensors) -> Iterator[Tensors]:
    """Yield the tensors of every prompt; "kept.…" have rows only for prompts that are kept."""
    n = len(next(tensor for name, tensor in part.items() if not name.startswith("kept.")))
    kept = part.get("kept", torch.ones(n)).bool().long()
    starts = [0, *kept.cumsum(0).tolist()]
    for i, (start, end) in enumerate(pairwise(starts)):
        yield {
            name: tensor[start:end] if name.startswith("kept.") else tensor[i : i + 1]
            for name, tensor in part.items()
        }


def _numbers(frame: pd.DataFrame) -> dict[Row, float]:
    """Return the finite numbers of a table whose rows have an interval, unless two have one key."""
    names = [*frame.columns]
    if "low" not in names:
        return {}
    value = "mean" if "mean" in names else names[names.index("low") - 1]
    before = [name for name in names[: names.index(value)] if name not in _OTHER]
    behind = [name for name in names[names.index("low") :] if frame[name].dtype.kind in "OUT"]
    keys = [frame[name].tolist() for name in (*before, *behind)]
    rows = [_row((*before, *behind), of) for of in zip(*keys, strict=True)] if keys else [Row("")]
    numbers, seen = dict[Row, float](), set[Row]()
    for row, number in zip(rows, frame[value].to_numpy(np.float64, na_value=np.nan), strict=False):
        if row in seen:
            numbers.pop(row, None)
        elif np.isfinite(number):
            numbers[row] = float(number)
        seen.add(row)
    return numbers


def _row(names: Sequence[str], values: Sequence[Any]) -> Row:
    """Return a row's key: whole numbers are its place, everything else says what it is."""
    known = [(k, v) for k, v in zip(names, values, strict=True) if not pd.isna(v) and v != ""]
    words = [str(v) for _, v in known if isinstance(v, str | bool | np.bool_)]
    numbers = [(k, v) for k, v in known if not isinstance(v, str | bool | np.bool_)]
    words += [f"{k} {v:g}" for k, v in numbers if v != int(v)]
    place = tuple((k, int(v)) for k, v in numbers if v == int(v))
    return Row(", ".join(words), place)
