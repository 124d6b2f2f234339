"""What every page has: a line that says where we are, and a word on what is missing."""

import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from interp.errors import RunError
from interp.runs.folder import Cell, cells_asked, cells_of
from interp_viewer import menu
from interp_viewer.about import question
from interp_viewer.bar import bar, navigate, tokens
from interp_viewer.reading import ViewedRun, find_run
from interp_viewer.selected import Missing, Selected, tokens_of
from interp_viewer.selection import Selection
from interp_viewer.text import plain

ROOT = "INTERP_VIEWER_ROOT"
_STYLE = Path(__file__).parent / "screen.css"


def root_folder() -> Path:
    """Return the folder whose runs are shown."""
    return Path(os.environ.get(ROOT, "runs"))


def show(name: str, body: Callable[[Selected], None]) -> None:
    """Draw a page about a run."""
    entry, line = menu.entries()[name], _heading(name)
    selection = _read()
    if not selection.run:
        navigate(selection, None)
        st.info("No run is open. Choose one on the page “Runs”.")
        return
    try:
        here = _selected(selection)
    except RunError as error:
        navigate(selection, None)
        refuse(error)
        return
    navigate(selection if here is None else here.selection, here)
    if here is None:
        st.warning(
            "Nothing has been measured in this run yet. This page looks again every two seconds."
        )
        _wait(selection.run)
        return
    with line:
        bar(here)
    question(here, getattr(entry.module, "ASKS", entry.analyses))
    if entry.analyses:
        tokens(here)
    try:
        body(here)
    except Missing as missing:
        _say_missing(here, missing)
    except RunError as error:
        refuse(error)
    if {*cells_of(here.run.info)} < _expected(here.run):
        _wait(selection.run)


def begin(name: str) -> Selection:
    """Draw the beginning of a page that needs no run, with the menu of the one that is open."""
    _heading(name)
    selection = _read()
    try:
        here = _selected(selection) if selection.run else None
    except RunError:
        here = None
    navigate(selection if here is None else here.selection, here)
    return selection


def _heading(name: str) -> DeltaGenerator:
    """Draw a page's title, and return the line in which it stands."""
    st.html(_STYLE)
    line = st.container(key="where", horizontal=True, vertical_alignment="center", wrap=False)
    line.title(menu.entries()[name].title, anchor=False, width="content")
    return line


def _read() -> Selection:
    selection = Selection.read(st.query_params)
    for bad in selection.bad:
        st.warning(plain(bad))
    return selection


def refuse(error: RunError) -> None:
    """Say why something cannot be shown."""
    st.error(plain(error))


# Where we are


def _selected(selection: Selection) -> Selected | None:
    """Return what an address selects, or None if nothing in the run has been measured yet."""
    run = find_run(root_folder(), selection.run)
    known = run.models_and_tasks
    if not known:
        return None
    model, task = selection.model, selection.task
    fitting = [(m, t) for m, t in known if model in ("", m) and task in ("", t)]
    if not fitting:
        shown = f"{known[0][0]} on {known[0][1]}"
        st.warning(plain(f"no {model} on {task} in this run; showing {shown}"))
    model, task = (fitting or known)[0]
    prompts, n_layers = run.prompts(model, task), run.n_layers(model)
    recorded = [cell.get("n_prompts", 0) for cell in run.cells(model, task).values()]
    n_prompts = len(prompts) or max(recorded, default=0)
    limits = {"ex": max(1, n_prompts)} | ({} if n_layers is None else {"layer": n_layers + 1})
    selection = selection.within(limits)
    tokens = tokens_of(run, model, task, selection.ex or 0)
    if tokens:
        selection = selection.within({"token": len(tokens)})
    for bad in selection.bad:
        st.warning(plain(bad))
    return Selected(run, replace(selection, bad=()), model, task, prompts, tokens)


def _expected(run: ViewedRun) -> set[Cell]:
    return {*cells_asked(run.info["config"])}


def _wait(name: str) -> None:
    """Refresh until the run has made progress."""
    before = len(find_run(root_folder(), name).info["cells"])

    @st.fragment(run_every="2s")
    def look() -> None:
        try:
            if len(find_run(root_folder(), name).info["cells"]) != before:
                st.rerun()
        except RunError:
            return  # it is being written

    look()


# What is missing


def _say_missing(here: Selected, missing: Missing) -> None:
    for cell, info in missing.cells.items():
        st.error(f"{plain(cell.path)} {info['status']}: {plain(info.get('error', ''))}")
        if info.get("traceback"):
            with st.expander("What happened"):
                st.code(info["traceback"], language=None)
    st.info(
        f"This page shows {' or '.join(plain(name) for name in missing.analyses)}. This makes it:"
    )
    st.code(command(here, missing.analyses[0]), language=None)


def command(here: Selected, analysis: str) -> str:
    """Return the command that makes an analysis of this model and task."""
    folder = here.run.folder
    flags = {
        "model": here.model,
        "task": here.task,
        "analysis": analysis,
        "out": str(folder.parent / f"{folder.name}-{analysis}"),
        "n": here.run.info["config"].get("n"),
    }
    words = [[f"--{name}", str(value)] for name, value in flags.items() if value]
    return shlex.join(["interp", "run", *chain.from_iterable(words)])
