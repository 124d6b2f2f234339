"""The contracts of models and of analyses, as tests to run on your own.

check_model(model)                     raises AssertionError, naming every check that failed
examine(model).to_frame()              one row a check: ok, refused (with the reason) or failed
check_analysis(analysis, model, task)  raises AssertionError, naming every broken promise

A model's sites are compared with stock Hugging Face passes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch

from interp.errors import InterpError, SiteError
from interp.models import Model
from interp.sites import KINDS, Site, SiteKind
from interp.testing.contract import broken_promises, check_analysis
from interp.testing.passes import PASS_CHECKS
from interp.testing.places import READ, WRITE
from interp.testing.under_test import ModelUnderTest

__all__ = [
    "Check",
    "Examination",
    "broken_promises",
    "check_analysis",
    "check_model",
    "examine",
]
Status = Literal["ok", "refused", "failed"]


@dataclass(frozen=True)
class Check:
    """One check of one model: a pass ("replay"), or a kind of site that is read or written."""

    check: str
    aspect: Literal["pass", "read", "write"]
    status: Status
    why: str = ""


@dataclass(frozen=True)
class Examination:
    """All checks of one model; those of single layers were made at `layers`."""

    model: str
    checks: tuple[Check, ...]
    layers: tuple[int, ...] = ()

    @property
    def failed(self) -> tuple[Check, ...]:
        """Return the checks that failed: something there is not what its name says."""
        return tuple(check for check in self.checks if check.status == "failed")

    @property
    def refused(self) -> tuple[Check, ...]:
        """Return what this model does not have, or does not let be read or written."""
        return tuple(check for check in self.checks if check.status == "refused")

    def status(self, check: str, aspect: str) -> Check:
        """Return the check of that name and aspect."""
        return next(c for c in self.checks if (c.check, c.aspect) == (check, aspect))

    def to_frame(self) -> pd.DataFrame:
        """Return one row a check."""
        return pd.DataFrame([vars(check) for check in self.checks])


def examine(
    model: Model,
    *,
    seed: int = 0,
    n_pos: int = 10,
    progress: Callable[[str], None] = lambda _: None,
) -> Examination:
    """Return all checks of a model, on two rows of `n_pos` random tokens drawn with `seed`."""
    tested = ModelUnderTest(model, seed=seed, n_pos=n_pos)
    with model.running, torch.no_grad():
        return Examination(model.name, tuple(_checks(tested, progress)), tested.layers)


def check_model(model: Model, *, seed: int = 0) -> None:
    """Raise AssertionError, naming every check that failed.

    What a model refuses with a reason does not count as a failure.
    """
    failed = examine(model, seed=seed).failed
    if failed:
        lines = [f"{check.check} ({check.aspect}): {check.why}" for check in failed]
        raise AssertionError(f"{model.name} breaks {len(failed)} checks:\n" + "\n".join(lines))


def _checks(tested: ModelUnderTest, progress: Callable[[str], None]) -> Iterator[Check]:
    for name, check in PASS_CHECKS.items():
        progress(name)
        yield Check(name, "pass", *_outcome(check, tested))
    for kind in KINDS:
        progress(kind)
        layers, why = _readable_layers(tested, kind)
        yield Check(
            kind, "read", *(("refused", why) if why else _over_layers(READ[kind], tested, layers))
        )
        why = why or _why_not_written(tested, kind, layers)
        yield Check(
            kind, "write", *(("refused", why) if why else _over_layers(WRITE[kind], tested, layers))
        )


def _outcome(check: Callable[[ModelUnderTest], None], tested: ModelUnderTest) -> tuple[Status, str]:
    try:
        check(tested)
    except SiteError as error:
        return "refused", _line(error)
    except Exception as error:
        return "failed", _line(error)
    return "ok", ""


def _over_layers(
    check: Callable[[ModelUnderTest, int], None], tested: ModelUnderTest, layers: list[int]
) -> tuple[Status, str]:
    for layer in layers:
        status, why = _outcome(lambda tested, layer=layer: check(tested, layer), tested)  # type: ignore[misc]
        if status != "ok":
            return status, why
    return "ok", ""


def _readable_layers(tested: ModelUnderTest, kind: SiteKind) -> tuple[list[int], str]:
    """Return the tested layers where a kind of site can be read, or why there are none."""
    layers, why = [], ""
    for layer in tested.layers:
        try:
            tested.model.refuse(Site(kind, layer))
            layers.append(layer)
        except InterpError as error:
            why = _line(error)
    return layers, "" if layers else why


def _why_not_written(tested: ModelUnderTest, kind: SiteKind, layers: list[int]) -> str:
    for layer in layers:
        try:
            tested.model.refuse(Site(kind, layer), is_edited=True)
        except InterpError as error:
            return _line(error)
    return ""


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    message = text[0] if text else type(error).__name__
    return (
        message
        if isinstance(error, InterpError | AssertionError)
        else f"{type(error).__name__}: {message}"
    )
