"""Runs are compared prompt by prompt, from what they measured; unlike ones are refused."""

import json
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import interp
from interp.analyses.residual_contribution import ResidualContribution
from interp.cli import app
from interp.errors import RunError
from interp.files.whole import read_json, write_json
from interp.reports import schema, write_report
from interp.result import faults_of
from interp.runs import Study, compare_runs, execute
from interp.runs.kept import keep_comparison, kept_comparisons
from interp.runs.run_comparison import _frame
from interp.runs.sides import Row, _numbers, _prompt_by_prompt
from interp.tasks import Task
from tests.documents import read

HOPS, OTHER = "zoo/hops-4l", "zoo/hops-4l@untrained-1"


def call(*args: object) -> Result:
    return CliRunner().invoke(app, list(map(str, args)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run of two models, and one of the same prompts in another order."""
    root = tmp_path_factory.mktemp("runs")
    task = interp.load_task("two-hop", n=10)
    for name, models, prompts in (
        ("two", (HOPS, OTHER), task.prompts),
        ("back", (HOPS,), task.prompts[::-1]),
    ):
        path = root / f"{name}.jsonl"
        path.write_text("".join(f"{json.dumps(_plain(prompt))}\n" for prompt in prompts))
        execute(Study(models, (str(path),), {"residual_contribution": {}}), root / name)
    return root


def changed(run: Path, to: Path, **values: object) -> Path:
    """Return a copy of a run of which run.json says something else."""
    shutil.copytree(run, to)
    info = read_json(to / "run.json")
    cells = {path: record | values for path, record in info["cells"].items()}
    versions = info["versions"] | {"interp": values.get("version", info["versions"]["interp"])}
    layers = values.get("layers", 4)
    models = {name: about | {"layers": layers} for name, about in info["models"].items()}
    info |= {"cells": cells, "versions": versions, "models": models}
    write_json(to / "run.json", info)
    return to


def _plain(prompt: interp.Prompt) -> dict[str, str | None]:
    return {"id": prompt.id, "text": prompt.text, "answer": prompt.answer}


def test_nothing_differs_from_itself_or_in_another_order_of_prompts(made: Path) -> None:
    comparison = compare_runs(f"{made}/two:{HOPS}", made / "back")
    frame = comparison.to_frame()
    later = frame[frame["run"] == comparison.runs[1]]
    assert len(later) > 8
    assert (later["difference"] == 0).all()
    assert not later["is_different"].any()
    (finding,) = comparison.findings()
    assert finding.claim.startswith("No number differs between two and back")
    same = compare_runs(f"{made}/two:{HOPS}", f"{made}/two:{HOPS}")
    assert len({*same.runs}) == 2
    assert (same.later["difference"] == 0).all()


def test_differences_are_those_of_prompts_measured_alone(made: Path) -> None:
    comparison = compare_runs(f"{made}/two:{OTHER}", f"{made}/two:{HOPS}")
    task = Task.from_jsonl(made / "two.jsonl")
    sums: dict[Row, float] = {}
    for name, sign in ((OTHER, -1), (HOPS, 1)):
        model = interp.load_model(name)
        for prompt in task.prompts:
            alone = _numbers(ResidualContribution().run(model, task.of((prompt,))).to_frame())
            for row, value in alone.items():
                sums[row] = sums.get(row, 0.0) + sign * value / len(task)
    later = comparison.later
    by_hand = {
        (row.measure, ", ".join(f"{k} {v}" for k, v in row.place)): v for row, v in sums.items()
    }
    expected = [by_hand[key] for key in zip(later["measure"], later["place"], strict=True)]
    np.testing.assert_allclose(later["difference"], expected, rtol=1e-3, atol=1e-3)
    assert later["is_different"].any()
    assert faults_of(comparison.findings()) == []
    assert (later["difference_low"] <= later["difference"]).all()


def test_unlike_runs_are_refused_in_one_line_that_names_the_difference(
    made: Path, tmp_path: Path
) -> None:
    two, back = f"{made}/two:{HOPS}", made / "back"
    all_of_it = {"first_position": "included", "seed": 0}
    fewer = changed(back, tmp_path / "fewer")
    (prompts,) = fewer.glob("*/*/prompts.jsonl")
    prompts.write_text("".join(prompts.read_text().splitlines(keepends=True)[:6]))
    for other, message in (
        (fewer, r"other prompts: 4 of 10 prompts are only in .*two:zoo/hops-4l, the first"),
        (
            changed(back, tmp_path / "param", parameters=all_of_it),
            r"another parameter: first_position is excluded in .*, included in .*param",
        ),
        (
            changed(back, tmp_path / "old", version="0.1.0"),
            r"another version: .*old is of interp 0\.1\.0",
        ),
        (
            changed(back, tmp_path / "code", identity={"code": "another"}),
            r"another code of the analysis: .*two:zoo/hops-4l and .*code are not of the same",
        ),
        (
            changed(back, tmp_path / "others", identity={"others": "another"}),
            r"another model compared with: .* are not of the same",
        ),
        (
            changed(back, tmp_path / "lens", analysis="logit_lens"),
            r"no analysis in common: .* has residual_contribution; .* has logit_lens",
        ),
        (
            changed(back, tmp_path / "deep", layers=8),
            r"other layers: .* has 4, .*deep has 8",
        ),
        (made / "none", r"no run in .*none"),
        (made / "two", r"name one, as .*two:zoo/hops-4l"),
        (f"{made}/two:zoo/hops-4", r"unknown model 'zoo/hops-4'; did you mean 'zoo/hops-4l'"),
    ):
        with pytest.raises(RunError, match=message) as error:
            compare_runs(two, other)
        assert "\n" not in str(error.value)
    with pytest.raises(RunError, match="1 run to compare; at least two"):
        compare_runs(two)
    with pytest.raises(RunError, match="unknown measure 'none'"):
        compare_runs(two, back, measure="none")


def test_noise_is_seldom_claimed_and_a_real_difference_is() -> None:
    rng = np.random.default_rng(0)
    rows = [Row("loss", (("layer", i),)) for i in range(30)]
    claims = []
    for _ in range(12):
        values = rng.normal(size=(3, 40, 30)) + rng.normal(size=(1, 40, 1))
        claims.append(_frame(rows, values, ("a", "b", "c"), None)["is_different"].any())
    assert sum(claims) <= 3  # 0.6 of 12 are expected
    values[2, :, 4] += 2
    found = _frame(rows, values, ("a", "b", "c"), None)
    assert found[(found["run"] == "c") & (found["x"] == 4)]["is_different"].all()


def test_no_difference_of_shares_is_beyond_one() -> None:
    rng = np.random.default_rng(0)
    right = np.stack([np.zeros((20, 3)), rng.random((20, 3)) < 0.9]).astype(float)
    rows = [Row("accuracy", (("layer", i),)) for i in range(3)]
    found = _frame(rows, right, ("a", "b"), None).query("run == 'b'")
    assert (found["difference_high"] <= 1).all()
    assert found["is_different"].all()


def test_rows_of_kept_prompts_alone_go_with_their_prompt() -> None:
    part = {"x": torch.arange(3), "kept": torch.tensor([1, 0, 1]), "kept.y": torch.tensor([7, 9])}
    alone = [{name: t.tolist() for name, t in one.items()} for one in _prompt_by_prompt(part)]
    assert [one["kept.y"] for one in alone] == [[7], [], [9]]
    assert [one["x"] for one in alone] == [[0], [1], [2]]


def test_a_comparison_of_a_label_with_a_slash_is_kept(tmp_path: Path) -> None:
    study = Study((HOPS, OTHER), ("two-hop",), {"residual_contribution@a/b": {}}, n=5)
    execute(study, tmp_path / "run")
    comparison = compare_runs(f"{tmp_path}/run:{OTHER}", f"{tmp_path}/run:{HOPS}")
    kept = keep_comparison(comparison, tmp_path / "run")
    assert kept.parent == tmp_path / "run" / "comparisons"
    (read,) = kept_comparisons(tmp_path / "run")
    assert read["analysis"] == "residual_contribution@a/b"


def test_the_command_prints_a_screen_and_keeps_what_the_report_shows(
    made: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(made / "two", tmp_path / "run"))
    sides = [f"{run}:{OTHER}", f"{run}:{HOPS}", f"{made}/back"]
    done = call("compare", *sides, "--keep")
    assert done.exit_code == 0, done.output
    assert "tested at once" in done.stdout
    assert len(done.stdout.splitlines()) <= 60  # a screen, where a terminal is not narrow
    found = read(call("compare", *sides[:2], "--json").stdout)
    assert found["findings"][0]["kind"] == "compares"
    page = write_report(run).read_text()
    report = json.loads((run / "report.json").read_text())
    jsonschema.validate(report, schema())
    (kept,) = report["differences"]
    assert kept["findings"][0]["claim"] in page
    assert f'id="{kept["id"]}"' in page
    assert kept["findings"][0]["claim"] in write_report(run, "md").read_text()
