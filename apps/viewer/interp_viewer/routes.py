"""A path through the layers as rows of blocks, and all paths of a prompt by length."""

from itertools import pairwise

import plotly.graph_objects as go

from interp.figures.plots import layer_step
from interp_viewer.tries import Tries, passes, path_named

_COLOURS = {"search": "#3182bd", "random paths": "#d9822b"}  # on white and on black
_ORDINARY, _SKIPPED, _GREY = "#009E73", "rgba(128,128,128,0.22)", "#8a8678"
_ROW, _AROUND = 24, 78  # pixels
_HALF = 0.32  # of a block's height, in rows


def route(path: list[int], n_layers: int, kind: str) -> go.Figure:
    """Draw a path: a row of blocks per pass, a new one below where it goes back, gaps in grey."""
    rows = passes(path)
    figure = go.Figure()
    ran = [(layer, row) for row, layers in enumerate(rows) for layer in layers]
    steps = [f"layer {layer}, step {step + 1} of {len(path)}" for step, layer in enumerate(path)]
    _blocks(figure, _skipped(rows, n_layers), _SKIPPED, "skipped")
    _blocks(figure, ran, _COLOURS[kind], "run", said=steps)
    for row, (before, after) in enumerate(pairwise(rows)):
        _back(figure, before[-1], after[0], row)
    figure.update_layout(
        height=_AROUND + _ROW * len(rows),
        margin={"l": 44, "r": 10, "t": 24, "b": 40},
        barmode="overlay",
        bargap=0,
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 1, "xanchor": "right"},
    )
    axis = {"showgrid": False, "zeroline": False, "fixedrange": True}
    ticks = list(range(0, n_layers, layer_step(n_layers)))
    figure.update_xaxes(title_text="layer", range=[-0.6, n_layers - 0.4], tickvals=ticks, **axis)
    numbers = list(range(len(rows)))
    names = [str(number + 1) for number in numbers]
    limits = [len(rows) - 0.5, -0.5]
    figure.update_yaxes(title_text="pass", range=limits, tickvals=numbers, ticktext=names, **axis)
    return figure


def _skipped(rows: list[list[int]], n_layers: int) -> list[tuple[int, int]]:
    """Return (layer, row) of what is jumped over on the way up, also before and after the path."""
    skipped = []
    for row, layers in enumerate(rows):
        first = 0 if row == 0 else layers[0]
        end = n_layers if row == len(rows) - 1 else layers[-1]
        skipped += [(layer, row) for layer in range(first, end) if layer not in layers]
    return skipped


def _blocks(
    figure: go.Figure,
    blocks: list[tuple[int, int]],
    colour: str,
    name: str,
    said: list[str] | None = None,
) -> None:
    figure.add_bar(
        x=[layer for layer, _ in blocks],
        y=[2 * _HALF] * len(blocks),
        base=[row - _HALF for _, row in blocks],
        width=0.84,
        marker={"color": colour, "line_width": 0},
        name=name,
        hovertext=said or [f"layer {layer}, skipped" for layer, _ in blocks],
        hoverinfo="text",
    )


def _back(figure: go.Figure, end: int, start: int, row: int) -> None:
    """Draw the way back from the end of a row of blocks to the start of the next."""
    y = [row + _HALF, row + 0.5, row + 0.5, row + 0.96 - _HALF]
    figure.add_scatter(
        x=[end, end, start, start],
        y=y,
        mode="lines+markers",
        line={"color": _GREY, "width": 1.5},
        marker={"symbol": "triangle-down", "size": [0, 0, 0, 7], "opacity": 1},
        name="back to",
        showlegend=False,
        hoverinfo="skip",
    )


def by_length(tries: dict[str, Tries], row: int, chosen: str) -> go.Figure:
    """Draw a prompt's tries by layers run and log-probability, with the front of one kind."""
    figure = go.Figure()
    for kind, each in tries.items():
        for is_right in sorted(set(each.is_right[row, 1:].tolist()), reverse=True):
            _dots(figure, each, row, kind, is_right=is_right)
    of = tries[chosen]
    front = of.front(row)
    figure.add_scatter(
        x=of.lengths[row, front],
        y=of.log_prob[row, front],
        mode="lines",
        line={"color": _COLOURS[chosen], "width": 2, "shape": "hv"},
        name="best up to this length",
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=of.lengths[row, :1],
        y=of.log_prob[row, :1],
        mode="markers",
        marker={"symbol": "diamond", "size": 12, "color": _ORDINARY},
        name="ordinary path",
        hovertemplate="the ordinary path<br>%{x} layers, %{y:.3f} nats<extra></extra>",
    )
    figure.update_layout(
        height=320,
        margin={"l": 50, "r": 10, "t": 10, "b": 40},
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0},
    )
    figure.update_xaxes(title_text="layers run")
    figure.update_yaxes(title_text="log-probability of the answer, nats")
    return figure


def _dots(figure: go.Figure, tries: Tries, row: int, kind: str, *, is_right: bool) -> None:
    """Draw the tries of a kind but the ordinary path: filled where they are right."""
    numbers = [i for i in range(1, tries.lengths.shape[1]) if tries.is_right[row, i] == is_right]
    names = [path_named(tries.path(row, i)) for i in numbers]
    word = "right" if is_right else "wrong"
    figure.add_scatter(
        x=tries.lengths[row, numbers],
        y=tries.log_prob[row, numbers],
        mode="markers",
        marker={
            "symbol": "circle" if is_right else "circle-open",
            "size": 8,
            "color": _COLOURS[kind],
            "opacity": 0.65,
        },
        name=kind,
        legendgroup=kind,
        showlegend=is_right or not tries.is_right[row, 1:].any(),
        hovertext=[f"{kind}, {word}: {name}" for name in names],
        hovertemplate="%{hovertext}<br>%{x} layers, %{y:.3f} nats<extra></extra>",
    )
