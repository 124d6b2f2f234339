"""Depth at a glance: strips say what the frames say, beside each other and at any depth."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from interp.figures import strips
from interp.figures.columns import Beside, Column
from interp.figures.glance import draw_glance
from interp.figures.strips import Strip
from interp.figures.words import called
from interp.reports import write_report
from interp.reports.gather import gather
from interp.runs import Study, execute
from interp.runs.at_a_glance import glance
from interp.runs.tables import read_frame

HOPS = "zoo/hops-4l"
SHOWN: dict[str, dict[str, Any]] = {
    "residual_contribution": {},
    "layer_skip": {},
    "logit_lens": {},
    "void_detection": {"max_new_tokens": 2},
    "integrated_gradients": {"every": 2},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("glance") / "run"
    execute(Study((HOPS, f"{HOPS}@untrained"), ("one-hop", "two-hop"), SHOWN, n=4), out)
    return out


def frame_of(run: Path, name: str, *, model: str = "zoo--hops-4l") -> pd.DataFrame:
    return pd.read_parquet(run / model / "two-hop" / name / "frame.parquet")


def traces(figure: go.Figure, kind: str, row: int, column: int, *, n: int) -> list[Any]:
    number = (row - 1) * n + column
    axis = f"x{number}" if number > 1 else "x"
    return [trace for trace in figure.data if trace.type == kind and (trace.xaxis or "x") == axis]


def texts(figure: go.Figure) -> str:
    return "\n".join(annotation.text for annotation in figure.layout.annotations)


def test_every_strip_has_the_numbers_of_its_frame(run: Path) -> None:
    figure = glance(run, gather(run))
    assert figure is not None
    skips = frame_of(run, "layer_skip")
    later = skips[(skips["scope"] == "future") & (skips["effect"] == "layer")]
    later = later[later["affected"] > later["skipped"]]
    (bars,) = traces(figure, "bar", 3, 2, n=2)
    wanted = [later.loc[later["skipped"] == layer, "mean"].mean() for layer in range(4)]
    np.testing.assert_allclose(bars.y, wanted, rtol=1e-5)
    writes = frame_of(run, "residual_contribution", model="zoo--hops-4l@untrained")
    writes = writes[
        (writes["measure"] == "norm relative to the stream")
        & (writes["component"] == "layer")
        & (writes["positions"] == "all positions but the first")
    ]
    (control,) = traces(figure, "scatter", 1, 2, n=2)
    np.testing.assert_allclose(control.y, writes.sort_values("layer")["mean"], rtol=1e-5)
    (voids,) = traces(figure, "heatmap", 5, 2, n=2)
    assert voids.z.shape == (2, 4)
    (last, before) = traces(figure, "scatter", 6, 2, n=2)[:2]
    np.testing.assert_allclose(np.add(last.y, before.y), 1, rtol=1e-5)
    assert list(last.x) == [1, 3]


def test_what_was_found_stands_beside_it_and_leads_to_its_section(run: Path) -> None:
    report = gather(run)
    figure = glance(run, report)
    assert figure is not None
    written = texts(figure).replace("<br>", " ")
    for section in report["analyses"]:
        assert f'href="#{section["id"]}"' in written
    assert "grey: the untrained model" in figure.layout.title.text
    for title in ("What it writes", "Needed by later tokens", "Decided", "Not void"):
        assert f"<b>{title}</b>" in written


def test_the_page_begins_with_it(run: Path) -> None:
    page = write_report(run).read_text(encoding="utf-8")
    assert page.index('id="figure-depth-at-a-glance"') < page.index("<section>")


def test_what_is_damaged_is_left_out(run: Path, tmp_path: Path) -> None:
    report = gather(run)
    whole = glance(run, report)
    broken = [replace_missing(s) for s in report["analyses"]]
    figure = glance(run, report | {"analyses": broken})
    assert whole is not None
    assert figure is not None
    assert len(figure.data) < len(whole.data)
    assert glance(tmp_path, report) is None


def replace_missing(section: dict[str, Any]) -> dict[str, Any]:
    is_lost = section["analysis"] == "logit_lens"
    return section | ({"label": "lost"} if is_lost else {})


@pytest.mark.parametrize("n_layers", [1, 4, 30, 80])
def test_few_large_bars_do_not_crush_the_others(n_layers: int) -> None:
    values = np.full(n_layers, 0.5)
    values[0] = 20.0
    strips = {"residual_contribution": Beside(Strip("What it writes", "x", bars=values))}
    figure = draw_glance([Column("m", n_layers, strips)], title="t", about="")
    top = figure.layout.yaxis.range[1]
    numbers = [a.text for a in figure.layout.annotations if a.textangle == -90]
    if n_layers < 12:
        assert top >= 20
        assert not numbers
    else:
        assert 0.5 < top < 1
        assert numbers == (["20"] if n_layers <= 48 else [])
    assert figure.layout.xaxis.dtick == {1: 1, 4: 1, 30: 5, 80: 10}[n_layers]
    assert list(figure.layout.xaxis.range) == [-0.6, n_layers - 0.4]


@pytest.mark.parametrize("largest", [1.0, 9.0])
def test_what_a_number_in_a_bar_is_stands_below_the_title(largest: float) -> None:
    strip = Strip("What it writes", "size", bars=np.array([largest, *[1.0] * 15]))
    column = Column("m", 16, {"residual_contribution": Beside(strip)})
    figure = draw_glance([column], title="", about="m")
    assert ("number in a bar" in figure.layout.title.text) == (largest > 1)


def test_columns_share_their_scales_and_at_most_three_are_drawn() -> None:
    def column(size: float) -> Column:
        bars = Beside(Strip("a", "x", bars=np.array([size, -size / 2])))
        grid = Beside(Strip("b", "x", grid=np.array([[size, 0.0]]), rows=["head 0"]))
        both = {"residual_contribution": bars, "relevance_patching": grid}
        return Column(f"m{size}", 2, both)

    figure = draw_glance([column(size) for size in (1.0, 3.0, 2.0, 9.0)], title="t", about="")
    assert {axis.range for axis in figure.select_yaxes(row=1)} == {(-1.62, 3.24)}
    heat = [trace for trace in figure.data if trace.type == "heatmap"]
    assert [(trace.zmin, trace.zmax) for trace in heat] == [(0.0, 3.0)] * 3
    assert [trace.showscale for trace in heat] == [False, False, True]
    assert "m9.0" not in texts(figure)


def test_the_untrained_model_is_never_beyond_the_axis() -> None:
    strip, twin = (Strip("a", "x", bars=np.array(bars)) for bars in ([0.1, 0.05], [0.5, -0.3]))
    column = Column("m", 2, {"layer_skip": Beside(strip, untrained=twin)})
    low, high = draw_glance([column], title="t", about="").layout.yaxis.range
    assert low <= -0.3
    assert high >= 0.5


def test_names_and_claims_are_text() -> None:
    strip = Strip("<i>", "<b>", bars=np.ones(2))
    beside = Beside(strip, claim="<script>alert(1)</script>", link='"><img>')
    one = draw_glance([Column("<u>", 2, {"layer_skip": beside})], title="<s>", about="<em>")
    two = draw_glance([Column("<u>", 2, {"layer_skip": beside})] * 2, title="<s>", about="<em>")
    for figure in (one, two):
        said = texts(figure) + figure.layout.title.text
        assert not {"<script", "<img", "<u>", "<s>", "<em>"} & {
            word for word in ("<script", "<img", "<u>", "<s>", "<em>") if word in said
        }
    assert json.loads(one.to_json())["layout"]["height"] < one.layout.height + 1


def test_a_strip_without_answers_shows_the_change_of_the_prediction() -> None:
    rows = [
        {"scope": "all", "effect": "output", "skipped": i, "mean": 0.1, "low": 0.0, "high": 0.2}
        for i in range(3)
    ]
    strip = strips.needed_now(pd.DataFrame(rows))
    assert strip is not None
    assert strip.scale == "‖p − p′‖ without it"
    assert replace(strip).bars is not None


def test_a_table_of_an_older_version_is_left_out(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = lambda folder, cell: read_frame(folder, cell).drop(columns="effect", errors="ignore")  # noqa: E731
    monkeypatch.setattr("interp.runs.at_a_glance.read_frame", older)
    figure = glance(run, gather(run))
    assert figure is not None
    assert "<b>What it writes</b>" in texts(figure)
    assert "<b>Needed" not in texts(figure)


@pytest.mark.parametrize(
    ("analysis", "parameters"),
    [
        ("layer_skip", {"scopes": ["all"]}),
        ("layer_skip", {"scopes": ["direct"]}),
        ("layer_skip", {"scopes": ["future"]}),
        ("logit_lens", {"top_k": 2}),
        ("void_detection", {"alpha": 0.5, "alphas": [0.3], "max_new_tokens": 0}),
        ("relevance_patching", {"nodes": ["resid_pre"]}),
        ("relevance_patching", {"nodes": ["mlp_out"], "methods": ["attribution"]}),
        ("residual_contribution", {}),
    ],
)
def test_whatever_an_analysis_is_asked_for_there_is_a_report(
    analysis: str, parameters: dict[str, Any], tmp_path: Path
) -> None:
    on_twins = analysis == "relevance_patching"
    model, task = ("zoo/names-6l", "ioi") if on_twins else (HOPS, "two-hop")
    execute(
        Study((model,), (task,), {analysis: parameters, "residual_contribution@too": {}}, n=4),
        tmp_path,
    )
    assert write_report(tmp_path).read_text(encoding="utf-8").count("<section>") == 2


def test_names_of_lines_that_end_at_one_point_are_apart() -> None:
    lines = {"top-5 overlap": np.array([0.0, 1.0]), "answer first": np.array([0.5, 1.0])}
    beside = Beside(Strip("Decided", "predicts", lines=lines))
    figure = draw_glance([Column("m", 2, {"logit_lens": beside})], title="", about="")
    heights = [note.y for note in figure.layout.annotations if note.text in lines]
    assert heights[0] - heights[1] > 0.1


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["zoo/hops-4l", "gpt2"], ["zoo/hops-4l", "gpt2"]),
        (["/home/me/models/mine", "my/tasks/words.jsonl"], ["mine", "words"]),
        (["./mine@untrained", "mine.jsonl"], ["mine@untrained", "mine"]),
        (["/a/mine", "/b/mine"], ["/a/mine", "/b/mine"]),
    ],
)
def test_names_that_are_read_are_no_paths(names: list[str], short: list[str]) -> None:
    assert [*called(names).values()] == short


def test_a_strip_has_one_unit_and_one_scale_for_all_tasks() -> None:
    output = Strip("Needed by the answer", "p", bars=np.array([0.5, 0.1]))
    nats = Strip("Needed by the answer", "nats", bars=np.array([9.0, 1.0]), instead=output)
    columns = [
        Column(name, 2, {"layer_skip": Beside(strip)})
        for name, strip in (("with", nats), ("without", output))
    ]
    figure = draw_glance(columns, title="t", about="")
    assert {axis.range for axis in figure.select_yaxes()} == {figure.layout.yaxis.range}
    assert figure.layout.yaxis.range[1] < 1
    assert "<i>p</i>" in texts(figure)
    assert "nats" not in texts(figure)
    alone = draw_glance(columns[:1], title="t", about="")
    assert alone.layout.yaxis.range[1] > 9


def test_a_task_without_a_strip_says_so_and_names_stay_where_the_strip_is() -> None:
    bars = {"residual_contribution": Beside(Strip("What it writes", "x", bars=np.ones(2)))}
    grid = Strip("Not void", "share", grid=np.ones((2, 2)), rows=["prompt", "response"], top=1.0)
    columns = [Column("a", 2, bars), Column("b", 2, {"void_detection": Beside(grid)})]
    figure = draw_glance(columns, title="t", about="")
    assert texts(figure).count("not measured") == 2
    (drawn,) = [trace for trace in figure.data if trace.type == "heatmap"]
    axis = figure.layout[drawn.yaxis.replace("y", "yaxis")]
    assert axis.showticklabels
    assert drawn.showscale


def test_bars_whose_interval_includes_0_are_told_apart() -> None:
    ends = np.array([-1.0, 0.5]), np.array([1.0, 1.5])
    assert Strip("title", "scale", np.array([0.2, 1.0]), *ends).may_be_0.tolist() == [True, False]
    assert not Strip("title", "scale", np.array([0.2, 1.0])).may_be_0.any()
