"""A `Grid` as a picture that can be clicked, and walked through with the keyboard."""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from interp_viewer.colours import encoded, lut
from interp_viewer.grid import Grid, Values

HTML = """<div class="heat">
<canvas tabindex="0" role="application"></canvas>
<div class="bar"><label><span class="name"></span>
<input class="threshold" type="range" min="0" aria-label="Threshold">
<output class="value"></output></label></div>
<div class="tools">
<button class="full" type="button" title="Full screen" aria-label="Full screen">⤢</button>
<button class="png" type="button" title="Save as PNG" aria-label="Save as PNG">↓</button></div>
<div class="tip" hidden></div><div class="live" aria-live="polite"></div></div>"""


@cache
def _component() -> Callable[..., Any]:
    here = Path(__file__).parent
    js, css = ((here / f"heat.{ending}").read_text(encoding="utf-8") for ending in ("js", "css"))
    return st.components.v2.component("interp_heat", html=HTML, js=js, css=css)


@cache
def _mark() -> Callable[..., Any]:
    js = (Path(__file__).parent / "mark.js").read_text(encoding="utf-8")
    return st.components.v2.component("interp_mark", html="<i></i>", js=js)


def heat(
    grid: Grid,
    *,
    key: str,
    selected: tuple[int, int | None] | None,
    on_pick: Callable[[int, int], None],
    on_threshold: Callable[[float], None] | None = None,
    below: int | None = None,
) -> None:
    """Draw a grid; `on_pick` is called with the row and column of a click, or of Enter.

    The selected cell is outlined, or the whole row where its column is None.
    It is as tall as the window leaves, less `below` pixels, or what the grid's captions take.
    """

    def picked() -> None:
        if pick := st.session_state[key].get("pick"):
            on_pick(int(pick["row"]), int(pick["col"]))

    def moved() -> None:
        value = st.session_state[key].get("threshold")
        if value is not None and on_threshold is not None:
            on_threshold(float(value))

    _mark()(key=f"mark-{key}", data={"grid": key, "selected": selected})
    _component()(
        key=key,
        data=_sent(grid) | {"grid": key, "below": below},
        on_pick_change=picked,
        on_threshold_change=moved,
    )


def _sent(grid: Grid) -> dict[str, Any]:
    """Return what the picture needs but the selection: the same after a click, it is not resent."""
    low, high = grid.range
    n_rows, n_cols = grid.values.shape
    values = np.where(np.isinf(grid.values), np.nan, grid.values).astype(np.float32)
    sent = {
        "values": encoded(values),
        "rows": n_rows,
        "cols": n_cols,
        "low": low,
        "high": high,
        "light": encoded(lut("light", is_signed=grid.is_signed)),
        "dark": encoded(lut("dark", is_signed=grid.is_signed)),
        "row_name": grid.rows.name,
        "col_name": grid.cols.name,
        "row_labels": list(grid.rows.labels),
        "col_labels": list(grid.cols.labels),
        "unit": grid.unit,
        "signed": grid.is_signed,
        "n_letters": len(" ".join(grid.captions())),
        "upward": grid.is_upward,
        "missing": grid.missing,
        "words": list(grid.texts) if grid.text_at is not None else None,
        "word_at": None if grid.text_at is None else encoded(grid.text_at),
        **_threshold(grid, values),
        "hatched": grid.hatched,
        "file": "".join(c if c.isalnum() else "-" for c in grid.title)[:60],
        "label": (
            f"{grid.title}: {n_rows} × {n_cols} cells, {grid.rows.name} × {grid.cols.name},"
            f" {low:.3g} to {high:.3g}. Arrow keys move, Enter picks."
        ),
    }
    stamp = hashlib.blake2b(sent["values"].encode(), digest_size=8)
    seen = [sent[name] for name in ("rows", "cols", "threshold", "label", "words", "word_at")]
    stamp.update(repr(seen).encode())
    return sent | {"stamp": stamp.hexdigest()}


def _threshold(grid: Grid, values: Values) -> dict[str, Any]:
    """Return the threshold, what it is called, and how far its slider goes."""
    name, threshold = grid.threshold or ("", None)
    finite, most = values[np.isfinite(values)], 1.0
    if finite.size and threshold is not None:
        most = max(2.0, min(4.0, float(finite.max())))
    return {"threshold": threshold, "threshold_name": name, "threshold_max": most}
