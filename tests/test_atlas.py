"""The atlas: verdicts follow from intervals, and claims from what analyses measure."""

import subprocess
import sys
from pathlib import Path

import pytest

import interp.analyses
from interp.atlas.asked import asked_of, verdicts
from interp.atlas.claims import CONTROL_TOO, FAILS, HOLDS, UNDECIDED, Claim, claims, judge
from interp.atlas.pages import write_atlas
from interp.runs import Study, execute

DOCS = Path(__file__).parents[1] / "docs"


def claim(side: str, bound: float, **more: str) -> Claim:
    paper = claims()[0].paper
    return Claim(paper, "Layers do.", "layer_skip", "a measure", side, bound, **more)  # type: ignore[arg-type]


def number(value: float | None, low: float | None, high: float | None) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high, "n": 20}


@pytest.mark.parametrize(
    ("side", "bound", "interval", "word"),
    [
        ("above", 0.5, (0.6, 0.8), HOLDS),
        ("above", 0.5, (0.4, 0.8), UNDECIDED),
        ("above", 0.5, (0.1, 0.4), FAILS),
        ("below", 1.0, (0.6, 0.8), HOLDS),
        ("below", 1.0, (1.1, 1.2), FAILS),
        ("within", 0.5, (-0.4, 0.3), HOLDS),
        ("within", 0.5, (0.6, 0.9), FAILS),
        ("within", 0.5, (-0.9, -0.6), FAILS),
        ("within", 0.5, (-0.1, 0.6), UNDECIDED),
        ("outside", 0.05, (0.06, 0.1), HOLDS),
        ("outside", 0.05, (-0.02, 0.03), FAILS),
        ("above", 0.0, (None, None), UNDECIDED),
    ],
)
def test_a_verdict_is_where_the_interval_lies(
    side: str, bound: float, interval: tuple[float, float], word: str
) -> None:
    found = {"a measure": number(0.5, *interval)}
    assert judge(claim(side, bound), found).word == word


@pytest.mark.parametrize(
    ("better", "interval", "word"),
    [
        ("above", (0.1, 0.3), HOLDS),
        ("above", (-0.1, 0.3), CONTROL_TOO),
        ("above", (-0.3, -0.1), CONTROL_TOO),
        ("below", (-0.3, -0.1), HOLDS),
        ("above", None, UNDECIDED),
    ],
)
def test_a_claim_that_holds_must_hold_beyond_its_control(
    better: str, interval: tuple[float, float] | None, word: str
) -> None:
    found = {"a measure": number(0.9, 0.8, 1.0)}
    if interval:
        found["a comparison"] = number(0.0, *interval)
    asked = claim("above", 0.75, beyond="a comparison", better=better, unit="share")
    verdict = judge(asked, found)
    assert (verdict.word, verdict.number) == (word, "90 % [80, 100]")


def test_what_an_analysis_says_instead_is_the_reason() -> None:
    nothing = {"": {"claim": "Nothing to repair.", "value": None}}
    assert judge(claim("above", 0), nothing).why == "Nothing to repair."


def test_every_claim_is_of_an_analysis_and_a_page_that_exist() -> None:
    known = {path.stem for path in Path(interp.analyses.__path__[0]).iterdir()}
    for each in claims():
        assert each.analysis in known
        assert (DOCS / each.paper.page).is_file()
        assert each.says.endswith(".")


def test_every_claim_has_a_number_in_the_pages_that_are_shipped() -> None:
    table = (DOCS / "atlas" / "index.md").read_text(encoding="utf-8")
    for each in claims():
        row = next(line for line in table.splitlines() if line.startswith(f"| {each.says}"))
        assert "holds" in row or "fails" in row or "control" in row or "decidable" in row


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cheap = "residual_contribution layer_skip void_detection stream_statistics attention_rank"
    folder = tmp_path_factory.mktemp("atlas") / "run"
    models = ("zoo/hops-4l", "zoo/hops-4l@untrained")
    execute(Study(models, ("two-hop",), {name: {} for name in cheap.split()}, n=8), folder)
    return folder


def test_models_are_asked_the_untrained_last(run: Path) -> None:
    models = asked_of([run])
    assert [one.model for one in models] == ["zoo/hops-4l", "zoo/hops-4l@untrained"]
    asked = [(claim, found[0]) for claim, found in verdicts(models)]
    said = {claim.measure: verdict for claim, verdict in asked if claim.is_of("zoo/hops-4l")}
    of_others = [verdict for claim, verdict in asked if not claim.is_of("zoo/hops-4l")]
    assert {verdict.why for verdict in of_others} == {"its blocks have other norms"}
    later = said["second half over first: change of the output less change at later tokens"]
    assert later.number
    growth = said["error of a line less that of an exponential, fitted to the variance"]
    assert growth.word == FAILS  # a line fits hops-4l better
    assert said["wrong answers that search makes right"].why == "not asked"


def test_pages_are_written_from_a_run(run: Path, tmp_path: Path) -> None:
    done = [sys.executable, "-m", "interp.atlas", str(run), "--out", str(tmp_path), "--no-pictures"]
    subprocess.run(done, check=True, capture_output=True)
    index = (tmp_path / "index.md").read_text(encoding="utf-8")
    assert "| claim | [hops-4l](hops-4l.md) | [untrained hops-4l](hops-4l@untrained.md) |" in index
    page = (tmp_path / "hops-4l.md").read_text(encoding="utf-8")
    assert "4 layers, width 128" in page
    assert "[layer_skip](../analyses/layer_skip.md)" in page


def test_nothing_is_written_for_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no run"):
        list(write_atlas([tmp_path], tmp_path / "out"))
    assert not (tmp_path / "out").exists()
