"""Plotly figures as small static pictures, without a browser: for notebooks, and for grids with
very many cells.
"""

import base64
import io
from collections.abc import Iterator
from html import escape
from typing import Any

import numpy as np
from PIL import Image
from plotly.colors import get_colorscale, sample_colorscale, unlabel_rgb

Figure = dict[str, Any]
Trace = dict[str, Any]
_SHADES = 256
_WIDTH, _HEIGHT, _MARGIN = 220, 130, 34
_MOST_PANELS = 4
_FALLBACK = "#0072B2"
_PLAIN = "Viridis"


def numbers_of(values: Any) -> np.ndarray:
    """Return a trace's numbers, which are lists or base64; raises ValueError if they are words."""
    if isinstance(values, dict):
        flat = np.frombuffer(
            base64.b64decode(values["bdata"]), dtype=np.dtype(values["dtype"]).newbyteorder("<")
        )
        shape = [int(n) for n in str(values.get("shape", len(flat))).split(",")]
        return flat.reshape(shape).astype(np.float64)
    return np.array(values, dtype=np.float64)


def with_colours(trace: Trace, layout: dict[str, Any]) -> Trace:
    """Give a heatmap the colours and the range that its figure has for it, as a browser would;
    returns the trace.
    """
    if trace.get("type") == "heatmap":
        axis = layout.get(trace.get("coloraxis", ""), {})
        template = (
            layout.get("template", {}).get("layout", {}).get("colorscale", {}).get("sequential")
        )
        trace["colorscale"] = (
            trace.get("colorscale") or axis.get("colorscale") or template or _PLAIN
        )
        for end, of_axis in (("zmin", "cmin"), ("zmax", "cmax")):
            if trace.get(end) is None and axis.get(of_axis) is not None:
                trace[end] = axis[of_axis]
    return trace


def range_of(trace: Trace, grid: np.ndarray) -> tuple[float, float]:
    """Return the values of a heatmap's first and last colour."""
    low, high = trace.get("zmin"), trace.get("zmax")
    return float(np.nanmin(grid) if low is None else low), float(
        np.nanmax(grid) if high is None else high
    )


def png_of(trace: Trace, grid: np.ndarray) -> str:
    """Return a heatmap as the address of a picture, one pixel a cell, row 0 on top and NaN clear."""
    scale = (
        trace["colorscale"]
        if not isinstance(trace["colorscale"], str)
        else get_colorscale(trace["colorscale"])
    )
    colours = sample_colorscale(scale, np.linspace(0, 1, _SHADES).tolist())
    shades = np.array([unlabel_rgb(colour) for colour in colours])[
        :: -1 if trace.get("reversescale") else 1
    ]
    low, high = range_of(trace, grid)
    share = np.nan_to_num((grid - low) / ((high - low) or 1.0)).clip(0, 1)
    pixels = np.dstack(
        [shades[(share * (_SHADES - 1)).round().astype(int)], np.where(np.isnan(grid), 0, 255)]
    )
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8), "RGBA").save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def svg_of(figure: Figure) -> str:
    """Return the first panels of a figure as a small SVG without scripts: grids, lines and bars;
    nothing if it has none.
    """
    panels: dict[tuple[str, str], list[Trace]] = {}
    for trace in figure["data"]:
        panels.setdefault((trace.get("xaxis", "x"), trace.get("yaxis", "y")), []).append(trace)
    notes = figure["layout"].get("annotations", [])
    titles = [
        note.get("text", "") for note in notes if note.get("xref") == note.get("yref") == "paper"
    ]
    drawn: list[str] = []
    for trace in figure["data"]:
        with_colours(trace, figure["layout"])
    for i, ((_, y), traces) in enumerate(list(panels.items())[:_MOST_PANELS]):
        is_down = figure["layout"].get(f"yaxis{y[1:]}", {}).get("autorange") == "reversed"
        inside = "".join(
            _grid(traces[0], is_down=is_down) if traces[0]["type"] == "heatmap" else _marks(traces)
        )
        if not inside:
            continue
        title = escape(titles[i] if i < len(titles) else "")
        left = len(drawn) * (_WIDTH + _MARGIN) + _MARGIN
        drawn.append(f'<g transform="translate({left},18)">{_text(0.0, -5.0, title)}{inside}</g>')
    if not drawn:
        return ""
    width, height = len(drawn) * (_WIDTH + _MARGIN) + _MARGIN, _HEIGHT + 36
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0'
        f' {width} {height}" font-family="sans-serif" font-size="10"'
        f' role="img">{"".join(drawn)}</svg>'
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="currentColor">{text}</text>'


def _grid(trace: Trace, *, is_down: bool) -> Iterator[str]:
    grid = numbers_of(trace["z"])
    picture = png_of(trace, grid if is_down else grid[::-1])
    yield (
        f'<image href="{picture}" width="{_WIDTH}" height="{_HEIGHT}" preserveAspectRatio="none" '
        'style="image-rendering:pixelated"/>'
    )
    low, high = range_of(trace, grid)
    yield _text(float(_WIDTH), _HEIGHT + 12.0, f"{low:.3g} to {high:.3g}", anchor="end")


def _marks(traces: list[Trace]) -> Iterator[str]:
    """Draw lines and bars on common axes; bands and traces without numbers are left out."""
    series = [(trace, numbers_of(trace["y"])) for trace in traces if _is_series(trace)]
    if not series:
        return
    values = np.concatenate([y for _, y in series])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if any(trace["type"] == "bar" for trace, _ in series):
        low, high = min(low, 0.0), max(high, 0.0)
    for i, (trace, y) in enumerate(series):
        x = (np.arange(len(y)) + 0.5) / len(y) * _WIDTH
        heights = _HEIGHT * (1 - (y - low) / ((high - low) or 1.0))
        colour = escape(str(_colour(trace)))
        if trace["type"] == "bar":
            zero, width = (
                _HEIGHT * (1 - (0 - low) / ((high - low) or 1.0)),
                _WIDTH / len(y) / len(series) * 0.8,
            )
            yield from (
                f'<rect x="{a - width * len(series) / 2 + i * width:.1f}" y="{min(b, zero):.1f}"'
                f' width="{width:.1f}" height="{abs(b - zero):.1f}" fill="{colour}"/>'
                for a, b in zip(x, heights, strict=True)
                if np.isfinite(b)
            )
        else:
            points = " ".join(
                f"{a:.1f},{b:.1f}" for a, b in zip(x, heights, strict=True) if np.isfinite(b)
            )
            yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
    yield (
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="currentColor"'
        ' stroke-opacity="0.25"/>'
    )
    yield _text(-4.0, 8.0, f"{high:.3g}", anchor="end") + _text(
        -4.0, float(_HEIGHT), f"{low:.3g}", anchor="end"
    )


def _is_series(trace: Trace) -> bool:
    if trace["type"] not in ("scatter", "bar") or trace.get("fill") or trace.get("y") is None:
        return False
    try:
        y = numbers_of(trace["y"])
    except ValueError:
        return False
    return bool(np.isfinite(y).any())


def _colour(trace: Trace) -> str:
    for part in ("line", "marker"):
        if isinstance(colour := trace.get(part, {}).get("color"), str):
            return colour
    return _FALLBACK
