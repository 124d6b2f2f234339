"""Figures for papers: the panels of a figure at a column's width, without a title, legible in grey.

A figure is a Plotly figure as a dictionary. Its rows of panels are kept; a row that is too wide for
the column is broken into several. Lengths are millimetres until they become shares of the figure.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import chain, groupby
from typing import Any

import numpy as np

from interp.errors import FigureError
from interp.figures.grey import signs_in, tell_apart, thin
from interp.figures.narrow import WIDTH
from interp.figures.pixel_axes import names_along
from interp.figures.raster import numbers_of
from interp.figures.wrapping import length_of, lines_that_fit, words_in_room

Figure = dict[str, Any]
Trace = dict[str, Any]
PIXELS = 96 / 25.4  # per millimetre
FAMILY = "Figure Sans, Arial, Helvetica, sans-serif"
_WORDS, _TICKS = 10.0, 9.0  # pixels: 7.5 and 6.8 points
_LINE = 3.3
_LEFT, _RIGHT, _GAP, _BELOW, _ABOVE = 10.5, 2.5, 7.5, 9.0, 1.5
_BAR = 13.0  # right of panels that have a scale of colours, with one line of words
_ENTRY = 11.0  # of a legend's entry, beside its name
_MOST = ((120.0, 2), (math.inf, 4))  # up to this width, so many panels side by side
_HIGH = {"grid": 0.9, "lines": 0.72}  # of a panel's width
_LOWEST, _HIGHEST = 24.0, 62.0
_EVERY = 5.5  # between two ticks, at least
_GREY = "#444444"
_READABLE = 0.6  # of its own size, to which a figure that is laid out may be made smaller


@dataclass
class _Panel:
    """Traces on one pair of axes; `x` and `y` are the axes' names in a layout."""

    x: str
    y: str
    traces: list[Trace]
    title: str = ""
    sides: tuple[float, float, float, float] = field(default=(0, 0, 0, 0))  # left right top bottom

    @property
    def is_grid(self) -> bool:
        return any(trace["type"] == "heatmap" for trace in self.traces)

    @property
    def size(self) -> tuple[float, float]:
        left, right, top, bottom = self.sides
        return right - left, bottom - top

    @property
    def scale(self) -> Trace | None:
        """Return the trace whose scale of colours is shown."""
        grids = (trace for trace in self.traces if trace["type"] == "heatmap")
        return next((trace for trace in grids if trace.get("showscale", True)), None)


def for_paper(figure: Mapping[str, Any], *, width: float) -> Figure:
    """Return a figure as wide as `width` millimetres; its layout says how many pixels that is.

    `layout.meta` may have a "note", which is written below. Where it says for how many pixels the
    figure is laid out ("width"), and how many of them the title takes ("head"), the figure is only
    made smaller. Raises FigureError where that would be too small to read, or nothing is drawn.
    """
    if not figure["data"]:
        raise FigureError("the figure has nothing to draw")
    meta = figure["layout"].get("meta") or {}
    if "width" in meta:
        return _as_it_is(figure, meta["width"], meta["head"], width=width)
    data = [dict(trace) for trace in deepcopy(list(figure["data"]))]
    layout = deepcopy(dict(figure["layout"]))
    rows = [*_rows(data, layout)]
    height = _place(rows, layout, width=width)
    note = _wrapped(meta.get("note", ""), width)
    legend = _legend_height(data, width=width) + _LINE * len(note)
    for panels in rows:
        for panel in panels:
            _set_axes(panel, layout, width=width, height=height + legend)
            data += signs_in(panel.traces, *panel.size)
        _set_scale(panels, width=width, height=height + legend)
    _write_titles(rows, layout, width=width, height=height + legend)
    if note:
        layout["annotations"].append(_below(note))
    for trace in data:
        thin(trace)
    for shape in layout.get("shapes", ()):
        line = shape.get("line") or {}
        shape["line"] = line | {"width": 0.4 * line.get("width", 2)}
    tell_apart(data)
    common = _common(width=width, height=height + legend)
    common["legend"]["y"] = _LINE * len(note) / (height + legend)
    return {"data": data, "layout": layout | common}


def _as_it_is(figure: Mapping[str, Any], pixels: int, head: int, *, width: float) -> Figure:
    """Return a figure that is laid out already, without its title."""
    least = math.ceil(_READABLE * pixels / PIXELS)
    if width < least:
        raise FigureError(f"a width of {width:g} mm given; this figure needs at least {least} mm")
    layout = deepcopy(dict(figure["layout"]))
    margin = layout["margin"] | {"t": layout["margin"]["t"] - head}
    font = layout.get("font", {}) | {"family": FAMILY, "color": "black"}
    size = {"width": pixels, "height": layout["height"] - head}
    return {
        "data": list(figure["data"]),
        "layout": layout | size | {"title": None, "margin": margin, "font": font},
    }


def _below(lines: Sequence[str]) -> dict[str, Any]:
    """Return lines of words along the bottom of a figure."""
    left = {"x": 0, "xref": "paper", "xanchor": "left", "align": "left"}
    bottom = {"y": 0, "yref": "paper", "yanchor": "bottom", "showarrow": False}
    return {"text": "<br>".join(lines), **left, **bottom, "font": {"size": _TICKS}}


def _common(*, width: float, height: float) -> dict[str, Any]:
    """Return what all figures have: size, no title, no margins, a legend at the bottom."""
    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"}
    return {
        "title": None,
        "template": None,
        "width": round(width * PIXELS),
        "height": round(height * PIXELS),
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0, "pad": 0, "autoexpand": False},
        "font": {"family": FAMILY, "size": _WORDS, "color": "black"},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "legend": legend
        | {"x": 0.5, "xanchor": "center", "font": {"size": _TICKS}}
        | {"tracegroupgap": 0, "bgcolor": "rgba(0,0,0,0)"},
        "bargap": 0.25,
    }


# Panels and their places


def _rows(data: Sequence[Trace], layout: Mapping[str, Any]) -> Iterator[list[_Panel]]:
    """Yield rows of panels as they stand in a figure, the highest first; alike ones are joined."""
    on_axes: dict[tuple[str, str], list[Trace]] = {}
    for trace in data:
        x, y = (trace.get(f"{of}axis", of).replace(of, f"{of}axis") for of in ("x", "y"))
        on_axes.setdefault((x, y), []).append(trace)
    panels = [_Panel(*axes, traces) for axes, traces in on_axes.items()]
    ends = {panel.y: (layout.get(panel.y, {}).get("domain") or [0, 1])[1] for panel in panels}
    starts = {panel.x: (layout.get(panel.x, {}).get("domain") or [0, 1])[0] for panel in panels}
    for panel in panels:
        panel.title = _title_of(panel, layout)
    ordered = sorted(panels, key=lambda panel: (-round(ends[panel.y], 2), starts[panel.x]))
    rows = [[*row] for _, row in groupby(ordered, key=lambda panel: round(ends[panel.y], 2))]
    for size, alike in groupby(rows, key=lambda row: _size_of_lines(row, layout)):
        several = [*alike]
        yield from [[*chain(*several)]] if size else several


def _size_of_lines(row: Sequence[_Panel], layout: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the size of a row's panels as shares of the figure; nothing where they are grids."""
    if any(panel.is_grid for panel in row):
        return ()
    axes = (layout.get(axis, {}).get("domain") or (0, 1) for axis in (row[0].x, row[0].y))
    return tuple(round(float(high - low), 2) for low, high in axes)


def _title_of(panel: _Panel, layout: Mapping[str, Any]) -> str:
    """Return the words above a panel."""
    left, right = layout.get(panel.x, {}).get("domain") or (0, 1)
    _, top = layout.get(panel.y, {}).get("domain") or (0, 1)
    for note in layout.get("annotations", ()):
        if note.get("xref") == note.get("yref") == "paper":
            is_above = abs(note["x"] - (left + right) / 2) < 0.02 and abs(note["y"] - top) < 0.02
            if is_above:
                return str(note.get("text", ""))
    return ""


def _place(rows: Sequence[list[_Panel]], layout: Mapping[str, Any], *, width: float) -> float:
    """Give every panel its sides in millimetres; return the height of all."""
    most = next(n for up_to, n in _MOST if width <= up_to)
    at = 0.0
    for panels in rows:
        n_lines = math.ceil(len(panels) / most)
        n = math.ceil(len(panels) / n_lines)
        first, scale = panels[0], _scale_of(panels)
        wide = (width - _LEFT - (_BAR if scale else _RIGHT) - (n - 1) * _GAP) / n
        high = _height(first, layout, wide=wide, n=n, width=width)
        left = _LEFT + _LINE * (len(_beside(first, layout, high)) > 1)
        n_words = len(_beside_scale(scale, n_lines * (high + _BELOW) - _BELOW))
        right = _BAR + _LINE * max(0, n_words - 1) if scale else _RIGHT
        wide = (width - left - right - (n - 1) * _GAP) / n
        for start in range(0, len(panels), n):
            line = panels[start : start + n]
            at += _ABOVE + _LINE * max(len(_title_lines(panel, wide)) for panel in line)
            for i, panel in enumerate(line):
                x = left + i * (wide + _GAP)
                panel.sides = (x, x + wide, at, at + high)
                if i == 0 and panel is not first:
                    _show_words(panel, first, layout)
            n_words = max(_wrap_words(panel, layout, wide) for panel in line)
            at += high + _BELOW + _LINE * (n_words - 1)
    return at


def _height(
    panel: _Panel, layout: Mapping[str, Any], *, wide: float, n: int, width: float
) -> float:
    """Return the height of a line of `n` panels; one alone is as tall as its figure makes it."""
    share = _HIGH["grid" if panel.is_grid else "lines"]
    if n == 1:
        share = 0.3 if width > _MOST[0][0] else 0.55
        bottom, top = layout.get(panel.y, {}).get("domain") or (0, 1)
        share = max(share, (top - bottom) * layout.get("height", 0) / WIDTH)
    return min(_HIGHEST, max(_LOWEST, share * wide))


def _wrap_words(panel: _Panel, layout: Mapping[str, Any], wide: float) -> int:
    """Put words along a panel's x axis in lines, if they have room; return how many."""
    axis = layout.get(panel.x, {})
    names = names_along([_along(trace, "x") for trace in panel.traces])
    lines = words_in_room(names, wide * PIXELS, size=_TICKS)
    if not lines or axis.get("tickvals") is not None:
        return 1
    axis |= {"tickvals": [*range(len(names))], "ticktext": ["<br>".join(each) for each in lines]}
    return max(map(len, lines))


def _scale_of(panels: Sequence[_Panel]) -> Trace | None:
    return next((panel.scale for panel in panels if panel.scale), None)


def _beside_scale(scale: Trace | None, high: float) -> list[str]:
    """Return the lines of words beside a scale of colours."""
    title = (scale or {}).get("colorbar", {}).get("title") or {}
    return _wrapped(title.get("text") or "", high, most=3)


def _show_words(panel: _Panel, first: _Panel, layout: Mapping[str, Any]) -> None:
    """Give a panel that begins a line the words of the row's first panel beside its y axis."""
    axis, known = layout[panel.y], layout[first.y]
    axis["showticklabels"] = True
    if not (axis.get("title") or {}).get("text"):
        axis["title"] = deepcopy(known.get("title"))


def _beside(panel: _Panel, layout: Mapping[str, Any], high: float) -> list[str]:
    """Return the lines of words beside a panel's y axis."""
    title = layout.get(panel.y, {}).get("title") or {}
    text = title.get("text") or "" if isinstance(title, dict) else title
    return _wrapped(text, high, most=2)


def _title_lines(panel: _Panel, wide: float) -> list[str]:
    return _wrapped(panel.title, wide + _GAP / 2)


def _wrapped(text: str, wide: float, *, most: int | None = None) -> list[str]:
    return lines_that_fit(text, wide * PIXELS, size=_WORDS, most=most)


def _legend_height(data: Sequence[Trace], *, width: float) -> float:
    """Return the height of a legend below all panels; 0 if there is none."""
    names = [str(trace["name"]) for trace in _in_legend(data)]
    if len(names) < 2:
        for trace in data:
            trace["showlegend"] = False
        return 0.0
    lines, used = 1, 0.0
    for entry in (length_of(name, size=_TICKS) / PIXELS + _ENTRY for name in names):
        lines, used = (lines, used + entry) if used + entry <= width else (lines + 1, entry)
    return 2.0 + 5.2 * lines


def _in_legend(data: Sequence[Trace]) -> list[Trace]:
    drawn = (trace for trace in data if trace["type"] != "heatmap" and trace.get("name"))
    return [trace for trace in drawn if trace.get("showlegend", True)]


# Axes, scales and titles


def _set_axes(panel: _Panel, layout: dict[str, Any], *, width: float, height: float) -> None:
    left, right, top, bottom = panel.sides
    across, upward = (left / width, right / width), (1 - bottom / height, 1 - top / height)
    beside = _beside(panel, layout, bottom - top)
    for name, (low, high) in {panel.x: across, panel.y: upward}.items():
        axis = layout.setdefault(name, {})
        below = (axis.get("title") or {}).get("text") or ""
        words = "<br>".join(beside) if name == panel.y else below
        axis |= {"domain": [max(0.0, low), min(1.0, high)], "automargin": False}
        axis |= {"showline": True, "linecolor": _GREY, "linewidth": 0.6, "zeroline": False}
        axis |= {"ticks": "outside", "ticklen": 2.5, "tickwidth": 0.6, "tickcolor": _GREY}
        axis |= {"gridcolor": "#e4e4e4", "gridwidth": 0.5, "tickfont": {"size": _TICKS}}
        axis["title"] = {"text": words, "standoff": 3, "font": {"size": _WORDS}}
        if panel.is_grid:
            axis["showgrid"] = False
    _thin_ticks(layout[panel.x], [_along(trace, "x") for trace in panel.traces], right - left)
    if panel.is_grid:
        _thin_ticks(layout[panel.y], [_along(t, "y") for t in panel.traces], 1.4 * (bottom - top))


def _thin_ticks(axis: dict[str, Any], columns: Sequence[Any], length: float) -> None:
    """Keep an axis's ticks so far apart that their words do not meet."""
    axis["tickangle"] = 0
    if axis.get("type") == "log" or axis.get("tickvals") is not None:
        return
    try:
        values = np.concatenate([numbers_of(column) for column in columns])
    except ValueError:  # words
        axis["nticks"] = max(2, int(length / 9))
        return
    step = axis.get("dtick")
    if isinstance(step, int | float) and np.isfinite(values).any():
        n_ticks = (np.nanmax(values) - np.nanmin(values)) / step
        axis["dtick"] = step * max(1, math.ceil(n_ticks * _EVERY / length))
    else:
        axis["nticks"] = max(2, int(length / 8))


def _along(trace: Trace, of: str) -> Any:
    """Return a trace's values along an axis, also where they are only counted."""
    if trace.get(of) is not None or trace["type"] != "heatmap":
        return trace[of] if trace.get(of) is not None else []
    return np.arange(numbers_of(trace["z"]).shape[1 if of == "x" else 0])


def _set_scale(panels: Sequence[_Panel], *, width: float, height: float) -> None:
    """Put the scale of a row's colours right of all its lines."""
    scale = _scale_of(panels)
    if scale is None:
        return
    right = max(panel.sides[1] for panel in panels)
    top, bottom = panels[0].sides[2], panels[-1].sides[3]
    bar = scale.get("colorbar", {})
    lines = _beside_scale(scale, bottom - top)
    scale["colorbar"] = {
        key: bar[key] for key in ("tickformat", "tickvals", "ticktext") if key in bar
    } | {
        "x": (right + 1.2) / width,
        "xanchor": "left",
        "y": 1 - (top + bottom) / 2 / height,
        "len": (bottom - top) / height,
        "lenmode": "fraction",
        "thickness": 6,
        "xpad": 0,
        "ypad": 0,
        "outlinewidth": 0.4,
        "ticklen": 2,
        "tickfont": {"size": _TICKS},
        "nticks": max(3, int((bottom - top) / 9)),
        "title": {"text": "<br>".join(lines), "side": "right", "font": {"size": _TICKS}},
    }


def _write_titles(
    rows: Sequence[list[_Panel]], layout: dict[str, Any], *, width: float, height: float
) -> None:
    """Write panels' titles; keep notes that belong to data, and drop all others."""
    notes = [note for note in layout.get("annotations", ()) if note.get("xref") != "paper"]
    for note in notes:
        note["font"] = {**(note.get("font") or {}), "size": _TICKS}
    for panel in (panel for panels in rows for panel in panels if panel.title):
        left, right, top, _ = panel.sides
        notes.append(
            {
                "text": "<br>".join(_title_lines(panel, right - left)),
                "x": (left + right) / 2 / width,
                "y": 1 - (top - 0.4) / height,
                "xref": "paper",
                "yref": "paper",
                "xanchor": "center",
                "yanchor": "bottom",
                "showarrow": False,
                "font": {"size": _WORDS},
            }
        )
    layout["annotations"] = notes
