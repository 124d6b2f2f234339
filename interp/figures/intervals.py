"""How lines show their intervals: as bands, or as error bars where bands would cover each other."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Values = NDArray[np.float64]
_FEW = 12  # values along x, up to which lines are shifted against each other
_BARS = 8  # error bars of a longer line
_SHIFTED = 0.6  # of the distance of two values along x: how far apart the outermost lines are
_SEEN = 0.02  # of a panel's height: a band that is narrower is not seen to cover another
_COVERED, _OFTEN = 0.5, 0.25  # of a band's height, at which share of the values along x


def interval(rows: pd.DataFrame, column: str = "mean") -> dict[str, Any]:
    """Return Plotly's error bars from columns `low` and `high` around `column`."""
    mean = rows[column].to_numpy(np.float32)
    return {
        "array": rows["high"] - mean,
        "arrayminus": mean - rows["low"],
        "type": "data",
        "symmetric": False,
    }


def lines_with_intervals(
    groups: Sequence[pd.DataFrame], *, x: str, y: str, colours: Sequence[str]
) -> Iterator[list[dict[str, Any]]]:
    """Yield the traces of every line of a panel, the line itself last.

    Columns `low` and `high`, where they exist, become a band. Where bands cover each other, they
    become error bars: of few values along x, with the lines shifted against each other; of many,
    at every so many values, others for every line.
    """
    is_covered = _cover_each_other(groups, x=x, y=y)
    for i, (rows, colour) in enumerate(zip(groups, colours, strict=True)):
        line = {
            "x": rows[x],
            "y": rows[y].astype(np.float32),
            "mode": "lines+markers",
            "line": {"color": colour},
            "marker": {"color": colour},
        }
        if not is_covered:
            has_band = {"low", "high"} <= set(rows.columns)
            yield [_band(rows, x, colour), line] if has_band else [line]
        elif len(rows) <= _FEW:
            yield [line | _shifted(rows, x, i, len(groups)) | {"error_y": interval(rows, y)}]
        else:
            yield [line | {"error_y": _some_bars(rows, y, i, len(groups))}]


def _cover_each_other(groups: Sequence[pd.DataFrame], *, x: str, y: str) -> bool:
    """Tell whether, at many values along x, a band that is seen is covered by another by half."""
    if len(groups) < 2 or not all({"low", "high"} <= set(rows.columns) for rows in groups):
        return False
    every = pd.concat(groups)
    seen = _SEEN * float(np.ptp(every[["low", "high", y]].to_numpy(float)[every[y].notna()]))
    ends = [rows.drop_duplicates(x).set_index(x)[["low", "high"]] for rows in groups]
    covered = pd.Series(False, index=every[x].unique())
    for one, other in combinations(ends, 2):
        low, high = one["low"].combine(other["low"], max), one["high"].combine(other["high"], min)
        least = (one["high"] - one["low"]).combine(other["high"] - other["low"], min)
        is_so = (least > seen) & (high - low > _COVERED * least)
        covered |= is_so.reindex(covered.index, fill_value=False)
    return bool(covered.mean() > _OFTEN)


def _band(rows: pd.DataFrame, x: str, colour: str) -> dict[str, Any]:
    """Return a trace that fills the area between `low` and `high`."""
    return {
        "x": np.concatenate([rows[x], rows[x][::-1]]),
        "y": np.concatenate([rows["high"], rows["low"][::-1]]).astype(np.float32),
        "fill": "toself",
        "mode": "lines",
        "line": {"width": 0},
        "fillcolor": colour,
        "opacity": 0.2,
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _shifted(rows: pd.DataFrame, x: str, i: int, n: int) -> dict[str, Any]:
    """Return where the points of line `i` of `n` stand, and their own values for hovering."""
    values = rows[x].to_numpy(float)
    step = float(np.diff(np.unique(values)).min()) if len(np.unique(values)) > 1 else 1.0
    shift = _SHIFTED * step * (i - (n - 1) / 2) / n
    return {
        "x": values + shift,
        "customdata": values,
        "hovertemplate": f"{x} %{{customdata}}: %{{y:.3g}}",
    }


def _some_bars(rows: pd.DataFrame, y: str, i: int, n: int) -> dict[str, Any]:
    """Return the error bars of line `i` of `n`: those at every so many values."""
    step = max(n, -(-len(rows) // _BARS))
    is_shown = np.arange(len(rows)) % step == i * step // n
    bars = interval(rows, y)
    ends = {side: np.where(is_shown, bars[side], np.nan) for side in ("array", "arrayminus")}
    return bars | ends | {"thickness": 1.2, "width": 3}
