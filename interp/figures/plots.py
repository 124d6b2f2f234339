"""Tidy frames to Plotly figures; knows no model."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")


def titled(figure: go.Figure, title: str) -> go.Figure:
    """Give a figure its title and the common look."""
    return figure.update_layout(
        title=title, template="plotly_white", margin={"t": 60, "b": 50}, font={"size": 13}
    )


def lines_over_depth(
    frame: pd.DataFrame, *, y: str, groups: str, panels: str, title: str, x: str = "layer"
) -> go.Figure:
    """Draw `y` against `layer`, or another column, one line per value of `groups` and one panel per
    value of `panels`.

    Columns `low` and `high`, where they exist, become a band.
    """
    names = list(dict.fromkeys(frame[panels]))
    shown: set[str] = set()
    figure = make_subplots(rows=1, cols=len(names), subplot_titles=names)
    for col, name in enumerate(names, 1):
        panel = frame[frame[panels] == name]
        for i, group in enumerate(dict.fromkeys(frame[groups])):
            rows = panel[panel[groups] == group]
            if rows.empty:
                continue
            colour = COLOURS[i % len(COLOURS)]
            line: dict[str, Any] = {
                "name": str(group),
                "legendgroup": str(group),
                "line": {"color": colour},
            }
            if {"low", "high"} <= set(rows.columns):
                around = np.concatenate([rows[x], rows[x][::-1]])
                band = np.concatenate([rows["high"], rows["low"][::-1]]).astype(np.float32)
                figure.add_scatter(
                    x=around, y=band, fill="toself", line={"width": 0}, fillcolor=colour, opacity=0.2, hoverinfo="skip",
                    legendgroup=str(group), showlegend=False, row=1, col=col,
                )  # fmt: skip
            figure.add_scatter(
                x=rows[x], y=rows[y].astype(np.float32), mode="lines+markers", showlegend=group not in shown,
                **line, row=1, col=col,
            )  # fmt: skip
            shown.add(group)
        step = max(1, int(frame[x].max()) // 8) if x == "layer" else None
        figure.update_xaxes(title_text=x, dtick=step, row=1, col=col)
    return titled(figure, title)


def grids_over_bars(
    grids: dict[str, np.ndarray],
    bars: dict[str, pd.DataFrame],
    *,
    x: str,
    y: str,
    bars_label: str,
    title: str,
    top: float = 1.0,
) -> go.Figure:
    """Draw grids [y x] on one colour scale that saturates at `top`, row 0 on top, NaN left blank;
    and bars below.

    Each frame of `bars` has a row per `y`, with columns skipped, mean, low and high.
    """
    n_cols = max(len(grids), 1)
    specs = [[{} for _ in range(n_cols)], [{"colspan": n_cols}, *[None] * (n_cols - 1)]]
    figure = make_subplots(
        rows=2,
        cols=n_cols,
        specs=specs,
        subplot_titles=[*grids, bars_label],
        row_heights=[0.6, 0.4],
        vertical_spacing=0.2,
    )
    ticks = [top * i / 4 for i in range(5)]
    names = [*(f"{tick:g}" for tick in ticks[:-1]), f"≥ {top:g}"]
    for col, grid in enumerate(grids.values(), 1):
        figure.add_heatmap(
            z=grid.astype(np.float32), zmin=0, zmax=top, colorscale="Cividis", showscale=col == n_cols,
            colorbar={"len": 0.55, "y": 0.75, "tickvals": ticks, "ticktext": names}, hoverongaps=False,
            hovertemplate=f"{y} %{{y}}<br>{x} %{{x}}<br>%{{z:.3f}}<extra></extra>", row=1, col=col,
        )  # fmt: skip
        step = max(1, len(grid) // 8)
        figure.update_xaxes(title_text=x, dtick=step, tick0=0, showgrid=False, row=1, col=col)
        figure.update_yaxes(
            title_text=y if col == 1 else None,
            dtick=step,
            tick0=0,
            autorange="reversed",
            showgrid=False,
            row=1,
            col=col,
        )
    for i, (name, frame) in enumerate(bars.items()):
        mean = frame["mean"].to_numpy(np.float32)
        error = {
            "array": frame["high"] - mean,
            "arrayminus": mean - frame["low"],
            "type": "data",
            "symmetric": False,
        }
        figure.add_bar(
            x=frame["skipped"],
            y=mean,
            name=name,
            error_y=error,
            marker_color=COLOURS[i],
            row=2,
            col=1,
        )
    figure.update_xaxes(
        title_text=y,
        dtick=1 if not bars else max(1, len(next(iter(bars.values()))) // 16),
        row=2,
        col=1,
    )
    figure.update_layout(height=640, legend={"y": 0.3})
    return titled(figure, title)


def grids_over_positions(
    frame: pd.DataFrame, *, panels: str, y: str, title: str, colour: str, is_signed: bool = False
) -> go.Figure:
    """Draw column `mean` by `layer` (0 at the bottom) and `position`, one grid per value of
    `panels`, on one colour scale.

    Positions count from the prompt's last token, 0; "first" is the first token, on which the scale
    does not depend.
    """
    names = list(dict.fromkeys(frame[panels]))
    figure = make_subplots(rows=1, cols=len(names), subplot_titles=names, shared_yaxes=True)
    top = float(frame.loc[frame["position"] != "first", "mean"].abs().max()) or 1.0
    for col, name in enumerate(names, 1):
        rows = frame[frame[panels] == name]
        columns = list(dict.fromkeys(rows["position"]))
        grid = rows.pivot_table(index="layer", columns="position", values="mean", sort=False)[
            columns
        ]
        figure.add_heatmap(
            z=grid.to_numpy(np.float32), x=columns, y=grid.index.to_numpy(), zmin=-top if is_signed else 0, zmax=top,
            colorscale="RdBu" if is_signed else "Cividis", showscale=col == len(names),
            colorbar={"title": {"text": colour}}, hoverongaps=False,
            hovertemplate=f"{y} %{{y}}<br>position %{{x}}<br>%{{z:.4f}}<extra></extra>", row=1, col=col,
        )  # fmt: skip
        figure.update_xaxes(
            title_text="position (0: last token)", type="category", showgrid=False, row=1, col=col
        )
        figure.update_yaxes(
            title_text=y if col == 1 else None,
            dtick=max(1, len(grid) // 8),
            tick0=0,
            showgrid=False,
            row=1,
            col=col,
        )
    return titled(figure, title)


def grid_below(
    figure: go.Figure,
    grid: np.ndarray,
    *,
    x: str,
    y: str,
    of: str,
    x_first: int = 0,
    y_first: int = 0,
    top: float | None = None,
) -> go.Figure:
    """Add one grid [y x] under a row of panels: the first row at the bottom, NaN left blank,
    colours from 0 to `top`.

    Without `top` they reach to the largest value.
    """
    figure.update_yaxes(domain=[0.62, 1])
    figure.add_heatmap(
        z=grid.astype(np.float32), x=x_first + np.arange(grid.shape[1]), y=y_first + np.arange(grid.shape[0]),
        zmin=0, zmax=float(np.nanmax(grid)) if top is None else top, colorscale="Cividis", hoverongaps=False,
        xaxis="x99", yaxis="y99",
        colorbar={"len": 0.45, "y": 0.2, "title": {"text": of}},
        hovertemplate=f"{x} %{{x}}<br>{y} %{{y}}<br>%{{z:.3f}}<extra></extra>",
    )  # fmt: skip
    steps = [max(1, size // 16) for size in grid.shape]
    return figure.update_layout(
        xaxis99={"anchor": "y99", "title": x, "dtick": steps[1], "showgrid": False},
        yaxis99={
            "anchor": "x99",
            "title": y,
            "dtick": steps[0],
            "showgrid": False,
            "domain": [0, 0.42],
        },
        height=640,
    )


def curves(
    frame: pd.DataFrame,
    *,
    x: str,
    groups: str,
    title: str,
    x_label: str,
    y_label: str,
    is_log: bool = False,
) -> go.Figure:
    """Draw column `mean` with its interval (`low`, `high`) against `x`, one line per value of
    `groups`.
    """
    figure = go.Figure()
    for i, group in enumerate(dict.fromkeys(frame[groups])):
        rows = frame[frame[groups] == group]
        mean = rows["mean"].to_numpy(np.float32)
        error = {
            "array": rows["high"] - mean,
            "arrayminus": mean - rows["low"],
            "type": "data",
            "symmetric": False,
        }
        figure.add_scatter(
            x=rows[x],
            y=mean,
            error_y=error,
            mode="lines+markers",
            name=str(group),
            line={"color": COLOURS[i % len(COLOURS)]},
        )
    figure.update_xaxes(
        title_text=x_label, type="log" if is_log else "linear", dtick=1 if is_log else None
    )
    figure.update_yaxes(title_text=y_label)
    return titled(figure, title)


def grids_over_rates(
    grids: dict[str, np.ndarray],
    bars: dict[str, pd.DataFrame],
    *,
    x: str,
    y: str,
    of: str,
    below: str,
    title: str,
) -> go.Figure:
    """Draw grids [y x] of shares, the first row at the bottom and NaN left blank, and below them
    bars of shares.

    Each frame of `bars` has a row per bar, with columns kind, rate, low and high.
    """
    n_cols = max(len(grids), 1)
    specs = [[{} for _ in range(n_cols)], [{"colspan": n_cols}, *[None] * (n_cols - 1)]]
    figure = make_subplots(
        rows=2, cols=n_cols, specs=specs, subplot_titles=[*grids, below], vertical_spacing=0.2
    )
    for col, grid in enumerate(grids.values(), 1):
        figure.add_heatmap(
            z=grid.astype(np.float32), zmin=0, zmax=1, colorscale="Cividis", showscale=col == n_cols, hoverongaps=False,
            colorbar={"len": 0.45, "y": 0.8, "tickformat": ".0%", "title": {"text": of, "side": "right"}},
            texttemplate="%{z:.0%}" if len(grid) * n_cols <= 16 else None,
            hovertemplate=f"{y} %{{y}}<br>{x} %{{x}}<br>%{{z:.1%}}<extra></extra>", row=1, col=col,
        )  # fmt: skip
        step = max(1, len(grid) // 8)
        figure.update_xaxes(title_text=x, dtick=step, tick0=0, showgrid=False, row=1, col=col)
        figure.update_yaxes(
            title_text=y if col == 1 else None, dtick=step, tick0=0, showgrid=False, row=1, col=col
        )
    for i, (name, frame) in enumerate(bars.items()):
        rate = frame["rate"].to_numpy(np.float32)
        error = {
            "array": frame["high"] - rate,
            "arrayminus": rate - frame["low"],
            "type": "data",
            "symmetric": False,
        }
        colour = COLOURS[i % len(COLOURS)]
        figure.add_bar(
            x=frame["kind"], y=rate, name=name, error_y=error, marker_color=colour, row=2, col=1
        )
    figure.update_yaxes(title_text="share repaired", range=[0, 1], tickformat=".0%", row=2, col=1)
    figure.update_layout(height=680, legend={"y": 0.3})
    return titled(figure, title)


def boxes(
    values: dict[str, dict[str, np.ndarray]],
    *,
    notes: dict[str, dict[str, str]],
    y: str,
    title: str,
) -> go.Figure:
    """Draw one box per group (outer name) and x (inner name), NaN left out, with a note above each."""
    figure = go.Figure()
    top = max(
        (
            float(np.nanmax(v))
            for of in values.values()
            for v in of.values()
            if not np.isnan(v).all()
        ),
        default=1.0,
    )
    for i, (group, of) in enumerate(values.items()):
        x = np.concatenate(
            [np.full(len(v), column, np.uint8) for column, v in enumerate(of.values())]
        )
        numbers = np.concatenate(list(of.values())).astype(np.float32)
        figure.add_box(
            x=x, y=numbers, name=group, boxmean=True, marker_color=COLOURS[i], offsetgroup=group
        )
        for column, name in enumerate(of):
            figure.add_annotation(
                x=column + (i - (len(values) - 1) / 2) * 0.4, y=1.04 * top + 0.35, showarrow=False,
                text=notes[group][name], font={"color": COLOURS[i]},
            )  # fmt: skip
    figure.update_yaxes(title_text=y, rangemode="tozero", range=[-0.3, 1.04 * top + 0.7])
    names = list(next(iter(values.values()), {}))
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names)
    figure.update_layout(boxmode="group")
    return titled(figure, title)


def scatters_with_diagonal(
    frame: pd.DataFrame, *, x: str, y: str, groups: str, panels: str, title: str
) -> go.Figure:
    """Draw `y` against `x`, a colour per value of `groups` and a panel per value of `panels`, and
    where both are equal.
    """
    names = list(dict.fromkeys(frame[panels]))
    figure = make_subplots(rows=1, cols=len(names), subplot_titles=names)
    for col, name in enumerate(names, 1):
        panel = frame[frame[panels] == name]
        ends = [float(panel[[x, y]].min().min()), float(panel[[x, y]].max().max())]
        figure.add_scatter(
            x=ends,
            y=ends,
            mode="lines",
            line={"color": "grey", "dash": "dot"},
            showlegend=False,
            hoverinfo="skip",
            row=1,
            col=col,
        )
        for i, group in enumerate(dict.fromkeys(frame[groups])):
            rows = panel[panel[groups] == group]
            figure.add_scatter(
                x=rows[x].astype(np.float32), y=rows[y].astype(np.float32), mode="markers", name=str(group),
                legendgroup=str(group), showlegend=col == 1, row=1, col=col,
                marker={"color": COLOURS[i % len(COLOURS)], "size": 6, "opacity": 0.7, "symbol": ["circle", "x"][i % 2]},
            )  # fmt: skip
        figure.update_xaxes(title_text=x, row=1, col=col)
    figure.update_yaxes(title_text=y, row=1, col=1)
    return titled(figure, title)
