"""Plotly figures as still pictures for notebooks, without a browser: SVG, no scripts."""

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from interp.figures.marks import fill_of, marker_of, mode_of, stroke_of
from interp.figures.panels import Figure, Panel, panels_of, scale_room, text_at, text_of
from interp.figures.pixel_axes import CHARACTER
from interp.figures.raster import Trace
from interp.figures.wrapping import lines_that_fit

WIDTH = 900.0  # of a picture, in pixels
_HEIGHTS = {1: 240.0, 2: 200.0, 3: 170.0}  # of a panel, by how many stand side by side
_BELOW, _RIGHT = 46.0, 14.0  # a panel, in pixels
_MOST_PANELS = 6
_TITLE = 15.0  # pixels, of the font of the figure's title
_LINE = 20.0  # pixels, of the title and of names


def svg_of(figure: Figure) -> str:
    """Return a figure as SVG, 900 pixels wide; "" if nothing of it can be drawn here.

    Up to six panels, three side by side, with title, names and ticks. Heatmaps, lines, bands,
    points, bars and boxes are drawn.
    """
    panels = [*panels_of(figure)][:_MOST_PANELS]
    if not panels:
        return ""
    title = text_of(figure["layout"])
    head, top = _head(lines_that_fit(title, WIDTH, size=_TITLE), panels)
    drawn = [*head]
    for _, row in groupby(panels, key=lambda panel: panel.corner[0]):
        for line, columns in _lines([*row]):
            marks, height = _line(line, columns)
            drawn.append(f'<g transform="translate(0,{top:.0f})">{marks}</g>')
            top += height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH:g}" viewBox="0 0 {WIDTH:g} {top:g}"'
        ' style="display:block;max-width:100%;height:auto;margin:8px 0" font-family="sans-serif"'
        ' font-size="12" role="img"'
        f' aria-label="{escape(title)}">{"".join(drawn)}</svg>'
    )


def _lines(row: Sequence[Panel]) -> Iterator[tuple[Sequence[Panel], int]]:
    """Yield panels that stand side by side, and how many have room there: two or three."""
    columns = min(len(row), 2 if len(row) == 4 else 3)
    for start in range(0, len(row), columns):
        first, *others = row[start : start + columns]
        yield [first.beside(row[0]), *others], columns


def _line(panels: Sequence[Panel], columns: int) -> tuple[str, float]:
    """Return panels side by side, and their height with titles and ticks."""
    height, slot = _HEIGHTS[columns], WIDTH / columns
    scales = [panel.scale(is_last=panel is panels[-1]) for panel in panels]
    lefts = [panel.left(height) for panel in panels]
    widths = [
        slot - left - (_RIGHT if scale is None else scale_room(scale))
        for left, scale in zip(lefts, scales, strict=True)
    ]
    titles = [panel.title_lines(width) for panel, width in zip(panels, widths, strict=True)]
    above = 10.0 + 16.0 * max(map(len, titles))
    drawn = [
        f'<g transform="translate({i * slot + left:.0f},{above:.0f})">'
        f"{''.join(panel.draw(width, height, scale=scale))}</g>"
        for i, (panel, left, width, scale) in enumerate(
            zip(panels, lefts, widths, scales, strict=True)
        )
    ]
    return "".join(drawn), above + height + _BELOW


def _head(title: Sequence[str], panels: Sequence[Panel]) -> tuple[list[str], float]:
    """Return the figure's title and what its colours are, and the height of both."""
    drawn = [text_at(0.0, 16.0 + i * _LINE, line, size=_TITLE) for i, line in enumerate(title)]
    left, top = 0.0, 16.0 + len(title) * _LINE
    named = _named(panels)
    for name, trace in named.items():
        width = 46.0 + 0.95 * CHARACTER * len(name)
        if left and left + width > WIDTH:
            left, top = 0.0, top + _LINE
        drawn.append(f'<g transform="translate({left:.0f},{top:.0f})">{_sample(trace)}')
        drawn.append(f"{text_at(28.0, 0.0, name)}</g>")
        left += width
    return drawn, top + (8.0 if named else -_LINE + 4.0)


def _named(panels: Sequence[Panel]) -> dict[str, Trace]:
    """Return the traces of a legend by name; none where there is only one."""
    traces = [trace for panel in panels for trace in panel.traces if trace["type"] != "heatmap"]
    shown = [t for t in traces if t.get("name") and t.get("showlegend", True) and not t.get("fill")]
    named = {str(trace["name"]): trace for trace in reversed(shown)}
    return dict(reversed(named.items())) if len(named) > 1 else {}


def _sample(trace: Trace) -> str:
    """Return a piece of a trace's line, or its mark."""
    if trace["type"] != "scatter":
        return f'<rect x="4" y="-10" width="16" height="11" {fill_of(trace)}/>'
    mode = mode_of(trace)
    line = f'<path d="M0 -4H22" {stroke_of(trace)}/>' if "lines" in mode else ""
    return line + (marker_of([(11, -4)], trace, size=3.0) if "markers" in mode else "")
