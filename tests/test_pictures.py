"""Small still pictures of figures, whoever made them."""

import json
import re

import numpy as np
import plotly.express as px
import plotly.graph_objects as go
import pytest

from interp.figures.pictures import svg_of

WIDTH, HEIGHT = 220, 130  # of a panel


def picture_of(figure: go.Figure) -> str:
    return svg_of(json.loads(figure.to_json()))


def numbers(picture: str, attribute: str) -> list[float]:
    return [float(value) for value in re.findall(rf' {attribute}="([-\d.]+)"', picture)]


@pytest.mark.parametrize(
    ("figure", "mark"),
    [
        (px.imshow(np.arange(12.0).reshape(3, 4)), "<image"),
        (go.Figure(go.Heatmap(z=[[1, 2], [3, None]])), "<image"),
        (go.Figure(go.Heatmap(z=[[0.0, 0.0]], x=["a", "b"], colorscale="RdBu", zmid=0)), "<image"),
        (go.Figure(go.Scatter(y=[1.0, 2.0, np.nan, 4.0])), "<polyline"),
        (go.Figure(go.Scatter(x=[0, 1, 1], y=[0, 0, 1], fill="toself")), "<polygon"),
        (go.Figure(go.Scatter(x=[1, 2], y=["a", "b"], mode="markers")), "<circle"),
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
    x = [0.001, 0.5, 1.0]
    picture = picture_of(go.Figure(go.Scatter(x=x, y=[0, 1, 0], mode="markers")))
    assert "<polyline" not in picture
    expected = WIDTH * (np.array(x) - x[0]) / (x[-1] - x[0])
    np.testing.assert_allclose(numbers(picture, "cx"), expected, atol=0.06)
    assert numbers(picture, "cy") == [HEIGHT, 0, HEIGHT]


def test_a_logarithmic_axis_is_logarithmic() -> None:
    figure = go.Figure(go.Scatter(x=[0.01, 0.1, 1], y=[0, 1, 2], mode="markers"))
    picture = picture_of(figure.update_xaxes(type="log"))
    assert numbers(picture, "cx") == [0, WIDTH / 2, WIDTH]
    assert ">0.01<" in picture


def test_a_line_breaks_where_a_value_is_missing() -> None:
    picture = picture_of(go.Figure(go.Scatter(y=[1, 2, np.nan, 4, 5], mode="lines")))
    assert picture.count("<polyline") == 2


def test_bars_grow_from_zero_and_stand_beside_each_other() -> None:
    figure = go.Figure([go.Bar(x=["a", "b"], y=[2, -2]), go.Bar(x=["a", "b"], y=[1, 1])])
    bars = re.findall(r'<rect x="([-\d.]+)" y="([-\d.]+)" width="([\d.]+)"', picture_of(figure))
    x, y, width = np.array(bars, float).T
    np.testing.assert_allclose(y, [0, HEIGHT / 2, HEIGHT / 4, HEIGHT / 4])
    np.testing.assert_allclose(x[2:] - x[:2], width[0])


def test_a_box_is_the_quartiles() -> None:
    figure = go.Figure(go.Box(y=[0.0, 1.0, 2.0, 3.0, 4.0]))
    box = re.search(
        r'<rect x="[-\d.]+" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', picture_of(figure)
    )
    assert box is not None
    np.testing.assert_allclose([float(box[1]), float(box[2])], [HEIGHT / 4, HEIGHT / 2], atol=0.06)


@pytest.mark.parametrize("trace", [go.Histogram(x=[1, 2]), go.Pie(values=[1, 2]), go.Bar(y=[])])
def test_what_it_cannot_draw_is_no_picture(trace: object) -> None:
    assert picture_of(go.Figure(trace)) == ""


def test_titles_and_names_are_escaped() -> None:
    figure = go.Figure(
        go.Scatter(x=["<script>", "b"], y=[1, 2]),
        layout={"annotations": [{"text": "<script>", "xref": "paper", "yref": "paper"}]},
    )
    assert "<script>" not in picture_of(figure)
