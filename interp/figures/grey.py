"""Lines, marks and colours that can be told apart when a figure is small and in grey."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from interp.figures.raster import Trace, numbers_of

_DASHES = (
    "solid",
    "4px,2px",
    "1.2px,1.8px",
    "5px,2px,1px,2px",
    "7px,2px",
    "7px,2px,1px,1px,1px,2px",
)
_HATCHES = ("", "/", "x", "-", "|", "+")
_SMALLEST = 1.3  # millimetres of a cell's side, below which it holds no sign


def thin(trace: Trace) -> None:
    """Make lines, marks and error bars as thin as small figures need them."""
    if trace["type"] == "scatter":
        line, marker = trace.get("line") or {}, trace.get("marker") or {}
        trace["line"] = line | {"width": 0.6 * line.get("width", 2)}
        if not isinstance(marker.get("size"), list):
            trace["marker"] = marker | {"size": 0.5 * marker.get("size", 6)}
    for bars in ("error_x", "error_y"):
        if bars in trace:
            trace[bars] = trace[bars] | {"thickness": 0.7, "width": 1.2}


def tell_apart(data: Sequence[Trace]) -> None:
    """Give lines dashes and bars hatches by name, unless the figure uses dashes for something.

    A line that is alone in its panel stays solid.
    """
    named = [trace for trace in data if trace.get("name") and not trace.get("fill")]
    lines = [t for t in named if t["type"] == "scatter" and "lines" in t.get("mode", "lines")]
    if not any((line.get("line") or {}).get("dash") for line in lines):
        n_lines = Counter(map(_panel_of, lines))
        beside = [line for line in lines if n_lines[_panel_of(line)] > 1]
        of = {name: i for i, name in enumerate(dict.fromkeys(line["name"] for line in beside))}
        for line in beside:
            line["line"] |= {"dash": _DASHES[of[line["name"]] % len(_DASHES)]}
            if of[line["name"]] and not line.get("error_y"):  # marks would fill a line's gaps
                line["mode"] = "lines"
    bars = [trace for trace in named if trace["type"] == "bar"]
    of = {name: i for i, name in enumerate(dict.fromkeys(bar["name"] for bar in bars))}
    for bar in bars:
        hatch = {"shape": _HATCHES[of[bar["name"]] % len(_HATCHES)], "size": 4, "solidity": 0.3}
        bar["marker"] = (bar.get("marker") or {}) | {"pattern": hatch}


def _panel_of(trace: Trace) -> tuple[str, str]:
    return str(trace.get("xaxis", "x")), str(trace.get("yaxis", "y"))


def signs_in(traces: Sequence[Trace], width: float, height: float) -> list[Trace]:
    """Return marks that write a minus into clearly negative cells of grids of both signs.

    In grey, both ends of such a scale are equally dark. `width` and `height` are those of the
    traces' panel, in millimetres; cells that are too small get no mark.
    """
    grids = [trace for trace in traces if trace["type"] == "heatmap"]
    return [_signs(grid) for grid in grids if _has_room(grid, width, height)]


def _has_room(trace: Trace, width: float, height: float) -> bool:
    grid, low = numbers_of(trace["z"]), trace.get("zmin")
    if low is None or low >= 0 or not grid.size:
        return False
    return bool(min(width / grid.shape[1], height / grid.shape[0]) >= _SMALLEST)


def _signs(trace: Trace) -> Trace:
    grid, low = numbers_of(trace["z"]), trace["zmin"]
    rows, columns = np.nonzero(grid < 0.25 * low)
    xs = trace["x"] if trace.get("x") is not None else np.arange(grid.shape[1])
    ys = trace["y"] if trace.get("y") is not None else np.arange(grid.shape[0])
    xs, ys = (_listed(values) for values in (xs, ys))
    return {
        "type": "scatter",
        "x": [xs[i] for i in columns],
        "y": [ys[i] for i in rows],
        "xaxis": trace.get("xaxis", "x"),
        "yaxis": trace.get("yaxis", "y"),
        "mode": "markers",
        "marker": {"symbol": "line-ew", "size": 7, "line": {"width": 0.7}},
        "showlegend": False,
    }


def _listed(values: Any) -> list[Any]:
    """Return the places along an axis as a list."""
    return numbers_of(values).tolist() if isinstance(values, dict) else list(values)
