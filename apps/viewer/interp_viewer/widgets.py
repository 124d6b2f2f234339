"""Boxes in which something is chosen; the address keeps the choice."""

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Literal

import streamlit as st

from interp.runs.folder import Cell
from interp_viewer.selected import Selected


def choose(
    label: str,
    options: list[str],
    at: int | None,
    on_choice: Callable[[int], None],
    *,
    key: str,
    width: int | Literal["stretch"] = "stretch",
) -> None:
    """Draw a box that shows what is selected, to choose one of `options`."""
    st.session_state[key] = at

    def chosen() -> None:
        if st.session_state[key] is not None:
            on_choice(int(st.session_state[key]))

    st.selectbox(
        label,
        range(len(options)),
        format_func=lambda i: options[i],
        key=key,
        on_change=chosen,
        placeholder="none",
        width=width,
    )


def option(here: Selected, label: str, options: list[str], *, field: str = "of") -> str:
    """Return what the page shows, chosen in a box (at first, the first) and kept in the address."""
    current = getattr(here.selection, field)
    at = options.index(current) if current in options else 0
    choose(label, options, at, lambda i: here.select(**{field: options[i]}), key=f"{field}-box")
    return options[at]


def finished_cell(here: Selected) -> Cell | None:
    """Return the finished analysis that is chosen in a box; None if there is none."""
    finished = {
        PurePosixPath(cell.path).name: cell
        for cell, info in here.cells.items()
        if info["status"] == "ok"
    }
    if not finished:
        st.info("No analysis of this model and task is finished.")
        return None
    return finished[option(here, "Analysis", list(finished))]


def mean_or_prompt(here: Selected) -> bool:
    """Return whether the mean over prompts is chosen, rather than one prompt."""
    return option(here, "Over", ["this prompt", "all"], field="over") == "all"
