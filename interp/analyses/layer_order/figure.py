"""The figure: first tokens kept by swaps of neighbours, by swaps at a distance, by operations."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.analyses.layer_order.findings import KEPT, by_distance, of_operation
from interp.analyses.layer_order.variants import WINDOWED, Variant
from interp.figures.intervals import interval, lines_with_intervals
from interp.figures.plots import COLOURS, layer_step, titled
from interp.figures.words import counted

if TYPE_CHECKING:
    from interp.analyses.layer_order.result import LayerOrderResult

_NAMES = {
    "reverse": "reverse",
    "shuffle": "shuffle",
    "repeat": "repeat one",
    "parallel_sum": "parallel, sum",
    "parallel_mean": "parallel, mean",
    "looped_parallel": "parallel, looped",
    "duplicate": "run twice",
    "loop": "loop",
    "damped_loop": "damped loop",
    "skip": "skip",
}
_COLOUR = {"swap": COLOURS[0], "skip both": COLOURS[1], "skip the first": COLOURS[2]}
_SHARE = {"tickformat": ".0%", "range": [-0.03, 1.03]}
Panel = tuple[str, str, dict[str, pd.DataFrame]]  # title, x axis, lines


def drawn(result: "LayerOrderResult") -> go.Figure:
    """Return the figure of those parts that were measured."""
    lines = [panel for panel in (_by_layer(result), _by_distance(result)) if panel[2]]
    rows = _by_operation(result)
    titles = [*[title for title, _, _ in lines], *([_windows_title(result)] if len(rows) else [])]
    n_cols, n_rows = max(1, len(lines)), bool(lines) + bool(len(rows))
    wide: list[dict[str, int] | None] = [{"colspan": n_cols}, *[None] * (n_cols - 1)]
    narrow: list[dict[str, int] | None] = [{} for _ in lines]
    specs = [narrow] * bool(lines) + [wide] * bool(len(rows))
    figure = make_subplots(
        rows=max(1, n_rows),
        cols=n_cols,
        specs=specs or [[{}]],
        subplot_titles=titles,
        vertical_spacing=0.2,
    )
    for col, (_, x, by_name) in enumerate(lines, 1):
        _draw_lines(figure, by_name, x=x, col=col, n_layers=result.n_layers)
    if len(rows):
        _draw_bars(figure, rows, row=n_rows)
    if lines:
        figure.update_yaxes(title_text=KEPT, row=1, col=1)
    figure.update_layout(height=360 * max(1, n_rows), legend={"y": 1, "yanchor": "top"})
    return titled(figure, "Layers in other orders: how often the most probable next token stays")


def _by_layer(result: "LayerOrderResult") -> Panel:
    swaps, both = result.orders.pairs("swap"), result.orders.pairs("skip")
    firsts = [Variant("skip", each.layers[:1]) for each in swaps]
    lines = {"swap": swaps, "skip both": both, "skip the first": firsts} if swaps else {}
    by_name = {
        name: _frame(result, [each.layers[0] for each in some], [[each] for each in some])
        for name, some in lines.items()
    }
    return "two neighbouring layers", "first of the two layers", by_name


def _by_distance(result: "LayerOrderResult") -> Panel:
    by_name = {}
    for name, operation in (("swap", "swap"), ("skip both", "skip")):
        if grouped := by_distance(result, operation):
            by_name[name] = _frame(result, [*grouped], [*grouped.values()])
    return "two layers at a distance, same places", "distance of the two layers", by_name


def _by_operation(result: "LayerOrderResult") -> pd.DataFrame:
    chosen = {name: of_operation(result.orders.windowed, name) for name in [*WINDOWED, "skip"]}
    there = {_NAMES[name]: some for name, some in chosen.items() if some}
    return _frame(result, [*there], [*there.values()])


def _windows_title(result: "LayerOrderResult") -> str:
    windows = {each.layers for each in of_operation(result.orders.windowed, "skip")}
    length = len(next(iter(windows)))
    return f"{counted(len(windows), 'window')} of {counted(length, 'layer')}, mean"


def _frame(
    result: "LayerOrderResult", x: Sequence[int | str], variants: Sequence[list[Variant]]
) -> pd.DataFrame:
    estimates = [result.estimate(some, KEPT) for some in variants]
    columns = {
        name: [getattr(each, at) for each in estimates]
        for name, at in (("mean", "value"), ("low", "low"), ("high", "high"))
    }
    return pd.DataFrame({"x": x} | columns)


def _draw_lines(
    figure: go.Figure, by_name: dict[str, pd.DataFrame], *, x: str, col: int, n_layers: int
) -> None:
    drawn_lines = lines_with_intervals(
        [*by_name.values()], x="x", y="mean", colours=[_COLOUR[name] for name in by_name]
    )
    for name, traces in zip(by_name, drawn_lines, strict=True):
        traces[-1] |= {"name": name, "showlegend": col == 1}
        for trace in traces:
            figure.add_scatter(**trace, legendgroup=name, row=1, col=col)
    is_depth = x.startswith("first")
    values = next(iter(by_name.values()))["x"]
    ticks = {"dtick": layer_step(n_layers)} if is_depth else {"tickvals": values}
    figure.update_xaxes(title_text=x, **ticks, row=1, col=col)
    figure.update_yaxes(**_SHARE, row=1, col=col)


def _draw_bars(figure: go.Figure, rows: pd.DataFrame, *, row: int) -> None:
    rows = rows[::-1]  # the first at the top
    is_skip = (rows["x"] == _NAMES["skip"]).to_numpy()
    figure.add_bar(
        y=rows["x"],
        x=rows["mean"].to_numpy(np.float32),
        error_x=interval(rows),
        marker_color=np.where(is_skip, _COLOUR["skip both"], COLOURS[4]),
        orientation="h",
        showlegend=False,
        row=row,
        col=1,
    )
    how = {"xanchor": "left", "showarrow": False, "row": row, "col": 1}
    for name in rows["x"]:  # inside, since margins are too narrow for names
        figure.add_annotation(text=name, x=1.05, y=name, **how)
    ticks = {"tickvals": [0, 0.5, 1], "range": [-0.02, 1.5]}
    figure.update_xaxes(title_text=KEPT, **_SHARE | ticks, row=row, col=1)
    figure.update_yaxes(showticklabels=False, ticks="", showgrid=False, row=row, col=1)
