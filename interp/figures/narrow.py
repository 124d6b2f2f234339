"""Figures that fit a page of 760 pixels and wider ones: legends below, long words in lines."""

import math
from typing import Any

from interp.figures.pixel_axes import names_along
from interp.figures.wrapping import length_of, lines_that_fit, words_in_room

Figure = dict[str, Any]
WIDTH = 760  # pixels
_HEIGHT = 420  # pixels, of a figure that does not say its own
_SEEN = 0.75  # of a figure's height, which its panels have
_BESIDE = 150.0  # pixels beside the panels: words of the y axis, a scale of colours
_LINE = 18  # pixels, about
_TITLE, _WORDS, _TICKS = 15.0, 13.0, 12.0  # pixels, of fonts
_BAR = 110.0  # pixels of the words above a scale of colours
_ENTRY = 60  # pixels of a legend's entry, beside its name
_NARROW = 160  # pixels of a panel, in which half as many ticks have room


def fitted(figure: Figure) -> Figure:
    """Make a figure, in place, fit the width of a page; return it."""
    layout = figure["layout"]
    for bar in (trace.get("colorbar") or {} for trace in figure["data"]):
        if isinstance(bar.get("title"), dict) and bar["title"].get("text"):
            tall = _SEEN * bar.get("len", 1) * layout.get("height", _HEIGHT)
            room = tall if bar["title"].get("side") == "right" else _BAR
            bar["title"]["text"] = _in_lines(bar["title"]["text"], room)
    margin = dict(layout.get("margin") or {}) | {"l": 60, "r": 20}
    margin["t"] = 22 + _LINE * (_title_lines(layout) + _panel_lines(layout))
    layout["margin"] = margin
    _wrap_words(figure)
    _put_legend_below(figure)
    return figure


def _in_lines(text: str, width: float, size: float = _WORDS) -> str:
    return "<br>".join(lines_that_fit(text, width, size=size))


def _title_lines(layout: dict[str, Any]) -> int:
    """Put the title in lines at the top left; return how many."""
    title = layout.get("title")
    if not isinstance(title, dict) or not title.get("text"):
        return 0
    text = _in_lines(title["text"], WIDTH - 20.0, _TITLE)
    n_more = text.count("<br>")
    title |= {"text": text, "font": {"size": _TITLE}, "x": 0.01, "y": 1}
    title |= {"yref": "container", "yanchor": "top", "pad": {"t": 12 + 8 * n_more}}
    return 1 + n_more


def _panel_lines(layout: dict[str, Any]) -> int:
    """Put the words of panels in lines as wide as the panel; return the most lines above one."""
    widths, most = dict[float, float](), 0
    for name, axis in layout.items():
        if name.startswith("xaxis"):
            low, high = axis.get("domain", (0, 1))
            width = widths[round((low + high) / 2, 3)] = (high - low) * (WIDTH - _BESIDE)
            if text := (axis.get("title") or {}).get("text"):
                axis["title"]["text"] = _in_lines(text, width)
            if width < _NARROW and axis.get("dtick") == 5:
                axis["dtick"] = 10
    for note in layout.get("annotations", ()):
        if note.get("xref") == note.get("yref") == "paper" and round(note["x"], 3) in widths:
            note["text"] = _in_lines(note["text"], widths[round(note["x"], 3)])
            note["font"] = {"size": _WORDS}
            most = max(most, 1 + note["text"].count("<br>"))
    return most


def _wrap_words(figure: Figure) -> None:
    """Put words along horizontal axes in lines, so that they need not be tilted."""
    for name, axis in figure["layout"].items():
        if name.startswith("xaxis") and axis.get("tickvals") is None:
            low, high = axis.get("domain", (0, 1))
            of = name.replace("axis", "")
            traces = (t for t in figure["data"] if t.get("xaxis", "x") == of and t.get("x"))
            names = names_along(trace["x"] for trace in traces)
            room = (high - low) * (WIDTH - _BESIDE)
            if lines := words_in_room(names, room, size=_TICKS):
                axis["tickvals"] = [*range(len(names))]
                axis["ticktext"] = ["<br>".join(each) for each in lines]
                axis["tickangle"] = 0


def _put_legend_below(figure: Figure) -> None:
    """Put a legend of several names below the panels, and make the figure as much taller."""
    layout = figure["layout"]
    shown = (t for t in figure["data"] if t.get("showlegend", True) and t.get("name"))
    names = list(dict.fromkeys(trace["name"] for trace in shown))
    if layout.get("showlegend", True) and len(names) > 1:
        n_rows = math.ceil(sum(length_of(name, size=_TICKS) + _ENTRY for name in names) / WIDTH)
        room = 20 + n_rows * _LINE
        layout["legend"] = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"}
        layout["height"] = layout.get("height", _HEIGHT) + room
        layout["margin"]["b"] = layout["margin"].get("b", 50) + room
