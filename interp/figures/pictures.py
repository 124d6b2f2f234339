"""Plotly figures as small still pictures for notebooks, without a browser: SVG, no scripts."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interp.figures.raster import Trace, numbers_of, png_of, range_of, with_colours

Figure = dict[str, Any]
Values = NDArray[np.float64]
_WIDTH, _HEIGHT = 220.0, 130.0  # of a panel, in pixels
_LEFT, _TOP, _RIGHT, _BELOW = 44.0, 18.0, 10.0, 34.0  # around it
_MOST_POINTS = 120
_MOST_PANELS = 4
_COLOUR = "#0072B2"  # of traces that name none
_DRAWN = ("heatmap", "scatter", "bar", "box")
_FEW = 20  # points, up to which Plotly marks each of a line that says nothing else


@dataclass(frozen=True)
class PixelAxis:
    """Where values stand along an axis of `length` pixels; words stand in order at 0, 1, …

    Values grow with the pixels, to the right or downwards; if `is_upward`, against them.
    """

    names: tuple[str, ...]
    low: float
    high: float
    length: float
    is_log: bool = False
    is_upward: bool = False

    def numbers(self, values: Any) -> Values:
        """Return values as numbers along the axis."""
        if self.names:
            return np.array([self.names.index(str(value)) for value in values], np.float64)
        numbers = numbers_of(values)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log10(numbers) if self.is_log else numbers

    def at(self, numbers: Values) -> Values:
        """Return where numbers along the axis stand, in pixels."""
        share = (numbers - self.low) / ((self.high - self.low) or 1.0)
        return self.length * (1 - share if self.is_upward else share)

    @property
    def ends(self) -> tuple[str, str]:
        """Return what stands at the low and at the high end."""
        if self.names:
            return self.names[0], self.names[-1]
        ends = (10**end if self.is_log else end for end in (self.low, self.high))
        low, high = (f"{end:.3g}" for end in ends)
        return low, high


@dataclass(frozen=True)
class Panel:
    """Traces on common axes."""

    title: str
    traces: list[Trace]
    x: PixelAxis
    y: PixelAxis

    def points(self, trace: Trace) -> Values:
        """Return where a trace's points stand [point 2], in pixels; NaN where one is missing."""
        along = [axis.at(axis.numbers(trace[of])) for of, axis in (("x", self.x), ("y", self.y))]
        return np.stack(along, axis=1)


def thinned(points: Values) -> Values:
    """Return at most 120 of the points, evenly picked, so that a still picture stays small."""
    return points[:: -(-len(points) // _MOST_POINTS) or 1]


def svg_of(figure: Figure) -> str:
    """Return the first panels of a figure as SVG; "" if none of them can be drawn here.

    Heatmaps, lines, bands, points, bars and boxes are drawn.
    """
    panels, step = list(_panels(figure))[:_MOST_PANELS], _LEFT + _WIDTH + _RIGHT
    drawn = [
        f'<g transform="translate({i * step + _LEFT:g},{_TOP:g})">{_draw(panel)}</g>'
        for i, panel in enumerate(panels)
    ]
    if not drawn:
        return ""
    width, height = len(drawn) * step, _TOP + _HEIGHT + _BELOW
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}"'
        f' viewBox="0 0 {width:g} {height:g}" font-family="sans-serif" font-size="10" role="img">'
        f"{''.join(drawn)}</svg>"
    )


# Panels and their axes


def _panels(figure: Figure) -> Iterator[Panel]:
    layout, on_axes = figure["layout"], dict[tuple[str, str], list[Trace]]()
    for trace in figure["data"]:
        axes = (trace.get("xaxis", "x"), trace.get("yaxis", "y"))
        on_axes.setdefault(axes, []).append(_complete(with_colours(dict(trace), layout)))
    notes = layout.get("annotations", [])
    titles = [
        note.get("text", "") for note in notes if note.get("xref") == note.get("yref") == "paper"
    ]
    for i, ((x, y), traces) in enumerate(on_axes.items()):
        traces = [trace for trace in traces if _has_numbers(trace)]
        if traces:
            across = _axis(traces, "x", layout.get(f"xaxis{x[1:]}", {}))
            upward = _axis(traces, "y", layout.get(f"yaxis{y[1:]}", {}))
            yield Panel(titles[i] if i < len(titles) else "", traces, across, upward)


def _complete(trace: Trace) -> Trace:
    """Give a trace the coordinates that Plotly assumes where there are none: 0, 1, …"""
    values = trace.get("z") if trace.get("type") == "heatmap" else trace.get("y")
    if trace.get("type") in _DRAWN and values is not None:
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
    if trace.get("type") not in _DRAWN or values is None:
        return False
    try:
        return bool(np.isfinite(numbers_of(values)).any())
    except ValueError:
        return trace["type"] == "scatter" and len(values) > 0


def _axis(traces: list[Trace], of: str, layout: dict[str, Any]) -> PixelAxis:
    """Return an axis that all of these traces fit on."""
    names = _names((trace[of] for trace in traces), is_forced=layout.get("type") == "category")
    is_log = layout.get("type") == "log"
    length = _WIDTH if of == "x" else _HEIGHT
    is_upward = of == "y" and layout.get("autorange") != "reversed"
    axis = PixelAxis(names, 0.0, 1.0, length, is_log, is_upward)
    numbers = [axis.numbers(trace[of]) for trace in traces]
    finite = np.concatenate([values[np.isfinite(values)] for values in numbers])
    low, high = float(finite.min()), float(finite.max())
    kinds = {trace["type"] for trace in traces}
    if of == "y" and "bar" in kinds:
        low, high = min(low, 0.0), max(high, 0.0)
    if "heatmap" in kinds or (of == "x" and kinds & {"bar", "box"}):
        half = float(min((_step(values) for values in numbers), default=1.0)) / 2
        low, high = low - half, high + half
    if layout.get("range") and not names:
        low, high = map(float, layout["range"])
    return PixelAxis(names, low, high, length, is_log, is_upward)


def _names(values: Iterable[Any], *, is_forced: bool) -> tuple[str, ...]:
    """Return the words along an axis in order; none if all of its values are numbers."""
    known, are_words = dict[str, None](), is_forced
    for column in values:
        try:
            numbers_of(column)
        except ValueError:
            are_words = True
        known |= dict.fromkeys(map(str, [] if isinstance(column, dict) else column))
    return tuple(known) if are_words else ()


def _step(values: Values) -> float:
    """Return the smallest distance between two different values; 1 if there is only one."""
    steps = np.diff(np.unique(values[np.isfinite(values)]))
    return float(steps.min()) if len(steps) else 1.0


# Marks


def _draw(panel: Panel) -> str:
    drawing = {"heatmap": _heatmap, "scatter": _scatter, "bar": _bars, "box": _boxes}
    marks = [_text(0.0, -5.0, panel.title)]
    for trace in panel.traces:
        marks += drawing[trace["type"]](trace, panel)
    left, right = panel.x.ends
    marks += [_text(0.0, _HEIGHT + 12.0, left), _text(_WIDTH, _HEIGHT + 12.0, right, anchor="end")]
    low, high = panel.y.ends
    bottom, top = (float(_HEIGHT), 8.0) if panel.y.is_upward else (8.0, float(_HEIGHT))
    marks += [_text(-4.0, bottom, low, anchor="end"), _text(-4.0, top, high, anchor="end")]
    frame = 'fill="none" stroke="currentColor" stroke-opacity="0.25"'
    return "".join([*marks, f'<rect width="{_WIDTH:g}" height="{_HEIGHT:g}" {frame}/>'])


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="currentColor">'
        f"{escape(text)}</text>"
    )


def _heatmap(trace: Trace, panel: Panel) -> Iterator[str]:
    grid = numbers_of(trace["z"])
    rows, columns = panel.y.numbers(trace["y"]), panel.x.numbers(trace["x"])
    ends = [
        axis.at(np.array([values.min() - _step(values) / 2, values.max() + _step(values) / 2]))
        for axis, values in ((panel.x, columns), (panel.y, rows))
    ]
    (left, right), (top, bottom) = (sorted(end) for end in ends)
    picture = png_of(trace, grid[::-1] if panel.y.is_upward else grid)
    yield (
        f'<image href="{picture}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}"'
        f' height="{bottom - top:.1f}" preserveAspectRatio="none"'
        ' style="image-rendering:pixelated"/>'
    )
    low, high = range_of(trace, grid)
    colours = f"colours: {low:.3g} to {high:.3g}"
    yield _text(_WIDTH, _HEIGHT + 25.0, colours, anchor="end")


def _scatter(trace: Trace, panel: Panel) -> Iterator[str]:
    points, colour = panel.points(trace), _colour(trace)
    known = np.isfinite(points).all(axis=1)
    if trace.get("fill"):
        around = " ".join(f"{x:.1f},{y:.1f}" for x, y in points[known])
        opacity = trace.get("opacity", 0.3)
        yield f'<polygon points="{around}" fill="{colour}" fill-opacity="{opacity}"/>'
        return
    mode = trace.get("mode") or ("lines+markers" if len(points) < _FEW else "lines")
    if "lines" in mode:
        cuts = np.flatnonzero(~known)
        for piece in np.split(points, cuts):
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in piece if np.isfinite(x + y))
            if line:
                yield f'<polyline points="{line}" fill="none" stroke="{colour}"/>'
    if "markers" in mode:
        size = 1.5 if "lines" in mode else 2.5
        yield from (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="{colour}"/>'
            for x, y in thinned(points[known])
        )


def _bars(trace: Trace, panel: Panel) -> Iterator[str]:
    left, width = _slot(trace, panel)
    zero = float(panel.y.at(np.zeros(1))[0])
    for x, y in panel.points(trace):
        if np.isfinite(y):
            yield (
                f'<rect x="{x + left:.1f}" y="{min(y, zero):.1f}" width="{width:.1f}"'
                f' height="{abs(y - zero):.1f}" fill="{_colour(trace)}"/>'
            )


def _boxes(trace: Trace, panel: Panel) -> Iterator[str]:
    """Draw quartiles and median, and whiskers that reach at most 1.5 boxes beyond them."""
    left, width = _slot(trace, panel)
    places, values = panel.x.numbers(trace["x"]), panel.y.numbers(trace["y"])
    colour = _colour(trace)
    for place in np.unique(places):
        sample = values[(places == place) & np.isfinite(values)]
        if not len(sample):
            continue
        first, median, third = np.percentile(sample, [25, 50, 75])
        reach = 1.5 * (third - first)
        inside = sample[(sample >= first - reach) & (sample <= third + reach)]
        ends = panel.y.at(np.array([first, median, third, inside.min(), inside.max()]))
        x = float(panel.x.at(np.array([place]))[0]) + left
        top, bottom, middle = min(ends[0], ends[2]), max(ends[0], ends[2]), x + width / 2
        yield (
            f'<path d="M{middle:.1f} {ends[3]:.1f}V{ends[4]:.1f}" stroke="{colour}"/>'
            f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{bottom - top:.1f}"'
            f' fill="{colour}" fill-opacity="0.5" stroke="{colour}"/>'
            f'<path d="M{x:.1f} {ends[1]:.1f}h{width:.1f}" stroke="{colour}" stroke-width="2"/>'
        )


def _slot(trace: Trace, panel: Panel) -> tuple[float, float]:
    """Return where a bar or box begins, relative to its place, and its width, in pixels."""
    same = [each for each in panel.traces if each["type"] == trace["type"]]
    step = min(_step(panel.x.numbers(each["x"])) for each in same)
    room = abs(float(np.diff(panel.x.at(np.array([0.0, step])))[0])) * 0.8
    number = next(i for i, each in enumerate(same) if each is trace)
    return room * (number / len(same) - 0.5), room / len(same)


def _colour(trace: Trace) -> str:
    if trace.get("fill") and isinstance(trace.get("fillcolor"), str):
        return escape(trace["fillcolor"])
    named = (trace.get(part, {}).get("color") for part in ("line", "marker"))
    return escape(next((colour for colour in named if isinstance(colour, str)), _COLOUR))
