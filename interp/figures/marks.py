"""What stands in a still picture's panel: heatmaps, lines, bands, points, bars and boxes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from interp.figures.pixel_axes import PixelAxis, Values, errors_of, step_of
from interp.figures.raster import Trace, numbers_of, png_of

_MOST_POINTS = 120  # that no line joins
_MOST_JOINED = 300
_MOST_MARKED = 45  # points of a line, above which it has no markers
_FEW = 20  # points, up to which Plotly marks each of a line that says nothing else
_LINE = 0.85  # of a line's width
_COLOUR = "#0072B2"  # of traces that name none
_DASHES = {"dot": "1 4", "dash": "6 4", "longdash": "10 4", "dashdot": "6 3 1 3"}


@dataclass(frozen=True)
class Marks:
    """Traces on common axes."""

    traces: list[Trace]
    x: PixelAxis
    y: PixelAxis

    def draw(self) -> Iterator[str]:
        """Yield SVG elements, of the first trace first."""
        for trace in self.traces:
            yield from _DRAWING[trace["type"]](trace, self)

    def points(self, trace: Trace) -> Values:
        """Return where a trace's points stand [point 2], in pixels; NaN where one is missing."""
        along = [axis.at(axis.numbers(trace[of])) for of, axis in (("x", self.x), ("y", self.y))]
        return np.stack(along, axis=1)


def thinned(points: Values, most: int) -> Values:
    """Return at most so many of the points, evenly picked, so that a still picture stays small."""
    return points[:: -(-len(points) // most) or 1]


def colour_of(trace: Trace) -> str:
    """Return a trace's colour."""
    if trace.get("fill") and isinstance(trace.get("fillcolor"), str):
        return escape(trace["fillcolor"])
    named = (trace.get(part, {}).get("color") for part in ("line", "marker"))
    return escape(next((colour for colour in named if isinstance(colour, str)), _COLOUR))


def mode_of(trace: Trace) -> str:
    """Return whether a scatter has lines, markers or both."""
    few = "lines+markers" if len(numbers_or_words(trace["y"])) < _FEW else "lines"
    return str(trace.get("mode") or few)


def numbers_or_words(values: Any) -> Any:
    """Return values that have a length, also those that are base64."""
    return numbers_of(values) if isinstance(values, dict) else values


def stroke_of(trace: Trace) -> str:
    """Return the attributes of a trace's line."""
    dash = _DASHES.get(str(trace.get("line", {}).get("dash")))
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    width = _LINE * trace.get("line", {}).get("width", 2)
    return f'fill="none" stroke="{colour_of(trace)}" stroke-width="{width:.2g}"{dashed}'


def fill_of(trace: Trace) -> str:
    """Return the attributes of a bar or box: one with a pattern is lighter, with an edge."""
    is_light = bool(trace.get("marker", {}).get("pattern", {}).get("shape"))
    edge = f' fill-opacity="0.35" stroke="{colour_of(trace)}"' if is_light else ""
    return f'fill="{colour_of(trace)}"{edge}'


def marker_of(points: Iterable[Any], trace: Trace, *, size: float) -> str:
    """Return points as one path: dots, or crosses where the trace says so."""
    is_cross = trace.get("marker", {}).get("symbol") == "x"
    wide = 2 * size
    arms = f"m-{size:g} -{size:g}l{wide:g} {wide:g}m0-{wide:g}l-{wide:g} {wide:g}"
    path = "".join(f"M{x:.1f} {y:.1f}{arms if is_cross else 'h0'}" for x, y in points)
    width = 1.5 if is_cross else wide
    opacity = trace.get("marker", {}).get("opacity", 1)
    return (
        f'<path d="{path}" fill="none" stroke="{colour_of(trace)}" stroke-width="{width:g}"'
        f' stroke-linecap="round" stroke-opacity="{opacity}"/>'
    )


def _heatmap(trace: Trace, marks: Marks) -> Iterator[str]:
    grid = numbers_of(trace["z"])
    rows, columns = marks.y.numbers(trace["y"]), marks.x.numbers(trace["x"])
    ends = [
        axis.at(np.array([values.min() - step_of(values) / 2, values.max() + step_of(values) / 2]))
        for axis, values in ((marks.x, columns), (marks.y, rows))
    ]
    (left, right), (top, bottom) = (sorted(end) for end in ends)
    picture = png_of(trace, grid[::-1] if marks.y.is_upward else grid)
    yield (
        f'<image href="{picture}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}"'
        f' height="{bottom - top:.1f}" preserveAspectRatio="none"'
        ' style="image-rendering:pixelated"/>'
    )


def _scatter(trace: Trace, marks: Marks) -> Iterator[str]:
    points = marks.points(trace)
    known = np.isfinite(points).all(axis=1)
    if trace.get("fill"):
        around = " ".join(f"{x:.1f},{y:.1f}" for x, y in points[known])
        opacity = trace.get("opacity", 0.3)
        yield f'<polygon points="{around}" fill="{colour_of(trace)}" fill-opacity="{opacity}"/>'
        return
    mode = mode_of(trace)
    if "lines" in mode:
        for piece in np.split(points, np.flatnonzero(~known)):
            there = thinned(piece[np.isfinite(piece).all(axis=1)], _MOST_JOINED)
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in there)
            if line:
                yield f'<polyline points="{line}" {stroke_of(trace)}/>'
    yield from _error_bars(trace, marks)
    if "markers" in mode and ("lines" not in mode or len(points) <= _MOST_MARKED):
        yield marker_of(
            thinned(points[known], _MOST_POINTS), trace, size=2.0 if "lines" in mode else 3.0
        )


def _error_bars(trace: Trace, marks: Marks, *, shift: float = 0.0) -> Iterator[str]:
    ends = errors_of(trace, "y", marks.y)
    if not ends:
        return
    x = marks.x.at(marks.x.numbers(trace["x"])) + shift
    lows, highs = (marks.y.at(end) for end in ends)
    bars = np.stack([x, lows, highs], axis=1)
    path = "".join(f"M{x:.1f} {a:.1f}V{b:.1f}" for x, a, b in bars if np.isfinite(x + a + b))
    if path:
        yield f'<path d="{path}" stroke="currentColor" stroke-opacity="0.7"/>'


def _bars(trace: Trace, marks: Marks) -> Iterator[str]:
    left, width = _slot(trace, marks)
    zero = marks.y.place(0.0)
    for x, y in marks.points(trace):
        if np.isfinite(y):
            yield (
                f'<rect x="{x + left:.1f}" y="{min(y, zero):.1f}" width="{width:.1f}"'
                f' height="{abs(y - zero):.1f}" {fill_of(trace)}/>'
            )
    yield from _error_bars(trace, marks, shift=left + width / 2)


def _boxes(trace: Trace, marks: Marks) -> Iterator[str]:
    """Draw quartiles and median, and whiskers that reach at most 1.5 boxes beyond them."""
    left, width = _slot(trace, marks)
    places, values = marks.x.numbers(trace["x"]), marks.y.numbers(trace["y"])
    colour = colour_of(trace)
    for place in np.unique(places):
        sample = values[(places == place) & np.isfinite(values)]
        if not len(sample):
            continue
        first, median, third = np.percentile(sample, [25, 50, 75])
        reach = 1.5 * (third - first)
        inside = sample[(sample >= first - reach) & (sample <= third + reach)]
        ends = marks.y.at(np.array([first, median, third, inside.min(), inside.max()]))
        x = marks.x.place(float(place)) + left
        top, bottom, middle = min(ends[0], ends[2]), max(ends[0], ends[2]), x + width / 2
        yield (
            f'<path d="M{middle:.1f} {ends[3]:.1f}V{ends[4]:.1f}" stroke="{colour}"/>'
            f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{bottom - top:.1f}"'
            f' fill="{colour}" fill-opacity="0.5" stroke="{colour}"/>'
            f'<path d="M{x:.1f} {ends[1]:.1f}h{width:.1f}" stroke="{colour}" stroke-width="2"/>'
        )


def _slot(trace: Trace, marks: Marks) -> tuple[float, float]:
    """Return where a bar or box begins, relative to its place, and its width, in pixels."""
    same = [each for each in marks.traces if each["type"] == trace["type"]]
    step = min(step_of(marks.x.numbers(each["x"])) for each in same)
    room = abs(marks.x.place(step) - marks.x.place(0.0)) * 0.8
    number = next(i for i, each in enumerate(same) if each is trace)
    return room * (number / len(same) - 0.5), room / len(same)


_DRAWING = {"heatmap": _heatmap, "scatter": _scatter, "bar": _bars, "box": _boxes}
DRAWN = tuple(_DRAWING)
