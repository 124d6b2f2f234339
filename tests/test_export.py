"""Figures for papers: nothing overlaps, colour is not all, nothing is half-written."""

import re
import shutil
import sys
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from typer.testing import CliRunner

import interp
from interp.cli.export import _file_names
from interp.cli.program import app
from interp.errors import FigureError
from interp.figures import export as exporting
from interp.figures.export import width_of
from interp.figures.paper import PIXELS, for_paper
from interp.figures.plots import grids_over_bars, grids_over_positions, lines_over_depth
from interp.figures.raster import numbers_of
from interp.runs.folder import Cell
from tests.documents import read

CHROMIUM = shutil.which("chromium") or ""
COLUMNS = (85.0, 178.0)
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")


@pytest.fixture
def small_run(tmp_path: Path) -> Path:
    words = ["--model", "zoo/hops-4l", "--task", "two-hop", "--n", "4"]
    words += ["--analysis", "logit_lens", "--analysis", "block_influence"]
    folder = tmp_path / "run"
    assert CliRunner().invoke(app, ["run", *words, "--out", str(folder)]).exit_code == 0
    return folder


def _lines(n_layers: int, n_panels: int) -> go.Figure:
    rows = [
        {"layer": layer, "mean": layer * scale, "low": -1.0, "high": 99.0, "of": name, "in": panel}
        for panel in [f"a measure with a name, number {i}" for i in range(n_panels)]
        for name, scale in (("all positions", 1.0), ("all but the first", 0.5))
        for layer in range(n_layers)
    ]
    frame = pd.DataFrame(rows)
    return lines_over_depth(frame, y="mean", groups="of", panels="in", title="A title")


def _skips(n_layers: int) -> go.Figure:
    grids = {f"scope {i}": np.full((n_layers, n_layers), 0.5) for i in range(4)}
    bar = pd.DataFrame({"skipped": range(n_layers), "mean": 1.0, "low": 0.5, "high": 2.0})
    words = {"x": "affected layer", "y": "skipped layer", "bars_label": "loss", "title": "A title"}
    return grids_over_bars(grids, {"all": bar, "future": bar}, **words)


def _relevance(n_layers: int) -> go.Figure:
    rows = [
        {"layer": layer, "position": at, "mean": 1.0 if layer % 2 else -1.0, "node": node}
        for node in ("resid_pre", "z")
        for layer in range(n_layers)
        for at in ("first", "-2", "-1")
    ]
    how = {"panels": "node", "y": "layer", "title": "A title", "colour": "score"}
    return grids_over_positions(pd.DataFrame(rows), **how, is_signed=True)


DRAWN = {
    "five panels": lambda n_layers: _lines(n_layers, 5),
    "one panel": lambda n_layers: _lines(n_layers, 1),
    "skips": _skips,
    "relevance": _relevance,
}


@pytest.fixture(params=product(DRAWN, (4, 30, 80)), ids=lambda of: f"{of[0]}, {of[1]} layers")
def figure(request: pytest.FixtureRequest) -> go.Figure:
    name, n_layers = request.param
    return _drawn(name, n_layers)


@cache
def _drawn(name: str, n_layers: int) -> go.Figure:
    return DRAWN[name](n_layers)


def _length(trace: dict) -> int:
    """Return how many layers a trace has along x."""
    if "z" in trace:
        return numbers_of(trace["z"]).shape[1]
    return int(numbers_of(trace["x"]).max()) + 1


def _panels(layout: dict) -> list[tuple[float, float, float, float]]:
    """Return left, right, bottom and top of every panel, as shares of the figure."""
    names = [name.removeprefix("xaxis") for name in layout if name.startswith("xaxis")]
    return [(*layout[f"xaxis{n}"]["domain"], *layout[f"yaxis{n}"]["domain"]) for n in names]


@pytest.mark.parametrize("width", COLUMNS)
def test_panels_are_inside_the_page_and_apart(figure: go.Figure, width: float) -> None:
    layout = for_paper(figure.to_plotly_json(), width=width)["layout"]
    assert layout["width"] == round(width * PIXELS)
    panels = _panels(layout)
    for i, (left, right, bottom, top) in enumerate(panels):
        assert 0 < left < right < 1
        assert 0 < bottom < top < 1
        for other in panels[:i]:
            is_apart = right < other[0] or other[1] < left or top < other[2] or other[3] < bottom
            assert is_apart, (panels[i], other)


@pytest.mark.parametrize("width", COLUMNS)
def test_ticks_of_layers_are_at_least_five_millimetres_apart(
    figure: go.Figure, width: float
) -> None:
    ready = for_paper(figure.to_plotly_json(), width=width)
    for name, axis in ready["layout"].items():
        if name.startswith("xaxis") and isinstance(axis.get("dtick"), int | float):
            short = name.replace("axis", "")
            traces = [t for t in ready["data"] if t.get("xaxis", "x") == short]
            n = max(_length(t) for t in traces)
            left, right = axis["domain"]
            assert (right - left) * width / ((n - 1) / axis["dtick"]) >= 5


def test_the_title_is_left_to_the_caption_and_panels_keep_theirs(figure: go.Figure) -> None:
    given = figure.to_plotly_json()
    layout = for_paper(given, width=85.0)["layout"]
    assert layout["title"] is None
    words = {note["text"] for note in given["layout"].get("annotations", ())}
    left = {note["text"].replace("<br>", " ") for note in layout["annotations"]}
    assert words <= left


def test_lines_and_bars_can_be_told_apart_in_grey() -> None:
    lines = for_paper(_lines(30, 2).to_plotly_json(), width=85.0)["data"]
    dashes = {t["name"]: t["line"]["dash"] for t in lines if t.get("name") and not t.get("fill")}
    assert len(dashes) == 2
    assert len(set(dashes.values())) == 2
    bars = [t for t in for_paper(_skips(4).to_plotly_json(), width=85.0)["data"] if "marker" in t]
    assert len({bar["marker"]["pattern"]["shape"] for bar in bars}) == 2


def test_clearly_negative_cells_are_marked_and_no_others() -> None:
    data = for_paper(_relevance(4).to_plotly_json(), width=85.0)["data"]
    marks = [trace for trace in data if trace["type"] == "scatter"]
    assert len(marks) == 2  # one for each grid
    assert {y for mark in marks for y in mark["y"]} == {0, 2}


def test_the_figure_given_stays_as_it_is() -> None:
    figure = _skips(4)
    before = figure.to_json()
    for_paper(figure.to_plotly_json(), width=85.0)
    assert figure.to_json() == before


@pytest.mark.parametrize(
    ("text", "millimetres"),
    [("one-column", 85), ("two-columns", 178), ("12cm", 120), ("120 mm", 120), ("4in", 101.6)],
)
def test_widths(text: str, millimetres: float) -> None:
    assert width_of(text) == pytest.approx(millimetres)


@pytest.mark.parametrize("text", ["", "wide", "85", "85pt", "3mm", "9000mm", "-85mm", "nan mm"])
def test_other_widths_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(FigureError, match="width"):
        interp.export(_skips(4), tmp_path / "x.pdf", width=text)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["x.jpg", "x", "x.html"])
def test_other_formats_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(FigureError, match="there is pdf, png, svg"):
        interp.export(_skips(4), tmp_path / name)
    assert not [*tmp_path.iterdir()]


def test_without_a_chromium_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    with pytest.raises(FigureError, match="needs a Chromium or Chrome, and none is on the PATH"):
        interp.export(_skips(4), tmp_path / "x.pdf")
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/chromium")
    with pytest.raises(FigureError, match="/nowhere/chromium, which does not exist"):
        interp.export(_skips(4), tmp_path / "x.pdf")
    assert not [*tmp_path.iterdir()]


def test_without_kaleido_it_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    monkeypatch.setenv("BROWSER_PATH", sys.executable)
    with pytest.raises(FigureError, match=re.escape("pip install 'interp[export]'")):
        interp.export(_skips(4), tmp_path / "x.pdf")


def test_cells_whose_names_join_to_the_same_have_files_of_their_own() -> None:
    cells = [Cell("a", "b_c", "x"), Cell("a_b", "c", "x"), Cell("a", "c", "x")]
    one, other, alone = _file_names(cells).values()
    assert alone == "a_c_x"
    assert one != other
    assert one.startswith("a_b_c_x~")


def test_a_figure_with_nothing_drawn_is_left_out(
    small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interp.cli.export.read_file", lambda _path: '{"data": [], "layout": {}}')
    done = CliRunner().invoke(app, ["export", str(small_run)])
    assert "has nothing to draw" in done.output
    assert str(done.exception) == f"{small_run} has no such figure to export"
    with pytest.raises(FigureError, match="nothing to draw"):
        for_paper({"data": [], "layout": {}}, width=85)


def test_a_run_without_that_analysis_is_one_line(small_run: Path) -> None:
    for words in (["--analysis", "depth_map"], ["--model", "gpt2"], ["--task", "none"]):
        done = CliRunner().invoke(app, ["export", str(small_run), *words])
        assert "unknown" in str(done.exception)
        assert "there is" in str(done.exception)
    assert not (small_run / "figures").exists()


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize("kind", ["svg", "pdf", "png"])
def test_a_figure_is_as_wide_as_asked_and_brings_its_fonts(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROWSER_PATH", CHROMIUM)
    content = interp.export(_skips(30), tmp_path / f"x.{kind}", width="85mm").read_bytes()
    if kind == "svg":
        text = content.decode()
        assert 'width="85mm"' in text
        assert "@font-face" in text
        assert set(re.findall(r"https?://[^\"' ]+", text)) <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xlink",
        }
    elif kind == "pdf":
        box = re.search(rb"/MediaBox \[0 0 ([\d.]+)", content)
        assert box
        assert float(box[1]) == pytest.approx(85 / 25.4 * 72, abs=1)
        assert b"FigureSans" in content
        assert b"Liberation" not in content
    else:
        from PIL import Image

        with Image.open(tmp_path / "x.png") as picture:
            assert picture.width == pytest.approx(85 / 25.4 * 300, abs=4)


@pytest.mark.browser
@needs_chromium
def test_one_damaged_figure_does_not_stop_the_others(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROWSER_PATH", CHROMIUM)
    paths = sorted(small_run.rglob("figure.json"))
    paths[0].write_text("{")
    words = ["export", str(small_run), "--format", "svg", "--out", str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    said = read(done.stdout)
    assert len(said["failed"]) == 1
    assert "damaged" in next(iter(said["failed"].values()))
    assert len(said["written"]) == len(paths) - 1
    assert all(Path(path).exists() for path in said["written"])


@pytest.mark.browser
@needs_chromium
def test_a_figure_that_is_too_large_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROWSER_PATH", CHROMIUM)
    monkeypatch.setattr(exporting, "_LARGEST", 1000)
    with pytest.raises(FigureError, match="MB as svg; at most"):
        interp.export(_skips(4), tmp_path / "x.svg")
    assert not [*tmp_path.iterdir()]


def test_a_note_stays_below_a_figure_whose_title_goes() -> None:
    figure = go.Figure(go.Scatter(y=[1, 2]), layout={"title": "title", "meta": {"note": "shaded"}})
    layout = for_paper(figure.to_plotly_json(), width=85)["layout"]
    assert layout["title"] is None
    assert [note["text"] for note in layout["annotations"]] == ["shaded"]
