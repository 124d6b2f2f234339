"""What every page has: the menu, the selection, the tokens, and a word on what is missing."""

import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath

import streamlit as st

from interp.errors import RunError
from interp.runs.folder import Cell, cells_asked, cells_of
from interp_viewer import menu
from interp_viewer.claims import draw_findings
from interp_viewer.reading import ViewedRun, find_run
from interp_viewer.selected import Missing, Selected, tokens_of
from interp_viewer.selection import Selection
from interp_viewer.strip import strip
from interp_viewer.text import plain
from interp_viewer.widgets import choose

ROOT = "INTERP_VIEWER_ROOT"
_STYLE = """<style>
[data-testid="stCaptionContainer"] { color: inherit; opacity: 1; }
[data-testid="stMainBlockContainer"] { padding-top: 2.5rem; max-width: 100rem; }
[data-testid="stMainBlockContainer"] h1 { font-size: 1.6rem; padding: 0; }
[data-testid="stColumn"] [data-testid="stColumn"]:has([data-testid="stSelectbox"]) {
  min-width: 8.5rem;
}
@media (max-width: 70rem) {
  [data-testid="stMainBlockContainer"] { padding-left: 1.5rem; padding-right: 1.5rem; }
  [data-testid="stColumn"] { min-width: 15rem; }
}
</style>"""


def root_folder() -> Path:
    """Return the folder whose runs are shown."""
    return Path(os.environ.get(ROOT, "runs"))


def show(name: str, body: Callable[[Selected], None]) -> None:
    """Draw a page about a run."""
    selection = begin(name)
    if not selection.run:
        st.info("No run is open. Choose one on the page “Runs”.")
        return
    try:
        here = _selected(selection)
    except RunError as error:
        _navigate(selection, None)
        refuse(error)
        return
    if here is None:
        _navigate(selection, None)
        st.warning(
            "Nothing has been measured in this run yet. This page looks again every two seconds."
        )
        _wait(selection.run)
        return
    _navigate(here.selection, here)
    _bar(here)
    _explain(here, menu.entries()[name].analyses)
    try:
        body(here)
    except Missing as missing:
        _say_missing(here, missing)
    except RunError as error:
        refuse(error)
    if {*cells_of(here.run.info)} < _expected(here.run):
        _wait(selection.run)


def begin(name: str) -> Selection:
    """Draw what pages without a run have too, and return the selection."""
    st.html(_STYLE)
    st.title(menu.entries()[name].title)
    selection = Selection.read(st.query_params)
    if name in menu.WITHOUT_RUN or not selection.run:
        _navigate(selection, None)
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


# The bars


def _navigate(selection: Selection, here: Selected | None) -> None:
    """Draw the links to all pages, and mark those for which this run has nothing."""
    cells = here.cells if here else {}
    finished = {cell.analysis for cell, info in cells.items() if info["status"] == "ok"}
    params = selection.moved(of="", over="", label="").params()
    with st.sidebar:
        for entry in menu.entries().values():
            if here is None and entry.name not in menu.WITHOUT_RUN:
                continue
            lacks = here and entry.analyses and finished.isdisjoint(entry.analyses)
            note = f"not in this run: {' or '.join(entry.analyses)}" if lacks else None
            label = f"{entry.title} (not run)" if lacks else entry.title
            st.page_link(entry.page, label=label, query_params=params, help=note)
        if here is None:
            st.caption("Open a run to see its pages.")


def _bar(here: Selected) -> None:
    """Draw what is selected, in boxes that need no mouse, and the prompt's tokens."""
    st.markdown(f"Run **{plain(here.run.id)}**")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        _choose_task(here)
        _choose_prompt(here)
        with st.popover("Link"):
            st.caption("This address shows the same selection again.")
            page = (st.context.url or "").split("?")[0]
            st.code(f"{page}?{here.selection.query()}", language=None)
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

    choose("Model and task", names, at, choose_task, key="pair", width=250)


def _choose_prompt(here: Selected) -> None:
    ex = here.ex
    names = [f"{i}: {prompt.get('id', '')}" for i, prompt in enumerate(here.prompts)] or [str(ex)]
    label, is_last = f"Prompt (of {len(names)})", ex + 1 >= len(names)
    choose(label, names, ex, lambda i: here.select(ex=i), key="ex", width=250)
    before, after = (partial(here.select, ex=ex + step) for step in (-1, 1))
    st.button("◀", help="Previous prompt", disabled=ex == 0, on_click=before)
    st.button("▶", help="Next prompt", disabled=is_last, on_click=after)


def _explain(here: Selected, analyses: tuple[str, ...]) -> None:
    """Say what the page's analyses ask, how, what they found, and how they could mislead."""
    for analysis in analyses:
        if not here.labels(analysis):
            continue
        info = here.info(here.cell(analysis))
        with st.expander(f"**{plain(analysis)}**: {plain(info.get('question', ''))}"):
            draw_findings(info)
            method = {"How": info.get("how"), "But": info.get("caveat")}
            st.markdown(
                "\n".join(f"- {word}: {plain(text)}" for word, text in method.items() if text)
            )


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
    st.code(command(here, missing.analyses[0]), language="bash")


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
