"""The menu, and the line that says where we are: page, model and task, prompt, link."""

from functools import partial
from pathlib import PurePosixPath

import streamlit as st

from interp_viewer import menu
from interp_viewer.selected import Selected
from interp_viewer.selection import Selection
from interp_viewer.strip import strip
from interp_viewer.text import plain, prompt_named
from interp_viewer.widgets import choose


def navigate(selection: Selection, here: Selected | None) -> None:
    """Draw the links to all pages, and mark those for which this run has nothing."""
    cells = here.cells if here else {}
    finished = {cell.analysis for cell, info in cells.items() if info["status"] == "ok"}
    params = selection.moved(of="", over="", label="").params()
    with st.sidebar:
        if here is not None:
            st.markdown(f"**{plain(here.run.id)}**")
        for entry in menu.entries().values():
            if here is None and entry.name not in menu.WITHOUT_RUN:
                continue
            lacks = here and entry.analyses and finished.isdisjoint(entry.analyses)
            note = f"not in this run: {' or '.join(entry.analyses)}" if lacks else None
            label = f"{entry.title} (not run)" if lacks else entry.title
            st.page_link(entry.page, label=label, query_params=params, help=note)
        if here is None:
            st.caption("Open a run to see its pages.")


def bar(here: Selected) -> None:
    """Draw what is selected, in boxes that need no mouse."""
    _choose_task(here)
    _choose_prompt(here)
    with st.popover("Link"):
        st.caption("This address shows the same selection again.")
        page = (st.context.url or "").split("?")[0]
        st.code(f"{page}?{here.selection.query()}", language=None)


def tokens(here: Selected) -> None:
    """Draw the prompt's tokens."""
    if here.tokens:
        token = here.selection.token
        strip(here.tokens, key="strip", selected=token, on_pick=lambda i: here.select(token=i))
    elif here.prompts:
        st.text(here.prompts[here.ex].get("text", ""))
        st.caption("This run has no tokens; runs of this version do.")


def _choose_task(here: Selected) -> None:
    known = here.run.models_and_tasks
    names = [f"{model} · {PurePosixPath(task).name}" for model, task in known]  # or a task's file
    at = known.index((here.model, here.task))

    def choose_task(i: int) -> None:
        here.select(model=known[i][0], task=known[i][1])

    choose("Model and task", names, at, choose_task, key="pair", width=230, is_named=False)


def _choose_prompt(here: Selected) -> None:
    ex = here.ex
    names = [prompt_named(i, prompt) for i, prompt in enumerate(here.prompts)] or [str(ex)]
    is_last = ex + 1 >= len(names)
    choose("Prompt", names, ex, lambda i: here.select(ex=i), key="ex", is_named=False)
    before, after = (partial(here.select, ex=ex + step) for step in (-1, 1))
    st.button("◀", help="Previous prompt", disabled=ex == 0, on_click=before)
    st.button("▶", help="Next prompt", disabled=is_last, on_click=after)
