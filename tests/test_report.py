"""The report: one JSON object, and the page and the Markdown that are made from it."""

import base64
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from html import escape
from pathlib import Path

import jsonschema
import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from markupsafe import escape as as_html
from PIL import Image
from typer.testing import CliRunner

from interp import cli
from interp.errors import RunError
from interp.figures.words import value_text
from interp.files.whole import read_json, write_json
from interp.reports import flatten, schema, write_report
from interp.runs import Study, execute
from interp.runs.registry import find_analyses

HOSTILE = "</script><img src=x onerror=alert(1)>```"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "first"
    analyses = {
        "layer_skip": {},
        "layer_skip@mlp": {"part": "mlp"},
        "logit_lens": {},
        "residual_contribution": {},
    }
    execute(Study(("zoo/hops-4l",), ("two-hop",), analyses, n=8), folder)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_it_keeps_its_published_schema(run: Path) -> None:
    write_report(run)
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(report_of(run), schema())


def test_the_page_holds_the_same_json(run: Path) -> None:
    page = write_report(run).read_text()
    (embedded,) = re.findall(
        r'<script type="application/json" id="report">(.*?)</script>', page, re.DOTALL
    )
    assert json.loads(embedded) == report_of(run)


def test_a_finding_is_said_with_its_interval_control_and_caveat(run: Path) -> None:
    page = write_report(run).read_text()
    first = report_of(run)["findings"][0]
    assert first["of"].startswith("layer skip")
    assert first["low"] <= first["value"] <= first["high"]
    assert first["n"] == 8
    assert first["caveat"] in page
    said = page[: page.index('<script type="application/json" id="report">')]
    assert said.count(f">{as_html(first['claim'])}<") == 1
    assert page.index('id="figure-depth-at-a-glance"') < page.index('id="contents"')
    assert page.index('id="contents"') < page.index(f'<h2 id="{first["id"]}"')


def test_without_strips_the_findings_are_a_list(tmp_path: Path) -> None:
    execute(Study(("zoo/hops-4l",), ("two-hop",), {"parallel_window": {}}, n=4), tmp_path)
    page = write_report(tmp_path).read_text()
    assert 'id="figure-depth-at-a-glance"' not in page
    assert page.index('id="findings"') < page.index('id="contents"')


def test_models_and_tasks_are_compared(tmp_path: Path) -> None:
    study = Study(
        ("zoo/hops-4l", "zoo/hops-8l"),
        ("two-hop",),
        {"layer_skip": {}, "residual_contribution": {}},
        n=4,
    )
    execute(study, tmp_path)
    page = write_report(tmp_path).read_text()
    report = report_of(tmp_path)
    jsonschema.validate(report, schema())
    skip = report["comparisons"][0]
    assert (skip["analysis"], [row["layers"] for row in skip["rows"]]) == ("layer_skip", [4, 8])
    found = {
        s["model"]: s["findings"][0]["value"]
        for s in report["analyses"]
        if s["analysis"] == "layer_skip"
    }
    assert {row["model"]: row["values"][0]["value"] for row in skip["rows"]} == found
    assert 'id="compare-layer_skip"' in page
    assert "compared" in write_report(tmp_path, "md").read_text()
    assert [f["of"].split(" (")[0] for f in report["findings"][:2]] == [
        "layer skip",
        "residual contribution",
    ]


@pytest.mark.parametrize("reverse", [False, True])
def test_many_cells_become_a_picture_with_the_same_colours_the_same_way_up(
    *, reverse: bool
) -> None:
    grid = np.arange(400 * 300, dtype=np.float32).reshape(300, 400)
    grid[0, 0] = np.nan
    figure = go.Figure(go.Heatmap(z=grid, colorscale="Greys", xaxis="x", yaxis="y"))
    figure.update_yaxes(autorange="reversed" if reverse else True)
    flat = json.loads(figure.to_json())
    assert not flatten(json.loads(figure.to_json()), most_cells=200_000)
    assert flatten(flat)
    (image,) = flat["layout"]["images"]
    assert (image["x"], image["sizex"], image["sizey"]) == (-0.5, 400, 300)
    assert image["y"] == (-0.5 if reverse else 299.5)
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(image["source"].split(",")[1]))))
    assert pixels.shape == (300, 400, 4)
    first, last = (pixels[0], pixels[-1]) if reverse else (pixels[-1], pixels[0])
    assert first[0, 3] == 0  # NaN is clear
    assert first[1, 0] < 15 or first[1, 0] > 240
    assert abs(int(first[1, 0]) - int(last[-1, 0])) > 200
    assert len(json.dumps(flat)) < len(figure.to_json()) / 3


def test_every_link_inside_leads_somewhere(run: Path) -> None:
    page = write_report(run).read_text()
    anchors = set(re.findall(r'id="([^"]+)"', page))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= anchors


def test_every_section_links_to_the_viewer(run: Path) -> None:
    page = write_report(run).read_text()
    for section in report_of(run)["analyses"]:
        assert f'<a href="http://localhost:8501/{escape(section["viewer"])}">' in page


@pytest.mark.parametrize("file", ["frame.parquet", "figure.json"])
def test_a_damaged_file_is_a_warning_and_never_shown(run: Path, file: str) -> None:
    path = next(run.rglob(f"logit_lens/{file}"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    write_report(run)
    report = report_of(run)
    assert any(f"logit_lens/{file} is damaged" in warning for warning in report["warnings"])
    section = next(s for s in report["analyses"] if s["analysis"] == "logit_lens")
    assert section["table" if file == "frame.parquet" else "figure"] is None
    jsonschema.validate(report, schema())


def test_what_failed_is_a_warning(run: Path) -> None:
    info = read_json(run / "run.json")
    cell = next(cell for cell in info["cells"].values() if cell["analysis"] == "logit_lens")
    cell |= {"status": "failed", "error": "out of memory"}
    write_json(run / "run.json", info)
    assert "out of memory" in write_report(run).read_text()
    assert any("failed: out of memory" in warning for warning in report_of(run)["warnings"])


def test_hostile_text_is_inert(run: Path) -> None:
    info = read_json(run / "run.json")
    for cell in info["cells"].values():
        cell["summary"] = HOSTILE
        cell["findings"] = [{"claim": HOSTILE, "value": None, "caveat": HOSTILE}]
    info["config"]["tasks"] = [HOSTILE]
    write_json(run / "run.json", info)
    assert "<img src=x" not in write_report(run).read_text()
    before, _, command = write_report(run, "md").read_text().partition("## Reproduce it")
    assert "<img src=x" not in before
    assert command.count("```") == 2  # what is in between is code, whatever it says


def test_a_run_of_an_earlier_version_says_its_summary(run: Path) -> None:
    info = read_json(run / "run.json")
    for cell in info["cells"].values():
        del cell["findings"]
    write_json(run / "run.json", info)
    write_report(run)
    jsonschema.validate(report_of(run), schema())


def test_markdown_has_findings_and_tables(run: Path) -> None:
    text = write_report(run, "md").read_text()
    assert "## Findings" in text
    assert "| scope | effect |" in text
    assert "interp run --model zoo/hops-4l" in text


def test_formats_and_json_from_the_command_line(run: Path) -> None:
    done = CliRunner().invoke(cli.app, ["report", str(run), "--json"])
    assert json.loads(done.stdout)["run"] == "run"
    assert json.loads(CliRunner().invoke(cli.app, ["schema"]).stdout) == schema()
    with pytest.raises(RunError, match="unknown format"):
        write_report(run, "pdf")


NAMED = {
    "layer_skip": {"scopes": ["all"]},
    "layer_skip@mlp": {"part": "mlp"},
    "void_detection": {"max_new_tokens": 2},
}
EVERY = {name: {} for name in find_analyses()} | {"layer_skip": {"part": "mlp"}}


@pytest.mark.parametrize(
    "study",
    [
        Study(("zoo/hops-4l",), ("two-hop",), NAMED, n=4, seed=3, dtype="bfloat16"),
        Study(("zoo/hops-4l",), ("one-hop",), EVERY, n=4, only_fitting=True),
    ],
    ids=["named", "all that suit the task"],
)
def test_the_command_to_reproduce_asks_for_the_same_study(study: Study, tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", begun(study))
    write_report(tmp_path)
    command = shlex.split(report_of(tmp_path)["provenance"]["command"])
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interp.runs.estimate_costs", lambda study, **_: asked.append(study) or [])
        done = CliRunner().invoke(cli.app, [*command[1:-1], str(tmp_path / "again"), "--dry-run"])
    assert done.exit_code == 0, done.exception
    assert [study.planned(model, task) for model in study.models for task in study.tasks] == [
        asked[0].planned(model, task) for model in asked[0].models for task in asked[0].tasks
    ]
    assert replace(asked[0], analyses=study.analyses) == study


def begun(study: Study) -> dict:
    """Return run.json of a run in which nothing is finished yet."""
    known = {
        "schema": 1,
        "started": "2026-01-01",
        "machine": "made",
        "versions": {},
        "models": {},
        "tasks": {},
        "cells": {},
    }
    return known | {"config": asdict(study)}


def test_provenance_says_what_computed_what(run: Path) -> None:
    write_report(run)
    found = report_of(run)["provenance"]
    assert {"interp", "python", "torch", "transformers", "transformer-lens", "numpy"} <= set(
        found["versions"]
    )
    model = found["models"]["zoo/hops-4l"]
    assert (model["dtype"], model["device"], model["attention"]) == ("float32", "cpu", "sdpa")
    assert (
        len(model["fingerprint"])
        == len(model["tokenizer"])
        == len(found["tasks"]["two-hop"]["hash"])
        == 32
    )
    assert model["before every prompt"] == "<bos>"
    assert found["started"] <= found["finished"]
    assert found["resumed"] == []
    assert found["seconds"] > 0


def test_a_run_that_went_on_with_other_versions_says_so(run: Path) -> None:
    info = read_json(run / "run.json")
    info["versions"]["torch"] = "1.0"
    lost = next(iter(info["cells"]))
    del info["cells"][lost]
    write_json(run / "run.json", info)
    analyses = {
        "layer_skip": {},
        "layer_skip@mlp": {"part": "mlp"},
        "logit_lens": {},
        "residual_contribution": {},
    }
    for _ in range(2):  # the second time nothing has changed
        execute(Study(("zoo/hops-4l",), ("two-hop",), analyses, n=8), run)
    write_report(run)
    jsonschema.validate(report_of(run), schema())
    (warning,) = [text for text in report_of(run)["warnings"] if "resumed" in text]
    assert (
        f"with another torch (1.0 → {torch.__version__}); what was finished before was kept"
        in warning
    )


def test_what_fails_of_one_cause_is_one_warning(run: Path) -> None:
    info = read_json(run / "run.json")
    for cell in info["cells"].values():
        cell |= {"status": "skipped", "error": "no corrupted twin"}
    write_json(run / "run.json", info)
    write_report(run)
    (warning,) = report_of(run)["warnings"]
    assert warning.startswith(
        "layer_skip, layer_skip@mlp, logit_lens, residual_contribution (zoo/hops-4l, two-hop)"
        " skipped"
    )


def test_it_is_small_and_made_without_torch(run: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from interp.reports import write_report;"
        f" write_report(Path({str(run)!r}))"
    )
    subprocess.run(
        [sys.executable, "-c", f"{program}; assert 'torch' not in sys.modules"], check=True
    )
    assert (run / "report.html").stat().st_size < 3_000_000


def test_a_report_of_many_sections_stays_small(run: Path) -> None:
    info = read_json(run / "run.json")
    for path, cell in list(info["cells"].items()):
        for i in range(15):
            again = f"{path.partition('@')[0]}@{cell['label']}{i}"
            shutil.copytree(run / path, run / again)
            info["cells"][again] = cell | {"label": f"{cell['label']}{i}"}
    write_json(run / "run.json", info)
    page = write_report(run)
    tables = [section["table"] for section in report_of(run)["analyses"]]
    assert len(tables) == 64
    assert (
        max(len(table["rows"]) for table in tables) == 31 < max(table["n_rows"] for table in tables)
    )
    assert page.stat().st_size < 3_000_000


def test_numbers_are_shown_as_people_read_them() -> None:
    assert [value_text(x) for x in (None, float("nan"), -0.12345, 1234.5, 3, "a")] == [
        "–",
        "–",
        "−0.123",
        "1,230",
        "3",
        "a",
    ]
