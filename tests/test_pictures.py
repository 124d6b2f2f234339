"""Small still pictures of figures, whoever made them."""

import json

import numpy as np
import plotly.express as px
import plotly.graph_objects as go
import pytest

from interp.figures.pictures import svg_of


@pytest.mark.parametrize(
    "figure",
    [
        px.imshow(np.arange(12.0).reshape(3, 4)),
        go.Figure(go.Heatmap(z=[[1, 2], [3, None]])),
        go.Figure(go.Heatmap(z=[[0.0, 0.0]], x=["a", "b"], colorscale="RdBu", zmid=0)),
        go.Figure(go.Scatter(y=[1.0, 2.0, np.nan, 4.0])),
        go.Figure(go.Bar(x=["a", "b"], y=[-1.0, 2.0])),
    ],
    ids=["imshow", "heatmap", "one value", "line", "bars"],
)
def test_grids_lines_and_bars_are_drawn(figure: go.Figure) -> None:
    picture = svg_of(json.loads(figure.to_json()))
    assert picture.startswith("<svg")
    assert any(mark in picture for mark in ("<image", "<polyline", 'height="'))
    assert "nan" not in picture


@pytest.mark.parametrize(
    "trace",
    [go.Box(y=[1, 2, 3]), go.Histogram(x=[1, 2]), go.Pie(values=[1, 2]), go.Scatter(y=["a"])],
)
def test_what_it_cannot_draw_is_no_picture(trace: object) -> None:
    assert svg_of(json.loads(go.Figure(trace).to_json())) == ""


def test_titles_are_escaped() -> None:
    figure = go.Figure(
        go.Scatter(y=[1, 2]),
        layout={"annotations": [{"text": "<script>", "xref": "paper", "yref": "paper"}]},
    )
    assert "<script>" not in svg_of(json.loads(figure.to_json()))
