"""Boxes in which something is chosen; the address keeps the choice."""

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Literal

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

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
    is_named: bool = True,
) -> None:
    """Draw a box that shows what is selected, to choose one of `options` by typing part of it."""
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
        filter_mode="contains",
        label_visibility="visible" if is_named else "collapsed",
        width=width,
    )


def controls() -> DeltaGenerator:
    """Return the line in which a page's boxes stand."""
    return st.container(key="controls", horizontal=True, vertical_alignment="center")


def option(
    here: Selected,
    label: str,
    options: list[str],
    *,
    field: str = "of",
    width: int | Literal["stretch"] = "stretch",
) -> str:
    """Return what the page shows, chosen in a box (at first, the first) and kept in the address."""
    current = getattr(here.selection, field)
    at = options.index(current) if current in options else 0

    def chosen(i: int) -> None:
        here.select(**{field: options[i]})

    choose(label, options, at, chosen, key=f"{field}-box", width=width)
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
    with controls():
        return finished[option(here, "Analysis", list(finished))]


def one_of(here: Selected, label: str, options: dict[str, str], *, field: str) -> str:
    """Return the address's word for what is chosen of a few options, which all stand in a line.

    `options` maps those words to what is shown; at first, the first is chosen.
    """
    key, current = f"{field}-choice", getattr(here.selection, field)
    st.session_state[key] = current if current in options else next(iter(options))

    def chosen() -> None:
        here.select(**{field: st.session_state[key]})

    st.segmented_control(
        label,
        list(options),
        format_func=options.__getitem__,
        key=key,
        on_change=chosen,
        label_visibility="collapsed",
        required=True,
    )
    return str(st.session_state[key])


def mean_or_prompt(here: Selected) -> None:
    """Let the mean over prompts be chosen, or one prompt."""
    one_of(here, "Over", {"this prompt": "this prompt", "all": "mean over all"}, field="over")
