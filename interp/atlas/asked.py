"""What runs say of every model, and the verdicts on all claims that follow from it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp.atlas.claims import Claim, Verdict, claims, judge
from interp.atlas.measured import measured
from interp.runs.evidence import UNTRAINED
from interp.runs.folder import Cell, cells_of
from interp.runs.run_folder import RunFolder, open_run

NOT_ASKED = ""


@dataclass
class Asked:
    """What runs say of one model: its findings by cell, in order, and why some cells have none.

    `numbers` maps a cell to findings by their measure, `prompts` a task to how many.
    """

    model: str
    about: Mapping[str, Any]
    runs: list[RunFolder] = field(default_factory=list)
    findings: dict[Cell, list[dict[str, Any]]] = field(default_factory=dict)
    numbers: dict[Cell, dict[str, Mapping[str, Any]]] = field(default_factory=dict)
    reasons: dict[Cell, str] = field(default_factory=dict)
    prompts: dict[str, int] = field(default_factory=dict)

    @property
    def is_untrained(self) -> bool:
        """Tell whether it is there to show what no training gives."""
        return self.model.endswith(UNTRAINED)

    def cells_of(self, run: RunFolder) -> list[Cell]:
        """Return the model's finished cells of a run."""
        records = cells_of(run.info).items()
        return [c for c, each in records if c.model == self.model and each["status"] == "ok"]

    def verdict(self, claim: Claim) -> Verdict:
        """Return what is known of a claim, from the cell with most prompts that has its number."""
        if not claim.is_of(self.model):
            return Verdict(NOT_ASKED, why="its blocks have other norms")
        cells = [cell for cell in self.numbers if cell.analysis == claim.analysis]
        known = [judge(claim, self.numbers[cell]) for cell in cells]
        if known:
            return max(known, key=lambda verdict: (bool(verdict.number), verdict.n))
        reasons = [why for cell, why in self.reasons.items() if cell.analysis == claim.analysis]
        return Verdict(NOT_ASKED, why=reasons[0] if reasons else "not asked")


def asked_of(folders: Sequence[Path]) -> list[Asked]:
    """Return what finished runs say of each of their models, untrained ones last."""
    models: dict[str, Asked] = {}
    for run in map(open_run, folders):
        for model, about in run.info["models"].items():
            one = models.setdefault(model, Asked(model, about))
            one.runs.append(run)
        for path, record in run.info["cells"].items():
            _read(models[record["model"]], run, Cell.of(path, record), record)
    return sorted(models.values(), key=lambda one: one.is_untrained)


def _read(one: Asked, run: RunFolder, cell: Cell, record: Mapping[str, Any]) -> None:
    if record["status"] != "ok":
        one.reasons[cell] = record.get("error") or record["status"]
        return
    if record["parameters"].get("target") == cell.model:
        one.reasons[cell] = "it was compared with itself alone"
        return
    result = run[cell.model, cell.task, cell.name]
    one.findings[cell], more = (
        [finding.to_json() for finding in found] for found in (result.findings(), measured(result))
    )
    numbers: dict[str, Mapping[str, Any]] = {}
    for finding in (*one.findings[cell], *more):
        numbers.setdefault(finding.get("measure") or finding.get("claim", ""), finding)
    one.numbers[cell] = numbers
    n = len(run.prompts(cell.model, cell.task, cell.name))
    one.prompts[cell.task] = max(n, one.prompts.get(cell.task, 0))


def verdicts(models: Sequence[Asked]) -> Iterator[tuple[Claim, list[Verdict]]]:
    """Yield every claim with what each model says of it."""
    for claim in claims():
        yield claim, [one.verdict(claim) for one in models]
