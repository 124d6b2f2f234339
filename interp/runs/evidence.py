"""What run.json records of findings, for reports and the viewer alike; no torch here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from interp.figures.words import counted, with_minus
from interp.stats.estimate import NAN, Estimate

_ROLES = {"control": "control", "rival": "strongest rival"}


@dataclass(frozen=True)
class Evidence:
    """A number that supports a claim: what it is, its interval, and over how many prompts."""

    what: str
    number: str
    prompts: str = ""

    def __str__(self) -> str:
        return ", ".join(filter(None, (f"{self.what}: {self.number}", self.prompts)))


def findings_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a finished cell's findings; runs of interp 0.1 may have recorded only a summary."""
    return list(record.get("findings") or [{"claim": record.get("summary", "")}])


def evidence(finding: Mapping[str, Any]) -> list[Evidence]:
    """Return a finding's own number, its control's and its strongest rival's.

    Those that a finding lacks are left out; runs of interp 0.1 have neither control nor rival.
    """
    numbers = [(str(finding.get("measure") or "value"), finding)]
    for role, words in _ROLES.items():
        other = finding.get(role)
        if other:
            numbers.append((f"{words}, {other.get('name', '')}", other))
    return [
        Evidence(what[:1].upper() + what[1:], *_in_words(number))
        for what, number in numbers
        if number.get("value") is not None
    ]


def _in_words(number: Mapping[str, Any]) -> tuple[str, str]:
    value, low, high = (
        NAN if number.get(key) is None else float(number[key]) for key in ("value", "low", "high")
    )
    n = number.get("n")
    return with_minus(str(Estimate(value, low, high))), counted(n, "prompt") if n else ""
