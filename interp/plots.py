"""Tidy frames to Plotly figures; knows no model."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")


def titled(figure: go.Figure, title: str) -> go.Figure:
    """Give a figure its title and the common look."""
    return figure.update_layout(title=title, template="plotly_white", margin={"t": 60, "b": 50}, font={"size": 13})


def lines_over_depth(frame: pd.DataFrame, *, y: str, groups: str, panels: str, title: str) -> go.Figure:
    """Draw `y` against `layer`, one line per value of `groups` and one panel per value of `panels`.

    Columns `low` and `high`, where they exist, become a band.
    """
    names = list(dict.fromkeys(frame[panels]))
    figure = make_subplots(rows=1, cols=len(names), subplot_titles=names)
    for col, name in enumerate(names, 1):
        panel = frame[frame[panels] == name]
        for i, group in enumerate(dict.fromkeys(frame[groups])):
            rows = panel[panel[groups] == group]
            if rows.empty:
                continue
            colour = COLOURS[i % len(COLOURS)]
            line: dict[str, Any] = {"name": str(group), "legendgroup": str(group), "line": {"color": colour}}
            if {"low", "high"} <= set(rows.columns):
                x = np.concatenate([rows["layer"], rows["layer"][::-1]])
                band = np.concatenate([rows["high"], rows["low"][::-1]]).astype(np.float32)
                figure.add_scatter(
                    x=x, y=band, fill="toself", line={"width": 0}, fillcolor=colour, opacity=0.2, hoverinfo="skip",
                    legendgroup=str(group), showlegend=False, row=1, col=col,
                )  # fmt: skip
            figure.add_scatter(
                x=rows["layer"], y=rows[y].astype(np.float32), mode="lines+markers", showlegend=col == 1,
                **line, row=1, col=col,
            )  # fmt: skip
        figure.update_xaxes(title_text="layer", dtick=max(1, int(frame["layer"].max()) // 8), row=1, col=col)
    return titled(figure, title)


def heat(grids: dict[str, np.ndarray], *, x: str, y: str, title: str, top: float | None = None) -> go.Figure:
    """Draw grids [y x] of non-negative numbers side by side on one colour scale; values above `top` saturate."""
    figure = make_subplots(rows=1, cols=len(grids), subplot_titles=list(grids))
    limit = top if top is not None else max((float(np.nanmax(grid)) for grid in grids.values()), default=1.0)
    for col, grid in enumerate(grids.values(), 1):
        figure.add_heatmap(
            z=grid.astype(np.float32), zmin=0, zmax=limit, colorscale="Cividis", showscale=col == len(grids),
            hovertemplate=f"{y} %{{y}}<br>{x} %{{x}}<br>%{{z:.3f}}<extra></extra>", row=1, col=col,
        )  # fmt: skip
        figure.update_xaxes(title_text=x, row=1, col=col)
        figure.update_yaxes(title_text=y if col == 1 else None, row=1, col=col)
    return titled(figure, title)
