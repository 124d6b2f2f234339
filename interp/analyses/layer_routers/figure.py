"""Accuracy against the layers that run, and how often each layer runs on the routes."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.analyses.layer_routers.testing import CONTROLS, FULL, PATHS
from interp.figures.intervals import interval
from interp.figures.plots import COLOURS, layer_step, titled

if TYPE_CHECKING:
    from interp.analyses.layer_routers.result import LayerRoutersResult

_SETS = {
    "skip loss": ("fixed set, by skip loss", "solid"),
    "influence": ("fixed set, by block influence", "dash"),
    "random": ("random sets", "dot"),
}
_ROUTES = {
    FULL: ("every layer", "black", "square"),
    "supervised": ("supervised routers", COLOURS[1], "circle"),
    "gated": ("gates", COLOURS[0], "diamond"),
    PATHS: ("shortest right path (hindsight)", COLOURS[2], "triangle-up"),
}
_GREYS = ("#555555", "#888888", "#AAAAAA")


def figure_of(result: "LayerRoutersResult") -> go.Figure:
    """Draw accuracy against the layers that run, and how often each layer runs."""
    frame = result.to_frame()
    titles = ["prompts answered", "how often each layer runs"]
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles)
    right = frame[frame["statistic"] == "accuracy"]
    for colour, control in zip(_GREYS, CONTROLS, strict=True):
        _add_set(figure, right[right["routes"] == control], control, colour, result.n_layers)
    runs = frame[frame["statistic"] == "layer runs"].set_index("routes")["mean"]
    for routes in (FULL, *result.rules, PATHS):
        _add_routes(figure, right[right["routes"] == routes], routes, float(runs[routes]))
    by_layer = frame[frame["statistic"] == "runs"]
    for routes in (*result.rules, PATHS):
        _add_depth(figure, by_layer[by_layer["routes"] == routes], routes)
    figure.update_xaxes(title_text="layer runs, share of the model's", tickformat=".0%", col=1)
    figure.update_yaxes(title_text="accuracy", range=[-0.03, 1.03], tickformat=".0%", col=1)
    step = layer_step(result.n_layers)
    figure.update_xaxes(title_text="layer", dtick=step, tick0=0, col=2)
    figure.update_yaxes(title_text="mean number of runs", rangemode="tozero", col=2)
    return titled(figure, "What routes by the prompt give, against sets of layers fixed for all")


def _add_set(
    figure: go.Figure, rows: pd.DataFrame, control: str, colour: str, n_layers: int
) -> None:
    name, dash = _SETS[control]
    sizes = rows[rows["n_skipped"].notna()]
    figure.add_scatter(
        x=1 - sizes["n_skipped"].to_numpy(np.float64) / n_layers,
        y=sizes["mean"].to_numpy(np.float32),
        mode="lines",
        name=name,
        line={"color": colour, "dash": dash},
        row=1,
        col=1,
    )


def _add_routes(figure: go.Figure, rows: pd.DataFrame, routes: str, runs: float) -> None:
    name, colour, symbol = _ROUTES[routes]
    figure.add_scatter(
        x=[runs],
        y=rows["mean"].to_numpy(np.float32),
        error_y=interval(rows),
        mode="markers",
        name=name,
        legendgroup=routes,
        marker={"color": colour, "symbol": symbol, "size": 10},
        row=1,
        col=1,
    )


def _add_depth(figure: go.Figure, rows: pd.DataFrame, routes: str) -> None:
    name, colour, symbol = _ROUTES[routes]
    figure.add_scatter(
        x=rows["layer"].to_numpy(np.int64),
        y=rows["mean"].to_numpy(np.float32),
        mode="lines+markers",
        name=name,
        legendgroup=routes,
        showlegend=False,
        line={"color": colour},
        marker={"color": colour, "symbol": symbol},
        row=1,
        col=2,
    )
