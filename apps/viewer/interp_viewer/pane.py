"""A grid beside its selected cell, and the same numbers as a table."""

import time
from collections.abc import Callable
from typing import Literal

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from interp.errors import RunError
from interp_viewer.grid import Grid
from interp_viewer.heat import heat
from interp_viewer.selected import Selected
from interp_viewer.text import NOISE, number, plain, prompt_named
from interp_viewer.widgets import choose

Values = NDArray[np.float32]
_LISTED = 5
HEAD_START = {"first": 1.0, "later": 0.2}  # seconds in a session's first run, and after a click


def pane(
    here: Selected,
    grid: Grid,
    *,
    key: str,
    at_cell: Callable[[int, int], Values] | None = None,
) -> None:
    """Draw a grid and its inspector; `at_cell` returns every prompt's value of a cell."""
    left, right = st.columns([0.76, 0.24], gap="medium")
    with right:  # first, so that it need not wait for the picture
        with st.container(horizontal=True, wrap=False):
            mirrors(here, grid, key=key)
        whole = selected_cell(here, grid)
        if whole is None:
            st.caption("Click a cell, or choose a row and a column, to see its number here.")
            for axis in (grid.rows, grid.cols):
                for word in axis.outside(here.numbers):
                    st.caption(f"{word} is selected, but is not in this picture.")
        else:
            inspect(here, grid, whole, at_cell)
    with left:
        picture(here, grid, key=key)
        _table(grid, key)
    _let_it_be_drawn()


def _let_it_be_drawn() -> None:
    """Wait a moment, in which the browser draws what it has.

    What follows is folded away or below the window, and is most of the browser's work: sent at
    once, it would be drawn at once, and the picture with it.
    """
    is_first = st.session_state.setdefault("is_first_run", True)
    st.session_state["is_first_run"] = False
    time.sleep(HEAD_START["first" if is_first else "later"])


def selected_cell(here: Selected, grid: Grid) -> tuple[int, int] | None:
    """Return the selected row and column, or None if they are not in this grid."""
    row, col = grid.rows.index(here.numbers), grid.cols.index(here.numbers)
    return None if row is None or col is None else (row, col)


def picture(here: Selected, grid: Grid, *, key: str, below: int | None = None) -> None:
    """Draw a grid with its title; clicks move the selection.

    Its notes follow, unless it leaves `below` pixels for what is drawn next.
    """
    st.markdown(f"**{plain(grid.title)}**")
    heat(
        grid,
        key=key,
        selected=_outlined(here, grid),
        on_pick=lambda row, col: here.select(**grid.rows.picked(row), **grid.cols.picked(col)),
        on_threshold=lambda value: here.select(thr=round(value, 4)),
        below=below,
    )
    if below is None and (captions := grid.captions()):
        st.caption(plain(" ".join(captions)))


def _outlined(here: Selected, grid: Grid) -> tuple[int, int | None] | None:
    """Return what is outlined: the selected cell, or a row where columns select nothing."""
    row = grid.rows.index(here.numbers)
    if row is not None and not grid.cols.keys:
        return row, None
    return selected_cell(here, grid)


def mirrors(
    here: Selected, grid: Grid, *, key: str, width: int | Literal["stretch"] = "stretch"
) -> None:
    """Draw the boxes that select a row and a column, as a click does."""
    for axis in (grid.rows, grid.cols):
        if axis.keys:
            choose(
                axis.name[:1].upper() + axis.name[1:],
                list(axis.labels),
                axis.index(here.numbers),
                lambda i, axis=axis: here.select(**axis.picked(i)),
                key=f"{key}-{axis.name}",
                width=width,
            )


def inspect(
    here: Selected, grid: Grid, cell: tuple[int, int], at_cell: Callable[[int, int], Values] | None
) -> None:
    """Say what a cell holds: value, rank, interval, number of prompts, and how prompts differ."""
    row, col = cell
    value = float(grid.values[row, col])
    where = f"{grid.rows.name} {grid.rows.labels[row]}, {grid.cols.name} {grid.cols.labels[col]}"
    st.markdown(f"{plain(where)}")
    if not np.isfinite(value):
        st.markdown(f"no value: {plain(grid.missing)}")
        return
    st.metric("Value", f"{number(value)} {grid.unit}".strip(), height="content")
    if text := grid.text(row, col):
        st.text(f"in the cell: “{text}”")
    place, n_smaller, n = grid.rank(row, col)
    share = 100 * n_smaller / max(1, n - 1)
    lines = [f"rank {place} of {n} by size (larger than {share:.0f} % of the others)"]
    if grid.low is not None and grid.high is not None and np.isfinite(grid.low[row, col]):
        lines.append(
            f"95 % interval {number(float(grid.low[row, col]))} to"
            f" {number(float(grid.high[row, col]))}"
        )
    if grid.n is not None and np.isfinite(grid.n[row, col]):
        lines.append(f"mean over {int(grid.n[row, col])} prompts")
    elif at_cell is not None and not here.is_over_all:
        lines.append("one prompt: no interval")
    st.caption("  \n".join(map(plain, lines)))
    if at_cell is not None:
        try:
            _prompts_by_effect(here, np.asarray(at_cell(row, col), np.float64))
        except RunError as error:
            st.caption(plain(error))


def _prompts_by_effect(here: Selected, values: NDArray[np.float64]) -> None:
    """List the prompts with the largest value at this cell, as buttons that select them."""
    known = np.flatnonzero(np.isfinite(values))
    if len(known) < 2:
        return
    if np.abs(values[known]).max() < NOISE:
        st.caption(f"Over {len(known)} prompts: none is different from 0.")
        return
    low, middle, high = np.percentile(values[known], [25, 50, 75])
    st.caption(
        f"Over {len(known)} prompts: median {number(middle)},"
        f" half of them {number(low)} to {number(high)}. Largest:"
    )
    best = known[np.argsort(-np.abs(values[known]), kind="stable")][:_LISTED]
    with st.container(gap="xxsmall", key="prompts"):
        for i in best:
            name = prompt_named(i, here.prompts[i]) if i < len(here.prompts) else str(i)
            st.button(
                f"**{number(values[i])}** · {plain(name)}",
                key=f"prompt-{i}",
                on_click=lambda i=int(i): here.select(ex=i),
                disabled=int(i) == here.ex,
                width="stretch",
            )


def _table(grid: Grid, key: str) -> None:
    if not st.toggle("As a table", key=f"{key}-table"):
        return
    frame = grid.to_frame()
    st.dataframe(frame, height=min(400, 35 * (len(frame) + 1) + 3))
    st.download_button(
        "Save as CSV", frame.to_csv().encode(), f"{key}.csv", "text/csv", key=f"{key}-csv"
    )
