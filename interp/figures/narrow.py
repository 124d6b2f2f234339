"""Figures that fit a page of 760 pixels and wider ones: legends below, long words in lines."""

import math
import textwrap
from typing import Any

Figure = dict[str, Any]
WIDTH = 760  # pixels
_BESIDE = 150  # pixels beside the panels: words of the y axis, a scale of colours
_LETTER, _LINE = 6.5, 18  # pixels, about
_NARROW = 160  # pixels of a panel, in which half as many ticks have room


def fitted(figure: Figure) -> Figure:
    """Make a figure, in place, fit the width of a page; return it."""
    layout = figure["layout"]
    for bar in (trace.get("colorbar") or {} for trace in figure["data"]):
        if isinstance(bar.get("title"), dict) and bar["title"].get("text"):
            bar["title"]["text"] = in_lines(bar["title"]["text"], 15)
    margin = dict(layout.get("margin") or {}) | {"l": 60, "r": 20}
    margin["t"] = 22 + _LINE * (_title_lines(layout) + _panel_lines(layout))
    layout["margin"] = margin
    _put_legend_below(figure)
    return figure


def in_lines(text: str, n_letters: int) -> str:
    """Break a text into lines of at most so many letters, between words."""
    parts = text.split("<br>")
    how: dict[str, Any] = {"width": max(n_letters, 1), "break_long_words": False}
    return "<br>".join(line for part in parts for line in textwrap.wrap(part, **how))


def _title_lines(layout: dict[str, Any]) -> int:
    """Put the title in lines at the top left; return how many."""
    title = layout.get("title")
    if not isinstance(title, dict) or not title.get("text"):
        return 0
    text = in_lines(title["text"], int(WIDTH / 8))
    n_more = text.count("<br>")
    title |= {"text": text, "font": {"size": 15}, "x": 0.01, "y": 1}
    title |= {"yref": "container", "yanchor": "top", "pad": {"t": 12 + 8 * n_more}}
    return 1 + n_more


def _panel_lines(layout: dict[str, Any]) -> int:
    """Put the words of panels in lines as wide as the panel; return the most lines above one."""
    letters, most = dict[float, int](), 0
    for name, axis in layout.items():
        if name.startswith("xaxis"):
            low, high = axis.get("domain", (0, 1))
            width = (high - low) * (WIDTH - _BESIDE)
            letters[round((low + high) / 2, 3)] = int(width / _LETTER)
            if text := (axis.get("title") or {}).get("text"):
                axis["title"]["text"] = in_lines(text, int(width / _LETTER))
            if width < _NARROW and axis.get("dtick") == 5:
                axis["dtick"] = 10
    for note in layout.get("annotations", ()):
        if note.get("xref") == note.get("yref") == "paper" and round(note["x"], 3) in letters:
            note["text"] = in_lines(note["text"], letters[round(note["x"], 3)])
            note["font"] = {"size": 13}
            most = max(most, 1 + note["text"].count("<br>"))
    return most


def _put_legend_below(figure: Figure) -> None:
    """Put a legend of several names below the panels, and make the figure as much taller."""
    layout = figure["layout"]
    shown = (t for t in figure["data"] if t.get("showlegend", True) and t.get("name"))
    names = list(dict.fromkeys(trace["name"] for trace in shown))
    if layout.get("showlegend", True) and len(names) > 1:
        n_rows = math.ceil(sum(len(name) * _LETTER + 60 for name in names) / WIDTH)
        room = 20 + n_rows * _LINE
        layout["legend"] = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"}
        layout["height"] = layout.get("height", 420) + room
        layout["margin"]["b"] = layout["margin"].get("b", 50) + room
