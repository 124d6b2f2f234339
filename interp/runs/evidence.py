"""What run.json records of findings, for reports and the viewer alike; no torch here."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from interp.figures.words import capital, counted
from interp.stats.estimate import Estimate

_ROLES = {
    "control": "control",
    "rival": "strongest rival",
    "untrained": "the same of an untrained model",
}
UNTRAINED = "@untrained"


@dataclass(frozen=True)
class Evidence:
    """A number that supports a claim: what it is, its interval, and over how many prompts.

    Without a number it is a note on how the claim's own was made.
    """

    what: str
    number: str = ""
    prompts: str = ""

    def __str__(self) -> str:
        number = f"{self.what}: {self.number}" if self.number else self.what
        return ", ".join(filter(None, (number, self.prompts)))


def findings_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a finished cell's findings; runs of interp 0.1 may have recorded only a summary."""
    return list(record.get("findings") or [{"claim": record.get("summary", "")}])


def beside_untrained(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return a run's cells, each finding with the untrained model's value of the same measure.

    It is taken from the cell of MODEL@untrained with the same task, analysis and label.
    """
    found = {path: dict(cell) for path, cell in cells.items()}
    of = {_name(cell): cell for cell in found.values()}
    for (model, task, analysis, label), cell in of.items():
        twin = of.get((f"{model}{UNTRAINED}", task, analysis, label))
        if twin is None or "findings" not in cell:
            continue
        values = {
            finding["measure"]: finding
            for finding in reversed(findings_of(twin))
            if finding.get("measure") and finding.get("value") is not None
        }
        cell["findings"] = [
            {**finding, "untrained": values[finding["measure"]]}
            if finding.get("measure") in values
            else finding
            for finding in cell["findings"]
        ]
    return found


def is_control(model: str, models: Iterable[str]) -> bool:
    """Tell whether a model is only there to stand beside another of a run's models."""
    return model.endswith(UNTRAINED) and model.removesuffix(UNTRAINED) in models


def _name(cell: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return cell["model"], cell["task"], cell["analysis"], cell.get("label") or ""


def evidence(finding: Mapping[str, Any]) -> list[Evidence]:
    """Return a finding's own number, its control's, its strongest rival's, the untrained model's.

    Those that a finding lacks are left out; runs of interp 0.1 have none but its own.
    """
    numbers = [(str(finding.get("measure") or "value"), finding)]
    for role, words in _ROLES.items():
        other = finding.get(role)
        if other:
            name = other.get("name")
            numbers.append((f"{words}, {name}" if name else words, other))
    found = [
        Evidence(capital(what), *_in_words(number))
        for what, number in numbers
        if number.get("value") is not None
    ]
    return [*found, Evidence(capital(finding["note"]))] if finding.get("note") else found


def _in_words(number: Mapping[str, Any]) -> tuple[str, str]:
    estimate = Estimate.from_json(number)
    n, n_groups = estimate.n, estimate.n_groups
    prompts = counted(n, "prompt") if n else ""
    if n_groups and n_groups != n:
        prompts += f" in {counted(n_groups, 'group')}"
    few = "few prompts" if estimate.is_of_few else ""
    return str(estimate), "; ".join(filter(None, (prompts, few)))
