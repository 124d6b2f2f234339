"""Heatmaps with very many cells as images: they look the same and take far fewer bytes."""

from typing import Any

import numpy as np

from interp.figures.raster import numbers_of, png_of, with_colours

MOST_CELLS = 100_000
_KEPT = 50  # rows and columns of the coarse grid beneath, which has the axes and the colour bar

Figure = dict[str, Any]


def flatten(figure: Figure, *, most_cells: int = MOST_CELLS) -> bool:
    """Turn a figure's heatmaps into images in place if they have too many cells; tell whether."""
    heatmaps = [trace for trace in figure["data"] if trace.get("type") == "heatmap"]
    if sum(numbers_of(trace["z"]).size for trace in heatmaps) <= most_cells:
        return False
    for trace in heatmaps:
        grid = numbers_of(with_colours(trace, figure["layout"])["z"])
        axes = [figure["layout"].setdefault(_axis(trace, of), {}) for of in "xy"]
        (left, width), (first, height) = (
            _ticks(trace.get(of), n, axis)
            for of, n, axis in zip("xy", grid.shape[::-1], axes, strict=True)
        )
        is_down = axes[1].get("autorange") == "reversed"
        top = first - height / 2 if is_down else first + (len(grid) - 0.5) * height
        picture = png_of(trace, grid if is_down else grid[::-1])
        image = {
            "source": picture,
            "xref": trace.get("xaxis", "x"),
            "yref": trace.get("yaxis", "y"),
            "x": left - width / 2,
            "y": top,
            "sizex": width * grid.shape[1],
            "sizey": height * len(grid),
            "sizing": "stretch",
            "xanchor": "left",
            "yanchor": "top",
            "layer": "above",
        }
        figure["layout"].setdefault("images", []).append(image)
        _thin_out(trace, grid, (left, width), (first, height))
    return True


def _axis(trace: Figure, of: str) -> str:
    name: str = trace.get(f"{of}axis", of)
    return f"{of}axis{name[1:]}"


def _ticks(places: Any, n: int, axis: Figure) -> tuple[float, float]:
    """Return the first cell's place and the distance between cells; names become ticks."""
    if places is None:
        return 0.0, 1.0
    try:
        known = numbers_of(places)
    except ValueError:
        step = max(1, n // 20)
        axis.update(
            type="linear",
            tickmode="array",
            tickvals=list(range(0, n, step)),
            ticktext=list(places)[::step],
        )
        return 0.0, 1.0
    return float(known[0]), float(known[1] - known[0]) if n > 1 else 1.0


def _thin_out(
    trace: Figure, grid: np.ndarray, x: tuple[float, float], y: tuple[float, float]
) -> None:
    """Leave a coarse grid of the same extent, without hover texts."""
    rows, columns = (
        np.unique(np.linspace(0, n - 1, min(n, _KEPT)).astype(int)) for n in grid.shape
    )
    low, high = float(np.nanmin(grid)), float(np.nanmax(grid))
    trace |= {"zmin": trace.get("zmin", low), "zmax": trace.get("zmax", high), "hoverinfo": "skip"}
    for name in ("x", "y", "hovertemplate", "texttemplate", "text", "customdata"):
        trace.pop(name, None)
    for (start, step), n, of, kept in (
        (x, grid.shape[1], "x", len(columns)),
        (y, len(grid), "y", len(rows)),
    ):
        size = step * n / kept
        trace |= {f"{of}0": start - step / 2 + size / 2, f"d{of}": size}
    coarse = grid[np.ix_(rows, columns)]
    trace["z"] = [
        [None if np.isnan(value) else float(f"{value:.4g}") for value in row] for row in coarse
    ]
