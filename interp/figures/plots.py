"""Tidy frames to Plotly figures; knows no model."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.figures.intervals import interval, lines_with_intervals

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_LARGE = 3.0  # times the 95th percentile of a panel's values; larger ones are cut off
_ENOUGH = 12  # layers of a panel in which values are cut off
_MOST = 95  # percentile of a panel's values, beyond which they may be cut off
_BRIGHT = 85  # percentile of a grid's values at which its colours end
_SIDE_BY_SIDE = 4  # panels, at most
_FEW = 6  # values along x, each of which has a tick
_ROW = 300  # pixels, the height of one of several rows of panels
RowCol = tuple[int, int]  # of a panel, from 1


@dataclass(frozen=True)
class Axes:
    """The words beside a figure's axes, and what its colours are (`of`)."""

    x: str
    y: str
    of: str = ""


def layer_step(n: int) -> int:
    """Return the distance of the ticks along an axis of `n` layers."""
    return 1 if n <= 12 else 5 if n <= 40 else 10 if n <= 100 else 20


def titled(figure: go.Figure, title: str) -> go.Figure:
    """Give a figure its title and the common look."""
    return figure.update_layout(
        title=title, template="plotly_white", margin={"t": 60, "b": 50}, font={"size": 13}
    )


def heatmap(
    figure: go.Figure, grid: np.ndarray, *, at: RowCol, x: str, y: str, **trace: Any
) -> None:
    """Draw a grid [y x] in a panel; NaN is left blank.

    `x` and `y` name the axes (`y` only on the first column); `trace` goes to Plotly.
    """
    row, col = at
    figure.add_heatmap(**_heatmap_trace(grid, x=x, y=y, **trace), row=row, col=col)
    step = layer_step(len(grid))
    common = {"tick0": 0, "showgrid": False, "row": row, "col": col}
    figure.update_xaxes(title_text=x, dtick=step, **common)
    figure.update_yaxes(title_text=y if col == 1 else None, dtick=step, **common)


def _heatmap_trace(
    grid: np.ndarray, *, x: str, y: str, value: str = "%{z:.3f}", **trace: Any
) -> Any:
    """Return a heatmap trace; `value` is what hovering shows after the names of the axes."""
    hover = f"{y} %{{y}}<br>{x} %{{x}}<br>{value}<extra></extra>"
    given = {"colorscale": "Cividis", "hoverongaps": False, "hovertemplate": hover, **trace}
    return {"z": grid.astype(np.float32), **given}


def bars(
    figure: go.Figure, frames: dict[str, pd.DataFrame], *, at: RowCol, x: str, y: str = "mean"
) -> None:
    """Draw bars in a panel, a set per frame: column `y` by column `x`, with `low` and `high`."""
    row, col = at
    for i, (name, frame) in enumerate(frames.items()):
        figure.add_bar(
            x=frame[x],
            y=frame[y].to_numpy(np.float32),
            name=name,
            error_y=interval(frame, y),
            marker_color=COLOURS[i % len(COLOURS)],
            row=row,
            col=col,
        )


def lines_over_depth(
    frame: pd.DataFrame, *, y: str, groups: str, panels: str, title: str, x: str = "layer"
) -> go.Figure:
    """Draw `y` against `x`: a line per value of `groups`, a panel per value of `panels`.

    Columns `low` and `high`, where they exist, become intervals (`lines_with_intervals`). More than
    four panels stand in rows of three. First layers that would crush all others are cut off, with
    their number. A line that is alone in its panel and named like it is not in the legend.
    """
    names, colours = list(dict.fromkeys(frame[panels])), cycle(COLOURS)
    colour_of = dict(zip(dict.fromkeys(frame[groups]), colours, strict=False))
    n_cols = len(names) if len(names) <= _SIDE_BY_SIDE else 3
    n_rows = -(-len(names) // n_cols)
    cells: list[dict[str, int] | None] = [
        {} if i < len(names) else None for i in range(n_rows * n_cols)
    ]
    specs = [cells[i : i + n_cols] for i in range(0, len(cells), n_cols)]
    figure = make_subplots(rows=n_rows, cols=n_cols, subplot_titles=names, specs=specs)
    in_legend: set[str] = set()
    for i, name in enumerate(names):
        panel, at = frame[frame[panels] == name], {"row": 1 + i // n_cols, "col": 1 + i % n_cols}
        here = [group for group in colour_of if (panel[groups] == group).any()]
        rows = [panel[panel[groups] == group] for group in here]
        drawn = lines_with_intervals(rows, x=x, y=y, colours=[colour_of[group] for group in here])
        for group, traces in zip(map(str, here), drawn, strict=True):
            is_named = group in in_legend or here == [name]
            traces[-1] |= {"name": group, "showlegend": not is_named}
            for trace in traces:
                figure.add_scatter(**trace, legendgroup=group, **at)
            in_legend |= set() if is_named else {group}
        values = panel[x].unique()
        few = values if len(values) <= _FEW else None
        ticks = _layers(frame[x]) if x == "layer" else {"tickvals": few}
        figure.update_xaxes(title_text=x, **ticks, **at)
        _cut_off(figure, panel[x].to_numpy(float), panel[y].to_numpy(float), at)
    if n_rows > 1:
        figure.update_layout(height=_ROW * n_rows)
    return titled(figure, title)


def _layers(layers: pd.Series) -> dict[str, Any]:
    """Return the ticks and the ends of an axis of layers, the same with and without markers."""
    first, last = float(layers.min()), float(layers.max())
    margin = 0.5 + 0.02 * (last - first)
    return {"dtick": layer_step(int(last)), "range": [first - margin, last + margin]}


def _cut_off(figure: go.Figure, x: np.ndarray, y: np.ndarray, at: dict[str, int]) -> None:
    """End a panel's axis where the first layers would crush all others; say how far they go."""
    sizes = np.abs(np.nan_to_num(y))
    usual = float(np.percentile(sizes, _MOST)) if len(sizes) else 0.0
    n, top = len(np.unique(x)), 1.25 * usual
    is_late = (x >= n / 10) & (sizes > top)
    if n < _ENOUGH or is_late.any() or not 0 < usual * _LARGE < sizes.max():
        return
    figure.update_yaxes(range=[-top if (y < 0).any() else -0.04 * top, top], **at)
    how = {"yanchor": "top", "xanchor": "left", "xshift": 6, "showarrow": False, "font_size": 11}
    text = f"up to {sizes.max():.3g}"
    figure.add_annotation(text=text, x=x[sizes.argmax()], y=top, **at, **how)


def _panels_over_one(names: Iterable[str], below: str, **layout: Any) -> go.Figure:
    """Return a figure of panels side by side, with one panel of full width below."""
    titles = [*names, below]
    n_cols = max(len(titles) - 1, 1)
    wide: list[dict[str, int] | None] = [{"colspan": n_cols}, *[None] * (n_cols - 1)]
    return make_subplots(
        rows=2,
        cols=n_cols,
        specs=[[{} for _ in range(n_cols)], wide],
        subplot_titles=titles,
        vertical_spacing=0.2,
        **layout,
    )


def grids_over_bars(
    grids: dict[str, np.ndarray],
    bars_by_name: dict[str, pd.DataFrame],
    *,
    x: str,
    y: str,
    bars_label: str,
    title: str,
) -> go.Figure:
    """Draw grids [y x] on one colour scale, row 0 at the bottom; and bars below.

    Colours end at the 85th percentile of all values above 0.
    Each frame of `bars_by_name` has a row per `y`, with columns skipped, mean, low and high.
    """
    figure = _panels_over_one(grids, bars_label, row_heights=[0.6, 0.4])
    known = np.concatenate([grid[grid > 0] for grid in grids.values()] or [np.zeros(0)])
    top = float(f"{np.percentile(known, _BRIGHT):.2g}") if len(known) else 1.0
    ticks = [top * part / 4 for part in range(5)]
    names = [*(f"{tick:.3g}" for tick in ticks[:-1]), f"≥ {top:.3g}"]
    scale = {"len": 0.55, "y": 0.75, "tickvals": ticks, "ticktext": names}
    for col, grid in enumerate(grids.values(), 1):
        how = {"zmin": 0, "zmax": top, "showscale": col == len(grids), "colorbar": scale}
        heatmap(figure, grid, at=(1, col), x=x, y=y, **how)
    bars(figure, bars_by_name, at=(2, 1), x="skipped")
    n_bars = max((len(frame) for frame in bars_by_name.values()), default=0)
    figure.update_xaxes(title_text=y, dtick=layer_step(n_bars), row=2, col=1)
    figure.update_layout(height=640, legend={"y": 0.3})
    return titled(figure, title)


def grids_over_rates(
    grids: dict[str, np.ndarray],
    bars_by_name: dict[str, pd.DataFrame],
    *,
    axes: Axes,
    below: str,
    title: str,
) -> go.Figure:
    """Draw grids [y x] of shares, row 0 at the bottom; and bars of shares under the title `below`.

    Each frame of `bars_by_name` has a row per bar, with columns kind, rate, low and high.
    """
    figure = _panels_over_one(grids, below)
    label = {"text": axes.of, "side": "right"}
    scale = {"len": 0.45, "y": 0.8, "tickformat": ".0%", "title": label}
    for col, grid in enumerate(grids.values(), 1):
        is_roomy = len(grid) * len(grids) <= 16
        how = {"zmin": 0, "zmax": 1, "showscale": col == len(grids), "colorbar": scale}
        written = {"value": "%{z:.1%}", "texttemplate": "%{z:.0%}" if is_roomy else None}
        heatmap(figure, grid, at=(1, col), x=axes.x, y=axes.y, **how, **written)
    bars(figure, bars_by_name, at=(2, 1), x="kind", y="rate")
    figure.update_yaxes(title_text="share repaired", range=[0, 1], tickformat=".0%", row=2, col=1)
    figure.update_layout(height=680, legend={"y": 0.3})
    return titled(figure, title)


def grids_over_positions(
    frame: pd.DataFrame, *, panels: str, y: str, title: str, colour: str, is_signed: bool = False
) -> go.Figure:
    """Draw column `mean` by `layer` (0 at the bottom) and `position`, a grid per value of `panels`.

    Positions count from the prompt's end, "-1" is its last token; "first" is the first token, on
    which the common colour scale does not depend.
    """
    names = list(dict.fromkeys(frame[panels]))
    figure = make_subplots(rows=1, cols=len(names), subplot_titles=names, shared_yaxes=True)
    top = float(frame.loc[frame["position"] != "first", "mean"].abs().max()) or 1.0
    how: dict[str, Any] = {
        "zmin": -top if is_signed else 0,
        "zmax": top,
        "colorscale": "RdBu" if is_signed else "Cividis",
        "colorbar": {"title": {"text": colour}},
        "value": "%{z:.4f}",
    }
    for col, name in enumerate(names, 1):
        rows = frame[frame[panels] == name]
        positions = list(dict.fromkeys(rows["position"]))
        grid = rows.pivot_table(index="layer", columns="position", values="mean", sort=False)
        trace = _heatmap_trace(grid[positions].to_numpy(np.float32), x="position", y=y, **how)
        trace |= {"x": positions, "y": grid.index.to_numpy(), "showscale": col == len(names)}
        figure.add_heatmap(**trace, row=1, col=col)
        common = {"showgrid": False, "row": 1, "col": col}
        figure.update_xaxes(title_text="position (−1: last token)", type="category", **common)
        layers = grid.index.to_numpy(int)
        is_few = len(layers) <= 12  # such as every eighth
        ticks = {"tickvals": layers} if is_few else {"dtick": layer_step(int(layers.max()) + 1)}
        figure.update_yaxes(title_text=y if col == 1 else None, **ticks, **common)
    return titled(figure, title)


def grid_below(
    figure: go.Figure,
    grid: np.ndarray,
    *,
    axes: Axes,
    x_first: int = 0,
    y_first: int = 0,
    top: float | None = None,
    **trace: Any,
) -> go.Figure:
    """Add one grid [y x] under a row of panels: row 0 at the bottom, NaN left blank.

    Axes begin at `x_first` and `y_first`. Colours, which `axes.of` names above the grid, run from 0
    to `top`, or to the largest value. `trace` goes to Plotly.
    """
    figure.update_yaxes(domain=[0.62, 1])
    hover = f"{axes.x} %{{x}}<br>{axes.y} %{{y}}<br>%{{z:.3f}}<extra></extra>"
    scale = {"len": 0.45, "y": 0.2, **trace.pop("colorbar", {})}
    end = float(np.nanmax(grid)) if top is None else top
    how = {"hovertemplate": hover, "zmin": 0, "zmax": end, **trace}
    figure.add_heatmap(
        **_heatmap_trace(grid, x=axes.x, y=axes.y, **how),
        x=x_first + np.arange(grid.shape[1]),
        y=y_first + np.arange(grid.shape[0]),
        xaxis="x99",
        yaxis="y99",
        colorbar=scale,
    )
    place = {"x": 0.5, "y": 0.42, "xref": "paper", "yref": "paper", "yanchor": "bottom"}
    figure.add_annotation(text=axes.of, showarrow=False, **place)
    rows, columns = ({"dtick": layer_step(size), "showgrid": False} for size in grid.shape)
    return figure.update_layout(
        xaxis99={"anchor": "y99", "title": axes.x, **columns},
        yaxis99={"anchor": "x99", "title": axes.y, "domain": [0, 0.42], **rows},
        height=660,
    )


def curves(
    frame: pd.DataFrame,
    *,
    x: str,
    groups: str,
    axes: Axes,
    title: str,
    is_log: bool = False,
) -> go.Figure:
    """Draw `mean` with its interval (`low`, `high`) against `x`: a line per value of `groups`."""
    figure = go.Figure()
    for i, group in enumerate(dict.fromkeys(frame[groups])):
        rows = frame[frame[groups] == group]
        figure.add_scatter(
            x=rows[x],
            y=rows["mean"].to_numpy(np.float32),
            error_y=interval(rows),
            mode="lines+markers",
            name=str(group),
            line={"color": COLOURS[i % len(COLOURS)]},
        )
    figure.update_xaxes(
        title_text=axes.x, type="log" if is_log else "linear", dtick=1 if is_log else None
    )
    figure.update_yaxes(title_text=axes.y)
    return titled(figure, title)


def boxes(
    values: dict[str, dict[str, np.ndarray]],
    *,
    notes: dict[str, dict[str, str]],
    y: str,
    title: str,
) -> go.Figure:
    """Draw a box per group (outer name) and x (inner name), with a note above it; NaN left out."""
    figure = go.Figure()
    samples = [sample for of in values.values() for sample in of.values()]
    known = [sample for sample in samples if not np.isnan(sample).all()]
    top = max((float(np.nanmax(sample)) for sample in known), default=1.0)
    for i, (group, of) in enumerate(values.items()):
        x = [np.full(len(sample), column, np.uint8) for column, sample in enumerate(of.values())]
        figure.add_box(
            x=np.concatenate(x),
            y=np.concatenate(list(of.values())).astype(np.float32),
            name=group,
            boxmean=True,
            marker_color=COLOURS[i],
            offsetgroup=group,
        )
        for column, name in enumerate(of):
            figure.add_annotation(
                x=column + (i - (len(values) - 1) / 2) * 0.4,
                y=1.04 * top + 0.35,
                showarrow=False,
                text=notes[group][name],
                font={"color": COLOURS[i]},
            )
    figure.update_yaxes(title_text=y, rangemode="tozero", range=[-0.3, 1.04 * top + 0.7])
    names = list(next(iter(values.values()), {}))
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names)
    figure.update_layout(boxmode="group")
    return titled(figure, title)


def scatters_with_diagonal(
    frame: pd.DataFrame, *, x: str, y: str, groups: str, panels: str, title: str
) -> go.Figure:
    """Draw `y` against `x`, a colour per value of `groups`, a panel per value of `panels`.

    A dotted line marks where both are equal.
    """
    names = list(dict.fromkeys(frame[panels]))
    figure = make_subplots(rows=1, cols=len(names), subplot_titles=names)
    for col, name in enumerate(names, 1):
        panel = frame[frame[panels] == name]
        at = {"row": 1, "col": col}
        ends = [float(panel[[x, y]].min().min()), float(panel[[x, y]].max().max())]
        dotted = {"color": "grey", "dash": "dot"}
        how = {"mode": "lines", "line": dotted, "showlegend": False, "hoverinfo": "skip"}
        figure.add_scatter(x=ends, y=ends, **how, **at)
        for i, group in enumerate(dict.fromkeys(frame[groups])):
            rows = panel[panel[groups] == group]
            mark = {"color": COLOURS[i % len(COLOURS)], "symbol": ["circle", "x"][i % 2]}
            figure.add_scatter(
                x=rows[x].astype(np.float32),
                y=rows[y].astype(np.float32),
                mode="markers",
                name=str(group),
                legendgroup=str(group),
                showlegend=col == 1,
                marker={**mark, "size": 6, "opacity": 0.7},
                **at,
            )
        figure.update_xaxes(title_text=x, **at)
    figure.update_yaxes(title_text=y, row=1, col=1)
    return titled(figure, title)
