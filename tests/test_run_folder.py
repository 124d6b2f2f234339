"""What a notebook shows of a run: its results in a table, and all layers in a figure."""

import shutil
from html import escape
from pathlib import Path

import pytest

import interp
from interp.errors import RunError
from interp.files.whole import read_json, write_json
from interp.runs import Study, execute


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "first"
    models = ("zoo/hops-4l", "zoo/hops-4l@untrained")
    analyses = {name: {} for name in ("layer_skip", "logit_lens", "residual_contribution")}
    execute(Study(models, ("two-hop",), analyses, n=8), path)
    return path


def test_a_run_prints_its_models_tasks_and_results_in_a_line(folder: Path) -> None:
    shown = repr(interp.open_run(folder))
    assert "zoo/hops-4l" in shown
    assert "two-hop, 3 results)" in shown
    assert "\n" not in shown


def test_a_run_lists_first_findings_without_those_of_its_controls(folder: Path) -> None:
    run = interp.open_run(folder)
    shown = run._repr_html_()
    for name in ("layer_skip", "logit_lens"):
        assert f"{name}</td>" in shown
        assert escape(run["zoo/hops-4l", "two-hop", name].summary()) in shown
    assert "zoo/hops-4l · two-hop" in shown
    assert "@untrained" not in shown


def test_what_a_run_lists_is_escaped(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    run = read_json(tmp_path / "copy" / "run.json")
    for record in run["cells"].values():
        record["findings"][0]["claim"] = record["label"] = "<script>1</script>"
    write_json(tmp_path / "copy" / "run.json", run)
    assert "<script" not in interp.open_run(tmp_path / "copy")._repr_html_()


def test_all_layers_are_a_figure_with_the_untrained_model_beside(folder: Path) -> None:
    figure = interp.open_run(folder).plot()
    assert "Depth at a glance" in figure.layout.title.text
    assert "the untrained model" in figure.layout.title.text
    said = " ".join(note.text for note in figure.layout.annotations)
    assert "<b>What it writes</b>" in said
    assert "href" not in said  # there is no section to lead to


def test_a_run_of_one_analysis_has_no_figure_of_all_layers(tmp_path: Path) -> None:
    execute(Study(("zoo/hops-4l",), ("two-hop",), {"block_influence": {}}, n=4), tmp_path / "one")
    run = interp.open_run(tmp_path / "one")
    assert "1 result" in repr(run)
    with pytest.raises(RunError, match="too few analyses"):
        run.plot()
