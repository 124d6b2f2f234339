"""Published claims as data, and the verdict of a finished run on each of them; no torch here."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from interp.figures.words import points
from interp.numerals import number
from interp.stats.estimate import Estimate

Side = Literal["above", "below", "within", "outside"]
HOLDS, FAILS = "holds", "fails"
CONTROL_TOO = "not beyond its control"
UNDECIDED = "not decidable"

_NONE = "there is no such number: too few prompts, or layers"


@dataclass(frozen=True)
class Paper:
    """A paper: what it is called for short, its arXiv number and the page that is about it."""

    name: str
    arxiv: str
    page: str


@dataclass(frozen=True)
class Claim:
    """One claim, and the number of one analysis that decides it.

    It holds where the interval of `measure` lies on one `side` of `bound` ("within" and "outside"
    are of ±`bound`), and fails where it lies on the other. If there is a comparison `beyond` a
    control, its interval must lie above 0 too ("below" where that is `better`); a claim that holds
    without that is not beyond its control. A claim may be of models alone whose blocks have their
    `norms` there.
    """

    paper: Paper
    says: str
    analysis: str
    measure: str
    side: Side
    bound: float
    beyond: str = ""
    better: Side = "above"
    unit: str = ""
    norms: str = ""

    def is_of(self, model: str) -> bool:
        """Tell whether a claim is about models like this one: some are of one place of norms."""
        norms = _read()["norms"].get(model.partition("@")[0], "before")
        return self.norms in ("", norms)

    @property
    def rule(self) -> str:
        """Return where the number must lie: "cosine of a write and the stream: below 0"."""
        spec = ".0%" if self.unit in ("share", "points") and self.bound else ".3g"
        bound = number(self.bound, spec)
        if self.side in ("within", "outside"):
            bound = f"±{bound}"
        return f"{self.measure}: {self.side} {bound}"


@dataclass(frozen=True)
class Verdict:
    """What a run says of a claim, with its number, of `n` prompts, or the reason for none.

    The word is HOLDS, FAILS, CONTROL_TOO or UNDECIDED.
    """

    word: str
    number: str = ""
    control: str = ""
    why: str = ""
    n: int = 0


@cache
def claims() -> tuple[Claim, ...]:
    """Return all claims, in the order of their papers."""
    read = _read()
    papers = {key: Paper(**about) for key, about in read["papers"].items()}
    return tuple(Claim(**{**each, "paper": papers[each["paper"]]}) for each in read["claims"])


@cache
def _read() -> dict[str, Any]:
    return tomllib.loads(files(__package__).joinpath("claims.toml").read_text(encoding="utf-8"))


def judge(claim: Claim, numbers: Mapping[str, Mapping[str, Any]]) -> Verdict:
    """Return what findings, by their measure, say of a claim."""
    found = numbers.get(claim.measure)
    if found is None or found.get("value") is None:
        said = found or (next(iter(numbers.values())) if len(numbers) == 1 else {})
        return Verdict(UNDECIDED, why=str(said.get("claim") or _NONE))
    estimate = Estimate.from_json(found)
    word, why = _side(claim, estimate), ""
    if word == HOLDS and claim.beyond:
        word, why = _beyond(claim, numbers.get(claim.beyond))
    elif not estimate.has_interval:
        why = "no interval"
    text, control = _text(estimate, claim.unit), _control(found, claim.unit)
    return Verdict(word, text, control, why, estimate.n)


def _text(estimate: Estimate, unit: str) -> str:
    if unit == "points":
        return points(estimate)
    return format(estimate, ".0%" if unit == "share" else ".3g")


def _side(claim: Claim, found: Estimate) -> str:
    """Return on which side of the bound an interval lies, if on one."""
    if not found.has_interval:
        return UNDECIDED
    low, high, bound = found.low, found.high, claim.bound
    is_within, is_outside = -bound <= low and high <= bound, low > bound or high < -bound
    holds, fails = {
        "above": (low > bound, high < bound),
        "below": (high < bound, low > bound),
        "within": (is_within, is_outside),
        "outside": (is_outside, is_within),
    }[claim.side]
    return HOLDS if holds else FAILS if fails else UNDECIDED


def _beyond(claim: Claim, compared: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return whether a claim holds beyond a control, and what is said of that."""
    if compared is None or compared.get("value") is None:
        return UNDECIDED, "its control has no number"
    difference = Estimate.from_json(compared)
    is_more = difference.low > 0 if claim.better == "above" else difference.high < 0
    said = f"beyond its control: {_text(difference, 'points' if claim.unit else '')}"
    return (HOLDS if is_more else CONTROL_TOO), said


def _control(found: Mapping[str, Any], unit: str) -> str:
    control = found.get("control")
    if not control or control.get("value") is None:
        return ""
    of_it = _text(Estimate.from_json(control), "share" if unit == "points" else unit)
    return f"{control['name']}: {of_it}"
