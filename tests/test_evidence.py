"""What stands beside a claim: its number, control and rival, and the untrained model's number."""

from pathlib import Path
from typing import Any

from interp.reports.gather import gather
from interp.result import Compared, Finding
from interp.runs import Study, execute
from interp.runs.evidence import beside_untrained, evidence
from interp.stats.estimate import Estimate


def test_groups_few_prompts_and_notes_are_said() -> None:
    control = Compared("chance", Estimate(0.25, n=12))
    estimate = Estimate(0.5, 0.1, 0.9, n=12, n_groups=6)
    note = "picked on one half of the prompts, measured on the other"
    finding = Finding("Half.", estimate, "share", control, kind="compares", note=note)
    own, other, how = map(str, evidence(finding.to_json()))
    assert own == "Share: 0.5 [0.1, 0.9], 12 prompts in 6 groups; few prompts"
    assert other == "Control, chance: 0.25, 12 prompts"
    assert how == "Picked on one half of the prompts, measured on the other"


def test_the_untrained_models_number_stands_beside_the_same_measure() -> None:
    def cell(model: str, **values: float) -> dict[str, Any]:
        found = [{"claim": "…", "measure": key, "value": x, "n": 8} for key, x in values.items()]
        return {"model": model, "task": "t", "analysis": "a", "label": "", "findings": found}

    cells = {"1": cell("m", size=2.0, other=3.0), "2": cell("m@untrained", size=0.5)}
    found = beside_untrained(cells)["1"]["findings"]
    assert [str(each) for each in evidence(found[0])][-1] == (
        "The same of an untrained model: 0.5, 8 prompts; few prompts"
    )
    assert "untrained" not in found[1]
    assert "untrained" not in cells["1"]["findings"][0]


def test_a_report_shows_an_untrained_twin_beside_its_model_only(tmp_path: Path) -> None:
    models = ("zoo/hops-4l", "zoo/hops-4l@untrained")
    execute(Study(models, ("two-hop",), {"block_influence": {}}, n=8), tmp_path / "run")
    report = gather(tmp_path / "run")
    assert report["title"].endswith("zoo/hops-4l")
    assert [section["model"] for section in report["analyses"]] == ["zoo/hops-4l"]
    assert report["comparisons"] == []
    first = report["findings"][0]
    assert first["untrained"]["measure"] == first["measure"]
    assert first["untrained"]["value"] != first["value"]


def test_a_comparison_without_an_interval_claims_nothing() -> None:
    few, many = Estimate(0.6, n=4), Estimate(0.6, 0.4, 0.8, n=40)
    random = Compared("random paths", Estimate(0.1))
    claim = "It keeps no more than random paths do: 60 %."
    said = [
        Finding(claim, each, "share kept", control=random, kind=kind).claim
        for each, kind in ((few, "compares"), (many, "compares"), (few, "describes"))
    ]
    assert said == [
        "Share kept: 0.6, of too few prompts to compare.",
        claim,
        claim,
    ]
