"""Depth at a glance: one strip per question over one axis of layers, with what was found beside it.

Knows no model: strips are made from tidy frames (`interp.figures.strips`), and drawn by Plotly.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from interp.figures.columns import Beside, Column, of_one_unit
from interp.figures.plots import COLOURS, layer_step
from interp.figures.strips import STRIPS, Strip, Values
from interp.figures.words import value_text

BLUE, ORANGE = COLOURS[:2]
CONTROL = "#8c959f"
_PALE = 0.35  # opacity of a bar whose interval includes 0
_INSIDE = "#fff"  # numbers in bars that are cut off
_LINES = (BLUE, COLOURS[2], COLOURS[3])
_HEIGHT, _GAP, _HEAD, _FOOT = 118, 30, 62, 44  # pixels
_LINE_OF_WORDS = 16
_WIDTH = 1000  # pixels, for which words and panels are laid out
MOST_COLUMNS = 3
_WORDS = {1: 40, 2: 23, 3: 21}  # columns: characters of a line on the left
_LETTER, _TICKS, _EDGE = 6.1, 52, 12  # pixels: of a character, of numbers at an axis, of the edge
_ABOVE = {2: (42, 3), 3: (27, 4)}  # columns: characters of a line above a panel, lines at most
_MANY = 48  # layers, above which no number fits into a bar
_FEW = 12  # layers, below which no bar is cut off
_LINE = 0.16  # of a panel's height: a line of words
_LARGE = 1.5  # times the tenth largest share of values; what is larger is cut off, and written


def draw_glance(columns: Sequence[Column], *, title: str, about: str) -> go.Figure:
    """Draw strips above each other over an axis of layers, one column beside the other.

    A strip has one unit and one scale in all columns. The second half of the layers is shaded. Only
    the first three columns are drawn.
    """
    columns = of_one_unit(columns[:MOST_COLUMNS])
    keys = [key for key in STRIPS if any(key in column.strips for column in columns)]
    n = len(keys)
    _, n_above = _ABOVE.get(len(columns), (0, 0))  # lines above a panel
    gap = _GAP + 8 * n_above
    inner = n * _HEIGHT + max(0, n - 1) * gap
    figure = make_subplots(
        rows=n,
        cols=len(columns),
        shared_xaxes=True,
        vertical_spacing=gap / inner,
        horizontal_spacing=0.06,
    )
    words = _EDGE + _LETTER * _WORDS[len(columns)] + _TICKS
    for row, key in enumerate(keys, 1):
        found = [column.strips.get(key) for column in columns]
        both = [(beside.strip, beside.untrained) for beside in found if beside is not None]
        ends = _ends([strip for pair in both for strip in pair if strip is not None])
        known = [i for i, beside in enumerate(found, 1) if beside is not None]
        for i, (column, beside) in enumerate(zip(columns, found, strict=True), 1):
            panel = _Panel(figure, row, i, i == known[0], i == known[-1])
            if beside is None:
                _leave_blank(panel)
            else:
                _draw(panel, beside, ends, n_layers=column.n_layers)
    for i, column in enumerate(columns, 1):
        _set_layers(figure, i, column.n_layers, n_columns=len(columns))
    _write(figure, columns, keys, words - _EDGE)
    lines = [about, *_bar_words(figure)]
    small = "".join(f"<br><span style='font-size:12px'>{escape(line)}</span>" for line in lines)
    head = _HEAD + _LINE_OF_WORDS * (len(lines) - 1)
    top = head + (_LINE_OF_WORDS * (1 + n_above) if n_above else 0)
    height = top + inner + _FOOT
    return figure.update_layout(
        title={"text": f"<b>{escape(title)}</b>{small}", "x": 0, "pad": {"l": _EDGE}},
        title_y=1 - 14 / height,
        title_yanchor="top",
        template="plotly_white",
        height=height,
        margin={"l": words, "r": 96, "t": top, "b": _FOOT},
        font={"size": 12},
        bargap=0.22,
        showlegend=False,
        hovermode="closest",
        meta={"width": _WIDTH, "head": head - 12, "about": " · ".join(lines)},
    )


def _bar_words(figure: go.Figure) -> list[str]:
    """Return a line on what the numbers in bars are, and pale bars; none where there are none."""
    is_cut = any(note.font.color == _INSIDE for note in figure.layout.annotations)
    bars = figure.select_traces({"type": "bar"})
    is_pale = any(_PALE in (trace.marker.opacity or ()) for trace in bars)
    words = ["number in a bar: its height, above the end of the axis"] if is_cut else []
    words += ["pale: the interval includes 0"] if is_pale else []
    return [" · ".join(words)] if words else []


@dataclass(frozen=True)
class _Panel:
    """Where a strip is drawn, from 1 on; a row's first names its rows, its last has its scale."""

    figure: go.Figure
    row: int
    column: int
    is_first: bool = False
    is_last: bool = False

    @property
    def at(self) -> dict[str, int]:
        return {"row": self.row, "col": self.column}

    @property
    def heights(self) -> tuple[float, float]:
        """Return where the panel begins and ends, as shares of the figure's height."""
        low, high = next(self.figure.select_yaxes(**self.at)).domain
        return float(low), float(high)


def _set_layers(figure: go.Figure, column: int, n_layers: int, *, n_columns: int) -> None:
    """Give a column its axis of layers, and shade the second half."""
    left, width = (column - 1) / n_columns, 1 / n_columns
    domain = [left + (0.03 if column > 1 else 0), left + width]
    step = layer_step(n_layers)
    axis = {"range": [-0.6, n_layers - 0.4], "showgrid": False, "zeroline": False}
    figure.update_xaxes(**axis, dtick=step, tick0=0, domain=domain, col=column)
    for axis_of_x in figure.select_xaxes(col=column):
        name = axis_of_x.plotly_name.replace("axis", "")
        half = {"x0": (n_layers - 1) / 2, "x1": n_layers - 0.4, "y0": 0, "y1": 1}
        how = {"fillcolor": CONTROL, "opacity": 0.09, "line_width": 0, "layer": "below"}
        where = {"xref": name, "yref": f"{name.replace('x', 'y')} domain"}
        figure.add_shape(type="rect", **half, **where, **how)
    last = [*figure.select_xaxes(col=column)][-1]
    last.title.text = "layer"


def _write(figure: go.Figure, columns: Sequence[Column], keys: Sequence[str], room: float) -> None:
    """Write titles and what is measured on the left, and the claims there or above each panel."""
    is_one = len(columns) == 1
    n_characters = _WORDS[len(columns)]
    for row, key in enumerate(keys, 1):
        found = [column.strips.get(key) for column in columns]
        first = next(beside for beside in found if beside is not None)
        lines = textwrap.wrap(first.strip.scale, n_characters)
        words = [_linked(f"<b>{escape(first.strip.title)}</b>", first.link if is_one else "")]
        words += [f"<i>{escape(line)}</i>" for line in lines]
        if is_one:
            words += [escape(line) for line in _wrapped(first.claim, n_characters, 5)]
        _, top = _Panel(figure, row, 1).heights
        left: dict[str, Any] = {"x": 0, "xanchor": "left", "y": top, "yanchor": "top"}
        _annotate(figure, "<br>".join(words), xshift=-room, **left)
        for i, beside in enumerate(found, 1):
            if is_one or beside is None:
                continue
            lines = _wrapped(beside.claim, *_ABOVE[len(columns)])
            text = _linked("<br>".join(map(escape, lines)), beside.link)
            x = next(figure.select_xaxes(row=row, col=i)).domain[0]
            above = {"x": x, "xanchor": "left", "y": top, "yanchor": "bottom"}
            _annotate(figure, text, size=10.5, **above)
    if not is_one:
        for i, column in enumerate(columns, 1):
            x = next(figure.select_xaxes(row=1, col=i)).domain[0]
            shift = 14 * _ABOVE[len(columns)][1] + 4
            above = {"x": x, "xanchor": "left", "y": 1, "yanchor": "bottom", "yshift": shift}
            _annotate(figure, f"<b>{escape(column.name)}</b>", **above)


def _wrapped(text: str, n_characters: int, most: int) -> list[str]:
    return textwrap.wrap(text, n_characters, max_lines=most, placeholder=" …")


def _linked(text: str, link: str) -> str:
    return f'<a href="{escape(link)}" target="_self">{text}</a>' if link else text


def _annotate(figure: go.Figure, text: str, *, size: float = 12, **where: Any) -> None:
    figure.add_annotation(
        text=text,
        xref="paper",
        yref="paper",
        align="left",
        showarrow=False,
        font={"size": size},
        **where,
    )


def _ends(strips: Sequence[Strip]) -> tuple[float, float]:
    """Return where the axis, or the colours, of strips that are compared begin and end.

    Few large bars do not crush the others: they are cut off.
    """
    if (grids := [strip.grid for strip in strips if strip.grid is not None]) != []:
        top = strips[0].top or max(float(np.nanmax(np.abs(grid))) for grid in grids) or 1.0
        return (-top if any((grid < 0).any() for grid in grids) else 0.0), top
    bars = [strip.bars for strip in strips if strip.bars is not None]
    ends = [max((_end(sign * values) for values in bars), default=0.0) for sign in (-1, 1)]
    least = 0.06 * max(ends) or 1.0
    return -max(ends[0], least if ends[0] else 0.0), max(ends[1], least)


def _end(bars: Values) -> float:
    """Return where the axis of bars above 0 ends."""
    sizes = np.sort(bars[bars > 0])
    if not len(sizes):
        return 0.0
    usual = _LARGE * sizes[int(0.9 * (len(sizes) - 1))] if len(bars) >= _FEW else sizes[-1]
    return float(1.08 * (sizes[-1] if sizes[-1] <= usual else usual))


def _leave_blank(panel: _Panel) -> None:
    """Say that a column lacks the strip, instead of axes of its own."""
    panel.figure.add_scatter(x=[None], y=[None], hoverinfo="skip", **panel.at)
    panel.figure.update_yaxes(range=[0, 1], showticklabels=False, showgrid=False, **panel.at)
    panel.figure.update_yaxes(zeroline=False, **panel.at)
    middle = {"x": 0.5, "xref": "x domain", "y": 0.5, "showarrow": False}
    panel.figure.add_annotation(text="not measured", font={"color": CONTROL}, **middle, **panel.at)


def _draw(panel: _Panel, beside: Beside, ends: tuple[float, float], *, n_layers: int) -> None:
    if beside.strip.grid is not None:
        _draw_grid(panel, beside.strip, ends)
    elif beside.strip.bars is not None:
        _draw_bars(panel, beside, ends, is_narrow=n_layers > _MANY)
    else:
        _draw_lines(panel, beside)
    panel.figure.update_yaxes(showticklabels=panel.is_first, **panel.at)  # all have one scale


def _draw_lines(panel: _Panel, beside: Beside) -> None:
    lines = beside.strip.lines.items()  # not in orange, which is what is below 0
    drawn = [(name, line, _LINES[i]) for i, (name, line) in enumerate(lines)]
    twin = {} if beside.untrained is None else beside.untrained.lines
    drawn += [(f"{name}, untrained", line, CONTROL) for name, line in twin.items()]
    placed: list[float] = []
    for name, values, colour in drawn:
        is_known = ~np.isnan(values)
        layers = np.arange(len(values))[is_known]
        is_twin = colour == CONTROL
        panel.figure.add_scatter(
            x=layers,
            y=values[is_known].astype(np.float32),
            mode="lines" if is_known.all() else "lines+markers",
            line={
                "color": colour,
                "width": 1.5 if is_twin else 2,
                "dash": "dot" if is_twin else "solid",
            },
            hovertemplate=f"layer %{{x}}<br>{name} %{{y:.0%}}<extra></extra>",
            **panel.at,
        )
        if panel.is_last and not is_twin:
            panel.figure.add_annotation(
                text=name,
                x=layers[-1],
                y=_apart(float(values[is_known][-1]), placed),
                xanchor="left",
                xshift=4,
                showarrow=False,
                font={"color": colour, "size": 11},
                **panel.at,
            )
    panel.figure.update_yaxes(range=[0, 1.02], tickvals=[0, 0.5, 1], tickformat=".0%", **panel.at)


def _apart(height: float, placed: list[float]) -> float:
    """Return a height for a name, a line below those that are placed there already; keep it."""
    while any(abs(height - other) < _LINE for other in placed):
        height -= _LINE
    placed.append(height)
    return height


def _draw_bars(
    panel: _Panel, beside: Beside, ends: tuple[float, float], *, is_narrow: bool
) -> None:
    strip, (low, high) = beside.strip, ends
    assert strip.bars is not None
    is_cut = (strip.bars > high) | (strip.bars < low)
    inside = [
        value_text(float(v)) if cut else "" for v, cut in zip(strip.bars, is_cut, strict=True)
    ]
    panel.figure.add_bar(
        x=np.arange(len(strip.bars)),
        y=strip.bars.astype(np.float32),
        marker_color=[BLUE if value >= 0 else ORANGE for value in strip.bars],
        marker_opacity=np.where(strip.may_be_0, _PALE, 1.0).tolist(),
        hovertemplate=f"layer %{{x}}<br>%{{y:.3g}} {strip.scale}<extra></extra>",
        error_y=_error_bars(strip, is_cut),
        **panel.at,
    )
    twin = None if beside.untrained is None else beside.untrained.bars
    if twin is not None:
        panel.figure.add_scatter(
            x=np.arange(len(twin)),
            y=twin.astype(np.float32),
            mode="lines",
            line={"color": CONTROL, "width": 2, "shape": "hvh"},
            hovertemplate="layer %{x}<br>untrained %{y:.3g}<extra></extra>",
            **panel.at,
        )
    panel.figure.update_yaxes(range=[low, high], nticks=4, zeroline=True, **panel.at)
    for layer, text in enumerate(inside):
        if text and not is_narrow:
            is_up = strip.bars[layer] > 0
            panel.figure.add_annotation(
                text=text,
                textangle=-90,
                x=layer,
                y=high if is_up else low,
                yanchor="top" if is_up else "bottom",
                showarrow=False,
                font={"size": 10 if len(strip.bars) <= _FEW else 8, "color": _INSIDE},
                **panel.at,
            )


def _error_bars(strip: Strip, is_cut: NDArray[np.bool_]) -> dict[str, object] | None:
    if strip.low is None or strip.high is None or strip.bars is None:
        return None
    above, below = strip.high - strip.bars, strip.bars - strip.low
    ends = {"array": np.where(is_cut, 0, above), "arrayminus": np.where(is_cut, 0, below)}
    return {"type": "data", "symmetric": False, "thickness": 1, "width": 0, "color": CONTROL} | ends


def _draw_grid(panel: _Panel, strip: Strip, ends: tuple[float, float]) -> None:
    assert strip.grid is not None
    low, high = panel.heights
    least, most = ends
    panel.figure.add_heatmap(
        z=strip.grid.astype(np.float32),
        zmin=least,
        zmax=most,
        colorscale="RdBu" if least < 0 else "Blues",
        hovertemplate=f"layer %{{x}}<br>%{{customdata}}<br>{strip.scale} %{{z:.2f}}<extra></extra>",
        customdata=np.repeat(np.array(strip.rows)[:, None], strip.grid.shape[1], axis=1),
        showscale=panel.is_last,
        colorbar={
            "len": high - low,
            "y": (low + high) / 2,
            "x": 1.005,
            "thickness": 9,
            "tickvals": sorted({least, 0.0, most}),
            "tickformat": ".0%",
            "tickfont": {"size": 10},
        },
        **panel.at,
    )
    names = [name.removeprefix("head ") for name in strip.rows]
    step = 1 if len(names) <= 3 else max(1, len(names) // 4)
    panel.figure.update_yaxes(
        tickvals=[*range(0, len(names) - 1, step), len(names) - 1],
        ticktext=[*names[: len(names) - 1 : step], names[-1]],
        showgrid=False,
        **panel.at,
    )
