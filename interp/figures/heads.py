"""Maps of heads, layer by layer, as Plotly figures."""

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.figures.intervals import interval
from interp.figures.plots import COLOURS, heatmap, layer_step, titled


def head_maps(maps: dict[str, np.ndarray], *, of: str, title: str) -> go.Figure:
    """Draw maps of heads [layer head] on one scale of colours from 0, layer 0 at the bottom."""
    names = ["<br>".join(textwrap.wrap(name, 28)) for name in maps]
    figure = make_subplots(rows=1, cols=len(maps), subplot_titles=names)
    top = max(float(np.nanmax(grid)) for grid in maps.values()) or 1.0
    for col, grid in enumerate(maps.values(), 1):
        scale = {"title": {"text": of, "side": "right"}}
        how = {"zmin": 0, "zmax": top, "showscale": col == len(maps), "colorbar": scale}
        heatmap(figure, grid, at=(1, col), x="head", y="layer", **how)
        figure.update_xaxes(dtick=layer_step(grid.shape[1]), row=1, col=col)
    return titled(figure, title)


def of_components(
    heads: np.ndarray,
    by_part: Mapping[str, Mapping[str, Any]],
    *,
    of: str,
    title: str,
) -> go.Figure:
    """Draw a map of heads [layer head] around 0, and beside it a line of layers for each part.

    A part's columns are mean, low and high, and `layer` where it is not of all layers; `of` is
    their unit.
    """
    names = ["heads", " and ".join(by_part)]
    widths = {"column_widths": [0.45, 0.55], "horizontal_spacing": 0.2}
    figure = make_subplots(rows=1, cols=2, subplot_titles=names, **widths)
    top = float(np.nanmax(np.abs(heads), initial=0.0)) or 1.0
    scale = {"x": figure.layout.xaxis.domain[1] + 0.01, "xanchor": "left"}
    how = {"zmin": -top, "zmax": top, "colorscale": "RdBu", "colorbar": scale}
    heatmap(figure, heads, at=(1, 1), x="head", y="layer", **how)
    figure.update_xaxes(dtick=layer_step(heads.shape[1]), row=1, col=1)
    for i, (name, columns) in enumerate(by_part.items()):
        rows = pd.DataFrame({"layer": np.arange(len(columns["mean"])), **columns})
        figure.add_scatter(
            x=rows["layer"].astype(int),
            y=rows["mean"].astype(np.float32),
            error_y=interval(rows),
            mode="lines+markers",
            name=name,
            line={"color": COLOURS[i]},
            row=1,
            col=2,
        )
    step = layer_step(len(heads))
    figure.update_xaxes(title_text="layer", dtick=step, row=1, col=2)
    figure.update_yaxes(title_text=of, row=1, col=2)
    return titled(figure, title)
