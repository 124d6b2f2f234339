"""Still pictures of figures, whoever made them."""

import json
import re
from html import escape

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
import pytest
from plotly.subplots import make_subplots

from interp.figures.pictures import WIDTH, svg_of
from interp.figures.pixel_axes import PixelAxis, ticks_between
from interp.figures.plots import lines_over_depth


def picture_of(figure: go.Figure) -> str:
    return svg_of(json.loads(figure.to_json()))


def sizes(picture: str) -> list[tuple[float, float]]:
    """Return the widths and heights of the panels."""
    found = re.findall(r'<svg width="([\d.]+)" height="([\d.]+)">', picture)
    return [(float(width), float(height)) for width, height in found]


def dots(picture: str) -> np.ndarray:
    """Return where the points stand [point 2], in shares of the panel, from its bottom left."""
    ((width, height),) = sizes(picture)
    marked = re.findall(r"M([-\d.]+) ([-\d.]+)h0", picture)
    x, y = np.array(marked, float).T
    return np.stack([x / width, 1 - y / height], axis=1)


def words(picture: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", picture)


@pytest.mark.parametrize(
    ("figure", "mark"),
    [
        (px.imshow(np.arange(12.0).reshape(3, 4)), "<image"),
        (go.Figure(go.Heatmap(z=[[1, 2], [3, None]])), "<image"),
        (go.Figure(go.Heatmap(z=[[0.0, 0.0]], x=["a", "b"], colorscale="RdBu", zmid=0)), "<image"),
        (go.Figure(go.Scatter(y=[1.0, 2.0, np.nan, 4.0])), "<polyline"),
        (go.Figure(go.Scatter(x=[0, 1, 1], y=[0, 0, 1], fill="toself")), "<polygon"),
        (go.Figure(go.Scatter(x=[1, 2], y=["a", "b"], mode="markers")), "h0"),
        (go.Figure(go.Bar(x=["a", "b"], y=[-1.0, 2.0])), "<rect"),
        (go.Figure(go.Box(y=[1, 2, 3])), "<path"),
    ],
    ids=["imshow", "heatmap", "one value", "line", "band", "words", "bars", "box"],
)
def test_every_kind_of_mark_is_drawn(figure: go.Figure, mark: str) -> None:
    picture = picture_of(figure)
    assert picture.startswith("<svg")
    assert mark in picture
    assert "nan" not in picture


def test_points_stand_where_their_x_is_and_are_not_joined() -> None:
    x = np.array([0.001, 0.5, 1.0])
    picture = picture_of(go.Figure(go.Scatter(x=x, y=[0, 1, 0], mode="markers")))
    assert "<polyline" not in picture
    across, up = dots(picture).T
    np.testing.assert_allclose(
        (across - across[0]) / np.ptp(across), (x - x[0]) / np.ptp(x), atol=0.001
    )
    assert up[0] == up[2] < up[1]
    assert 0 < across.min() < across.max() < 1


def test_a_logarithmic_axis_is_logarithmic_and_has_ticks_at_powers() -> None:
    figure = go.Figure(go.Scatter(x=[0.01, 0.1, 1e5], y=[0, 1, 2], mode="markers"))
    picture = picture_of(figure.update_xaxes(type="log"))
    across = dots(picture)[:, 0]
    assert np.diff(across)[1] / np.diff(across)[0] == pytest.approx(6, abs=0.01)
    assert {"0.01", "10⁵"} <= {*words(picture)}


def test_a_line_breaks_where_a_value_is_missing() -> None:
    picture = picture_of(go.Figure(go.Scatter(y=[1, 2, np.nan, 4, 5], mode="lines")))
    assert picture.count("<polyline") == 2


def test_bars_grow_from_zero_and_stand_beside_each_other() -> None:
    figure = go.Figure([go.Bar(x=["a", "b"], y=[2, -2]), go.Bar(x=["a", "b"], y=[1, 1])])
    bars = re.findall(
        r'<rect x="([-\d.]+)" y="([-\d.]+)" width="([\d.]+)" height="([\d.]+)" fill="#0',
        picture_of(figure),
    )
    x, y, width, height = np.array(bars, float)[:4].T
    np.testing.assert_allclose(height, height[0] * np.array([1, 1, 0.5, 0.5]), atol=0.1)
    assert y[0] + height[0] == pytest.approx(y[1], abs=0.1)  # both begin at zero
    np.testing.assert_allclose(x[2:] - x[:2], width[0], atol=0.1)


@pytest.mark.parametrize("trace", [go.Bar, go.Scatter])
def test_intervals_are_drawn(trace: type) -> None:
    error = {"array": [1.0, 2.0], "arrayminus": [0.5, 0.5], "symmetric": False}
    picture = picture_of(go.Figure(trace(x=[0, 1], y=[3.0, 4.0], error_y=error)))
    ((_, height),) = sizes(picture)
    lows, highs = np.array(re.findall(r"M[-\d.]+ ([-\d.]+)V([-\d.]+)", picture)[-2:], float).T
    long = (lows - highs) / height
    assert long[1] / long[0] == pytest.approx(2.5 / 1.5, rel=0.02)
    assert (highs > 0).all()  # the axis has room for them


def test_a_box_is_the_quartiles() -> None:
    box = re.search(
        r'<rect x="[-\d.]+" y="([\d.]+)" width="[\d.]+" height="([\d.]+)" fill="#',
        picture := picture_of(go.Figure(go.Box(y=[0.0, 1.0, 2.0, 3.0, 4.0]))),
    )
    assert box is not None
    ((_, height),) = sizes(picture)
    middle, tall = float(box[1]) + float(box[2]) / 2, float(box[2])
    assert middle == pytest.approx(height / 2, abs=0.2)
    assert tall / height == pytest.approx(0.5 / 1.06, abs=0.01)


@pytest.mark.parametrize("trace", [go.Histogram(x=[1, 2]), go.Pie(values=[1, 2]), go.Bar(y=[])])
def test_what_it_cannot_draw_is_no_picture(trace: object) -> None:
    assert picture_of(go.Figure(trace)) == ""


def test_titles_and_names_are_escaped() -> None:
    bad = "<script>alert('\"&')</script>"
    figure = go.Figure(
        [go.Scatter(x=[bad, "b"], y=[1, 2], name=bad), go.Scatter(x=[bad], y=[1], name="b")],
        layout={"title": bad, "annotations": [{"text": "< 3 & 4", "x": "b", "y": 1}]},
    )
    figure.update_layout(xaxis_title=bad)
    assert "<script" not in picture_of(figure)
    assert escape("< 3 & 4") in picture_of(figure)


def test_panels_have_their_own_titles_even_if_one_is_empty() -> None:
    figure = make_subplots(rows=2, cols=2, subplot_titles=["one", "empty", "three", "four"])
    for row, col in ((1, 1), (2, 2), (2, 1)):
        figure.add_scatter(y=[0, 1], row=row, col=col)
    shown = [
        word for word in words(picture_of(figure)) if word in ("one", "empty", "three", "four")
    ]
    assert shown == ["one", "three", "four"]


@pytest.mark.parametrize("n", range(1, 7))
def test_panels_stay_within_the_picture_and_are_large(n: int) -> None:
    figure = make_subplots(rows=1, cols=n)
    for col in range(1, n + 1):
        figure.add_heatmap(z=[[1e6, 2e6]], row=1, col=col, colorbar={"title": "what it is"})
    picture = picture_of(figure)
    places = re.findall(r'translate\((\d+),\d+\)"><path', picture)
    widths = [width for width, _ in sizes(picture)]
    assert len(widths) == n
    assert min(widths) > 150
    assert all(int(x) + width < WIDTH for x, width in zip(places, widths, strict=False))


def test_lines_have_a_legend_in_their_colours_and_each_name_once() -> None:
    figure = make_subplots(rows=1, cols=2)
    for col in (1, 2):
        for name, colour in (("up", "#111111"), ("down", "#222222")):
            figure.add_scatter(y=[0, 1], name=name, line={"color": colour}, row=1, col=col)
    picture = picture_of(figure)
    assert [word for word in words(picture) if word in ("up", "down")] == ["up", "down"]
    assert re.search(r'stroke="#222222"[^>]*/><path[^>]*/><text[^>]*>down<', picture)


def test_a_heatmap_has_a_scale_of_its_colours_with_what_they_are() -> None:
    bar = {"title": "nats", "tickvals": [0, 1], "ticktext": ["0", "≥ 1"]}
    picture = picture_of(go.Figure(go.Heatmap(z=[[0, 3]], zmin=0, zmax=1, colorbar=bar)))
    assert picture.count("<image") == 2
    assert {"nats", "0", "≥ 1"} <= {*words(picture)}


def test_a_name_that_stands_on_the_first_panel_of_a_row_is_on_each_first_of_a_line() -> None:
    figure = make_subplots(rows=1, cols=4)
    for col in range(1, 5):
        figure.add_scatter(y=[0, 1], row=1, col=col)
    figure.update_yaxes(title_text="share", col=1)
    assert words(picture_of(figure)).count("share") == 2


@pytest.mark.parametrize("n_layers", [4, 30, 80, 500])
def test_ticks_at_layers_are_whole_and_do_not_touch(n_layers: int) -> None:
    axis = PixelAxis((), -0.5, n_layers - 0.5, 240.0, layout={"dtick": 1})
    places = [at for at, _ in axis.ticks]
    assert 3 <= len(places) <= 9
    assert all(at == int(at) for at in places)
    assert [int(text) for _, text in axis.ticks] == places


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.0, 1.0, ["0", "0.5", "1"]),
        (-0.3, 0.3, ["−0.2", "0", "0.2"]),
        (0.1503, 0.1508, ["0.1504", "0.1506", "0.1508"]),
        (5.0, 5.0, ["5"]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, texts: list[str]) -> None:
    assert [text for _, text in ticks_between(low, high, most=3)] == texts


def test_a_few_long_words_are_cut_and_many_are_left_out() -> None:
    few = PixelAxis(("second-held-out", "trained", "unseen-yet"), -0.5, 2.5, 180.0)
    assert [text for _, text in few.ticks] == ["second-…", "trained", "unseen-…"]
    many = PixelAxis(tuple(f"token {i}" for i in range(60)), -0.5, 59.5, 300.0)
    assert 2 <= len(many.ticks) <= 6
    assert many.ticks[0] == (0.0, "token 0")


def test_a_picture_stays_small() -> None:
    values = np.random.default_rng(0).normal(size=(40, 5000))
    figure = go.Figure([go.Scatter(y=row, mode="lines+markers") for row in values[:6]])
    figure.add_scatter(y=values[6], mode="markers")
    assert len(picture_of(figure)) < 50_000


@pytest.mark.parametrize("n_layers", [30, 80])
def test_lines_with_bands_over_many_layers_stay_small(n_layers: int) -> None:
    rng = np.random.default_rng(0)
    names = [(panel, group) for panel in "abc" for group in "stuvw"]
    rows = [
        {"panel": panel, "group": group, "layer": layer, "mean": rng.normal()}
        for panel, group in names
        for layer in range(n_layers)
    ]
    frame = pd.DataFrame(rows).eval("low = mean - 0.1").eval("high = mean + 0.1")
    figure = lines_over_depth(frame, y="mean", groups="group", panels="panel", title="t")
    assert len(picture_of(figure)) < 50_000
