"""The contract of a model, as a test suite: what can be read and written, checked against stock
Hugging Face passes.

interp.testing.check_model(model)              raises AssertionError, naming every check that failed
interp.testing.examine(model).to_frame()       one row a check: ok, refused (with the reason) or failed
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch

from interp.errors import InterpError, SiteError
from interp.models import Model
from interp.sites import KINDS, Site, SiteKind
from interp.testing.passes import PASS_CHECKS
from interp.testing.places import READ, WRITE
from interp.testing.probe import Probe

__all__ = ["Examination", "Finding", "check_model", "examine"]
Status = Literal["ok", "refused", "failed"]


@dataclass(frozen=True)
class Finding:
    """One check of one model: a pass ("replay"), or a kind of site that is read or written."""

    check: str
    aspect: Literal["pass", "read", "write"]
    status: Status
    why: str = ""


@dataclass(frozen=True)
class Examination:
    """All findings about one model."""

    model: str
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> tuple[Finding, ...]:
        """Return the checks that failed: there something is not what its name says."""
        return tuple(finding for finding in self.findings if finding.status == "failed")

    @property
    def refused(self) -> tuple[Finding, ...]:
        """Return what this model does not have, or does not let be read or written."""
        return tuple(finding for finding in self.findings if finding.status == "refused")

    def status(self, check: str, aspect: str) -> Finding:
        """Return the finding of one check."""
        return next(f for f in self.findings if (f.check, f.aspect) == (check, aspect))

    def to_frame(self) -> pd.DataFrame:
        """Return one row a check."""
        return pd.DataFrame([vars(finding) for finding in self.findings])


def examine(
    model: Model,
    *,
    seed: int = 0,
    n_pos: int = 10,
    progress: Callable[[str], None] = lambda _: None,
) -> Examination:
    """Return what every check finds out about a model, on two rows of `n_pos` random tokens drawn
    with `seed`.
    """
    probe, findings = Probe(model, seed=seed, n_pos=n_pos), []
    with model.running, torch.no_grad():
        for finding in _findings(probe, progress):
            findings.append(finding)
    return Examination(model.name, tuple(findings))


def check_model(model: Model, *, seed: int = 0) -> None:
    """Raise AssertionError, naming every check that failed; what a model refuses with a reason is
    no failure.
    """
    failed = examine(model, seed=seed).failed
    if failed:
        lines = [f"{finding.check} ({finding.aspect}): {finding.why}" for finding in failed]
        raise AssertionError(f"{model.name} breaks {len(failed)} checks:\n" + "\n".join(lines))


def _findings(probe: Probe, progress: Callable[[str], None]) -> Iterator[Finding]:
    for name, check in PASS_CHECKS.items():
        progress(name)
        yield Finding(name, "pass", *_outcome(check, probe))
    for kind in KINDS:
        progress(kind)
        layers, why = _readable_layers(probe, kind)
        yield Finding(
            kind, "read", *(("refused", why) if why else _over_layers(READ[kind], probe, layers))
        )
        why = why or _why_not_written(probe, kind, layers)
        yield Finding(
            kind, "write", *(("refused", why) if why else _over_layers(WRITE[kind], probe, layers))
        )


def _outcome(check: Callable[[Probe], None], probe: Probe) -> tuple[Status, str]:
    try:
        check(probe)
    except SiteError as error:
        return "refused", _line(error)
    except Exception as error:
        return "failed", _line(error)
    return "ok", ""


def _over_layers(
    check: Callable[[Probe, int], None], probe: Probe, layers: list[int]
) -> tuple[Status, str]:
    for layer in layers:
        status, why = _outcome(lambda probe, layer=layer: check(probe, layer), probe)  # type: ignore[misc]
        if status != "ok":
            return status, why
    return "ok", ""


def _readable_layers(probe: Probe, kind: SiteKind) -> tuple[list[int], str]:
    """Return those of the probe's layers where a kind of site can be read, and why in none, if in
    none.
    """
    layers, why = [], ""
    for layer in probe.layers:
        try:
            probe.model.refuse(Site(kind, layer))
            layers.append(layer)
        except InterpError as error:
            why = _line(error)
    return layers, "" if layers else why


def _why_not_written(probe: Probe, kind: SiteKind, layers: list[int]) -> str:
    for layer in layers:
        try:
            probe.model.refuse(Site(kind, layer), is_edited=True)
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
