"""What an analysis returns: findings, a tidy frame and a figure, rebuilt from parts at any time."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from numpy.typing import ArrayLike

from interp.figures.export import export
from interp.figures.mixers import with_mixers, with_shaded_mixers
from interp.figures.pictures import svg_of
from interp.figures.words import capital, counted
from interp.shapes import Tensors
from interp.stats.estimate import Estimate
from interp.stats.groups import Groups

LONGEST_CLAIM = 160  # characters
LONGEST_MEASURE = 114  # of a comparison, whose measure may become its claim
MOST_FINDINGS = 3

R = TypeVar("R", bound="Result")  # not Self, which runtime checks refuse in a plain class
S = TypeVar("S", pd.DataFrame, go.Figure)
Kind = Literal["describes", "compares"]


@dataclass(frozen=True)
class Compared:
    """What a finding's estimate is compared with: a control, or the strongest rival."""

    name: str
    estimate: Estimate


@dataclass(frozen=True)
class Finding:
    """One claim in one sentence, and the number that it rests on.

    `kind` "describes" gives a size; "compares" gives a difference from its control, with an
    interval, and claims an effect only where that excludes 0. `measure` says what the number is,
    with its unit, and does not change with the model or the task, so that findings can be compared.
    The number of prompts, the control (which could have made the finding worthless), the strongest
    rival and a `note` (how the number was made, if it was picked or many were tested) are shown
    next to the claim, not in it.
    """

    claim: str
    estimate: Estimate | None = None
    measure: str = ""
    control: Compared | None = None
    rival: Compared | None = None
    kind: Kind = "describes"
    note: str = ""

    def __post_init__(self) -> None:
        """Claim nothing of a comparison without an interval."""
        known = self.estimate
        if self.kind != "compares" or known is None or not math.isfinite(known.value):
            return
        if known.has_interval or "too few" in self.claim.lower():
            return
        claim = f"{capital(self.measure)}: {known:.2g}, of too few prompts to compare."
        object.__setattr__(self, "claim", claim)

    def to_json(self) -> dict[str, Any]:
        """Return plain values: claim, measure, kind, note, the estimate's, comparisons."""
        nothing = dict.fromkeys(("value", "low", "high", "n", "n_groups"))
        comparisons = {"control": self.control, "rival": self.rival}
        return {
            "claim": self.claim,
            "measure": self.measure,
            "kind": self.kind,
            **({"note": self.note} if self.note else {}),
            **(nothing if self.estimate is None else self.estimate.to_json()),
            **{
                role: {"name": other.name, **other.estimate.to_json()}
                for role, other in comparisons.items()
                if other is not None
            },
        }


@dataclass(frozen=True)
class Origin:
    """Where a result was read from: a run's folder, and its cell's names."""

    folder: Path
    model: str
    task: str
    analysis: str
    label: str = ""


def _marked(shown: Callable[[Any], S], mark: Callable[[S, Sequence[str]], S]) -> Callable[[Any], S]:
    @wraps(shown)
    def marked(result: Any) -> S:
        return mark(shown(result), result.mixers) if result.mixers else shown(result)

    return marked


class Result(ABC):
    """What an analysis returns.

    `origin` is the run folder that it was read from, if any; `prompt_groups` [prompt] are the
    groups of the prompts measured, in the order of the parts (None: every prompt is its own).
    `mixers` are the layers' where not all are attention; frames by layer have such a column then.
    """

    origin: Origin | None = None
    prompt_groups: Groups | None = None
    mixers: tuple[str, ...] = ()

    def __init_subclass__(cls) -> None:
        """Name the layers' mixers in frames, and shade them in figures, where they differ."""
        if "to_frame" in vars(cls):
            cls.to_frame = _marked(cls.to_frame, with_mixers)  # type: ignore[method-assign,assignment]
        if "plot" in vars(cls):
            cls.plot = _marked(cls.plot, with_shaded_mixers)  # type: ignore[method-assign,assignment]

    def read_from(self: R, origin: Origin) -> R:
        """Return this result as read from a run folder."""
        return self._with(origin=origin)

    def of_groups(self: R, groups: Groups | None) -> R:
        """Return this result with the groups of its prompts."""
        return self._with(prompt_groups=groups)

    def of_mixers(self: R, mixers: Sequence[str]) -> R:
        """Return this result with what mixes positions in each layer, unless all is attention."""
        return self._with(mixers=tuple(mixers) if {*mixers} - {"attention"} else ())

    def groups_of(self, chosen: ArrayLike) -> Groups | None:
        """Return the groups of the prompts chosen by a mask or by numbers; None as of all."""
        return None if self.prompt_groups is None else self.prompt_groups[np.asarray(chosen)]

    def _with(self: R, **attributes: Any) -> R:
        result = copy(self)
        vars(result).update(attributes)  # results are frozen
        return result

    @abstractmethod
    def to_frame(self) -> pd.DataFrame:
        """Return all numbers as a tidy frame, one value per row."""

    @abstractmethod
    def plot(self) -> go.Figure:
        """Return a titled figure."""

    def export(self, path: str | Path, *, width: str = "one-column") -> Path:
        """Write the figure to a .pdf, .svg or .png file for a paper: see `interp.export`."""
        return export(self.plot(), path, width=width)

    @abstractmethod
    def findings(self) -> tuple[Finding, ...]:
        """Return one to three findings, the most important first.

        Each claim is one sentence of at most 160 characters with one number. It names at most three
        layers or heads, so that it can be read at 80 layers too (see `interp.figures.words`).
        """

    def summary(self) -> str:
        """Return the first finding's claim."""
        return self.findings()[0].claim

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self.summary()}"

    def _repr_html_(self) -> str:
        """Return what notebooks show: the first finding and a still picture, no scripts."""
        frame = self.to_frame()
        picture = svg_of(json.loads(str(self.plot().to_json())))
        more = (
            f"{counted(len(self.findings()), 'finding')} in <code>.findings()</code>,"
            f" {counted(len(frame), 'row')} in <code>.to_frame()</code>,"
            " the interactive figure in <code>.plot()</code>"
        )
        claim = f"<b>{type(self).__name__}</b> · {escape(self.summary())}"
        return f"<div>{claim}</div>{picture}<div><small>{more}</small></div>"


def concatenated(parts: Sequence[Tensors]) -> Tensors:
    """Return the tensors of all parts, concatenated along their first axis."""
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def joined(parts: Sequence[Tensors]) -> dict[str, np.ndarray]:
    """Return the tensors of all parts, concatenated, as arrays; bfloat16 becomes float32."""
    whole = concatenated(parts)
    return {
        key: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()
        for key, tensor in whole.items()
    }


def faults_of(findings: Sequence[Finding]) -> list[str]:
    """Return which rules of `Result.findings` these findings break."""
    faults = [] if 1 <= len(findings) <= MOST_FINDINGS else [f"{len(findings)} findings; 1 to 3"]
    for finding in findings:
        claim, estimate = finding.claim, finding.estimate
        if len(claim) > LONGEST_CLAIM:
            faults.append(f"{len(claim)} characters (at most {LONGEST_CLAIM}): {claim}")
        if ". " in claim.rstrip("."):
            faults.append(f"more than one sentence: {claim}")
        if estimate is None:
            continue
        if finding.kind == "compares" and finding.control is None:
            faults.append(f"a comparison without a control: {claim}")
        if not finding.measure:
            faults.append(f"a number without a measure: {claim}")
        if finding.kind == "compares" and len(finding.measure) > LONGEST_MEASURE:
            faults.append(f"{len(finding.measure)} characters of measure: {finding.measure}")
        if estimate.has_interval:
            slack = 1e-6 * max(1.0, abs(estimate.value))
            if not estimate.low - slack <= estimate.value <= estimate.high + slack:
                faults.append(f"{estimate} is outside its interval: {claim}")
        if math.isinf(estimate.value):
            faults.append(f"an infinite number: {claim}")
    return faults
