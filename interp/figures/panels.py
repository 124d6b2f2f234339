"""A panel of a still picture: its title, frame and ticks, what stands in it, and its colours."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from html import escape, unescape
from typing import Any

import numpy as np

from interp.figures.marks import DRAWN, Marks
from interp.figures.pixel_axes import CHARACTER, PixelAxis, axis_of, ticks_between
from interp.figures.raster import Trace, numbers_of, png_of, range_of, with_colours
from interp.figures.wrapping import lines_that_fit

Figure = Mapping[str, Any]
_TITLE, _LINE = 13.0, 16.0  # pixels, of a panel's title and its lines
_BAR = 12.0  # pixels, the width of a scale of colours
_NEAR = 0.05  # of the figure's size: how far a panel's title may be from it


@dataclass(frozen=True)
class Panel:
    """Traces on common axes, and what the figure says of them.

    `x` and `y` are the layouts of the axes, `names` their names in traces ("x2", "y2").
    """

    traces: list[Trace]
    x: Mapping[str, Any]
    y: Mapping[str, Any]
    names: tuple[str, str]
    title: str = ""
    notes: list[Mapping[str, Any]] = field(default_factory=list)
    shapes: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def corner(self) -> tuple[float, float]:
        """Return how far the panel is from the top and from the left, as shares."""
        left, _ = self.x.get("domain", (0.0, 1.0))
        _, top = self.y.get("domain", (0.0, 1.0))
        return round(1.0 - top, 2), float(left)

    def beside(self, first: "Panel") -> "Panel":
        """Return this panel with the vertical axis's name, which only a row's first panel has."""
        title = self.y.get("title") or first.y.get("title")
        return replace(self, y={**self.y, "title": title})

    def title_lines(self, width: float) -> list[str]:
        """Return the title in lines that fit."""
        return lines_that_fit(self.title, width, size=_TITLE)

    def left(self, height: float) -> float:
        """Return the room for what stands on the left."""
        ticks = axis_of(self.traces, "y", self.y, height).ticks
        longest = max((len(text) for _, text in ticks), default=0)
        return 12.0 + CHARACTER * longest + (20.0 if text_of(self.y) else 0.0)

    def scale(self, *, is_last: bool) -> Trace | None:
        """Return the heatmap whose colours are explained beside this panel."""
        maps = [trace for trace in self.traces if trace["type"] == "heatmap"]
        return next((each for each in maps if is_last or each.get("showscale", True)), None)

    def draw(self, width: float, height: float, *, scale: Trace | None) -> Iterator[str]:
        """Yield SVG elements; the upper left corner of the frame is at 0, 0."""
        x, y = axis_of(self.traces, "x", self.x, width), axis_of(self.traces, "y", self.y, height)
        for i, line in enumerate(reversed(self.title_lines(width))):
            yield text_at(0.0, -8.0 - i * _LINE, line, size=_TITLE)
        yield from _grid(x, y)
        yield f'<svg width="{width:.1f}" height="{height:.1f}">'
        yield from Marks(self.traces, x, y).draw()
        yield from self._shapes(x, y)
        yield "</svg>"
        yield from self._notes(x, y)
        frame = 'fill="none" stroke="currentColor" stroke-opacity="0.3"'
        yield f'<rect width="{width:.1f}" height="{height:.1f}" {frame}/>'
        yield text_at(width / 2, height + 32, text_of(self.x), anchor="middle")
        yield turned_at(12.0 - self.left(height), height / 2, text_of(self.y))
        if scale is not None:
            yield from _colours(scale, width + 10, height)

    def _shapes(self, x: PixelAxis, y: PixelAxis) -> Iterator[str]:
        """Yield the lines that the figure has beside its traces."""
        for shape in self.shapes:
            x0, x1 = (_along(x, shape[end], str(shape.get("xref"))) for end in ("x0", "x1"))
            y0, y1 = (_along(y, shape[end], str(shape.get("yref"))) for end in ("y0", "y1"))
            line = shape.get("line", {})
            dash = ' stroke-dasharray="2 4"' if line.get("dash") else ""
            colour = escape(str(line.get("color") or "currentColor"))
            if np.isfinite([x0, x1, y0, y1]).all():
                yield f'<path d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}" stroke="{colour}"{dash}/>'

    def _notes(self, x: PixelAxis, y: PixelAxis) -> Iterator[str]:
        for note in self.notes:
            left, top = _along(x, note.get("x")), _along(y, note.get("y"))
            colour = escape(str(note.get("font", {}).get("color") or "currentColor"))
            anchor = {"left": "start", "right": "end"}.get(str(note.get("xanchor")), "middle")
            left += float(note.get("xshift") or 0)
            top += 14.0 if note.get("yanchor") == "top" else 4.0
            if np.isfinite(left + top):
                yield text_at(left, top, plain(note.get("text")), anchor=anchor, colour=colour)


def panels_of(figure: Figure) -> Iterator[Panel]:
    """Yield the panels of a figure that have anything to draw, from the top left on."""
    layout, on_axes = figure["layout"], dict[tuple[str, str], list[Trace]]()
    for given in figure["data"]:
        trace = _complete(with_colours(dict(given), layout))
        if trace.get("visible", True) is True and _has_numbers(trace):
            on_axes.setdefault((trace.get("xaxis", "x"), trace.get("yaxis", "y")), []).append(trace)
    panels = [_panel(layout, names, traces) for names, traces in on_axes.items()]
    yield from sorted(panels, key=lambda panel: panel.corner)


def _panel(layout: Mapping[str, Any], names: tuple[str, str], traces: list[Trace]) -> Panel:
    x, y = (layout.get(f"{name[0]}axis{name[1:]}", {}) for name in names)
    notes, shapes = layout.get("annotations", []), layout.get("shapes", [])
    return Panel(
        traces,
        x,
        y,
        names,
        _title(x, y, notes),
        [note for note in notes if _refs(note) == names],
        [
            shape
            for shape in shapes
            if _refs(shape, " domain") == names and shape.get("type") == "line"
        ],
    )


def _refs(item: Mapping[str, Any], suffix: str = "") -> tuple[str, str]:
    x, y = (str(item.get(f"{of}ref", of)).removesuffix(suffix) for of in "xy")
    return x, y


def _title(x: Mapping[str, Any], y: Mapping[str, Any], notes: list[Mapping[str, Any]]) -> str:
    """Return the text that the figure puts in the middle above a panel."""
    (left, right), (_, top) = (axis.get("domain", (0.0, 1.0)) for axis in (x, y))
    for note in notes:
        if note.get("xref") == note.get("yref") == "paper":
            is_above = abs(note.get("y", 9.0) - top) < _NEAR
            if is_above and abs(note.get("x", 9.0) - (left + right) / 2) < _NEAR:
                return plain(note.get("text"))
    return ""


def _complete(trace: Trace) -> Trace:
    """Give a trace the coordinates that Plotly assumes where there are none: 0, 1, …"""
    values = trace.get("z") if trace.get("type") == "heatmap" else trace.get("y")
    if trace.get("type") in DRAWN and values is not None:
        of = {"x": 1, "y": 0} if trace["type"] == "heatmap" else {"x": 0}
        shape = np.shape(numbers_of(values) if isinstance(values, dict) else values)
        for name, axis in of.items():
            if trace.get(name) is None:
                is_box = trace["type"] == "box"
                trace[name] = np.zeros(shape[0]) if is_box else np.arange(shape[axis])
    return trace


def _has_numbers(trace: Trace) -> bool:
    """Tell whether a trace has anything to draw."""
    values = trace.get("z") if trace.get("type") == "heatmap" else trace.get("y")
    if trace.get("type") not in DRAWN or values is None:
        return False
    try:
        return bool(np.isfinite(numbers_of(values)).any())
    except ValueError:
        return trace["type"] == "scatter" and len(values) > 0


def _along(axis: PixelAxis, value: Any, ref: str = "") -> float:
    """Return where a value stands along an axis, or a share of its length; NaN if it is not on it.

    Words stand where they do for traces; numbers are Plotly's for notes, powers on an axis of logs.
    """
    if value in axis.names:
        value = axis.names.index(value)
    if not isinstance(value, int | float):
        return float("nan")
    if ref.endswith(" domain"):
        return axis.length * float(1 - value if axis.is_upward else value)
    return axis.place(float(value))


def _grid(x: PixelAxis, y: PixelAxis) -> Iterator[str]:
    """Yield ticks, and thin lines where they are."""
    lines = []
    for number, text in x.ticks:
        at = x.place(number)
        lines.append(f"M{at:.1f} 0V{y.length:.1f}")
        yield text_at(at, y.length + 15, text, anchor="middle")
    for number, text in y.ticks:
        at = y.place(number)
        lines.append(f"M0 {at:.1f}H{x.length:.1f}")
        yield text_at(-6.0, at + 4, text, anchor="end")
    yield f'<path d="{"".join(lines)}" stroke="currentColor" stroke-opacity="0.12"/>'


def scale_room(trace: Trace) -> float:
    """Return the room that a scale of colours needs beside its panel."""
    longest = max(len(text) for _, text in _scale_ticks(trace))
    return 22.0 + _BAR + CHARACTER * longest + (20.0 if text_of(trace.get("colorbar", {})) else 0)


def _scale_ticks(trace: Trace) -> list[tuple[float, str]]:
    bar, (low, high) = trace.get("colorbar", {}), range_of(trace, numbers_of(trace["z"]))
    if bar.get("tickvals") is not None:
        places = numbers_of(bar["tickvals"]).tolist()
        return [*zip(places, map(str, bar.get("ticktext") or places), strict=True)]
    return ticks_between(low, high, most=5, spec=str(bar.get("tickformat") or "")) or [(low, "")]


def _colours(trace: Trace, left: float, height: float) -> Iterator[str]:
    """Yield the scale of a heatmap's colours, the largest value on top."""
    low, high = range_of(trace, numbers_of(trace["z"]))
    picture = png_of(trace, np.linspace(high, low, 64)[:, None])
    yield (
        f'<image href="{picture}" x="{left:.1f}" width="{_BAR:g}" height="{height:.1f}"'
        ' preserveAspectRatio="none"/>'
    )
    axis = PixelAxis((), low, high, height, is_upward=True)
    ticks, right = _scale_ticks(trace), left + _BAR + 5
    for number, text in ticks:
        yield text_at(right, axis.place(number) + 4, text)
    longest = max(len(text) for _, text in ticks)
    title = text_of(trace.get("colorbar", {}))
    yield turned_at(right + CHARACTER * longest + 16, height / 2, title)


def text_of(layout: Mapping[str, Any]) -> str:
    """Return the title of an axis, a scale or a figure; "" where there is none."""
    title = layout.get("title") or ""
    return plain(title if isinstance(title, str) else title.get("text"))


def plain(text: Any) -> str:
    """Return a text of a figure without its markup."""
    return unescape(re.sub(r"<[a-zA-Z/][^>]*>", " ", str(text or ""))).strip()


def text_at(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "",
    colour: str = "currentColor",
    size: float = 0.0,
) -> str:
    """Return a line of text whose baseline is at `y`; nothing for no text."""
    if not text:
        return ""
    end = f' text-anchor="{anchor}"' if anchor else ""
    tall = f' font-size="{size:g}"' if size else ""
    return f'<text x="{x:.0f}" y="{y:.0f}"{end}{tall} fill="{colour}">{escape(text)}</text>'


def turned_at(x: float, y: float, text: str) -> str:
    """Return a line of text that runs upwards, with its middle at `y`."""
    turned = f'<g transform="translate({x:.0f},{y:.0f}) rotate(-90)">'
    return f"{turned}{text_at(0.0, 0.0, text, anchor='middle')}</g>" if text else ""
