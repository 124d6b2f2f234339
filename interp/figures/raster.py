"""Heatmaps as images with one pixel per cell, in Plotly's colours."""

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from plotly.colors import get_colorscale, sample_colorscale, unlabel_rgb

Trace = dict[str, Any]
_N_SHADES = 256
_PLAIN = "Viridis"  # Plotly's own, where neither trace nor template says another


def numbers_of(values: Any) -> NDArray[np.float64]:
    """Return a trace's numbers, which are lists or base64; raise ValueError if they are words."""
    if isinstance(values, dict):
        kind = np.dtype(values["dtype"]).newbyteorder("<")
        flat = np.frombuffer(base64.b64decode(values["bdata"]), dtype=kind)
        shape = [int(n) for n in str(values.get("shape", len(flat))).split(",")]
        return flat.reshape(shape).astype(np.float64)
    return np.array(values, dtype=np.float64)


def shades(scale: Any) -> NDArray[np.uint8]:
    """Return 256 colours [shade rgb] of a scale: its name, its colours, or Plotly's own list."""
    known = get_colorscale(scale) if isinstance(scale, str) else scale
    colours = sample_colorscale(known, np.linspace(0, 1, _N_SHADES).tolist())
    return np.array([unlabel_rgb(colour) for colour in colours]).round().astype(np.uint8)


def with_colours(trace: Trace, layout: dict[str, Any]) -> Trace:
    """Give a heatmap, in place, its figure's colours and range; return it."""
    if trace.get("type") == "heatmap":
        axis = layout.get(trace.get("coloraxis", ""), {})
        scales = layout.get("template", {}).get("layout", {}).get("colorscale", {})
        known = (trace.get("colorscale"), axis.get("colorscale"), scales.get("sequential"), _PLAIN)
        trace["colorscale"] = next(filter(None, known))
        for end, of_axis in (("zmin", "cmin"), ("zmax", "cmax")):
            if trace.get(end) is None and axis.get(of_axis) is not None:
                trace[end] = axis[of_axis]
    return trace


def range_of(trace: Trace, grid: NDArray[np.float64]) -> tuple[float, float]:
    """Return the values of a heatmap's first and last colour."""
    low, high = trace.get("zmin"), trace.get("zmax")
    return (
        float(np.nanmin(grid) if low is None else low),
        float(np.nanmax(grid) if high is None else high),
    )


def png_of(trace: Trace, grid: NDArray[np.float64]) -> str:
    """Return a heatmap as an image's data address: a pixel per cell, row 0 on top, NaN clear."""
    colours = shades(trace["colorscale"])[:: -1 if trace.get("reversescale") else 1]
    low, high = range_of(trace, grid)
    share = np.nan_to_num((grid - low) / ((high - low) or 1.0)).clip(0, 1)
    opaque = np.where(np.isnan(grid), 0, 255)
    pixels = np.dstack([colours[(share * (_N_SHADES - 1)).round().astype(int)], opaque])
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8), "RGBA").save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
