"""What every page has: the run that is open, the selection, the prompt's tokens, and what to say
where something lacks.
"""

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import streamlit as st

from interp.errors import RunError
from interp.runs.folder import Cell, cells_of
from interp_viewer import menu
from interp_viewer.reading import Measured, Run, open_run
from interp_viewer.selection import Selection, select
from interp_viewer.strip import strip, visible
from interp_viewer.text import plain

ROOT = "INTERP_VIEWER_ROOT"
_STYLE = """<style>
[data-testid="stCaptionContainer"] { color: inherit; opacity: 1; }
[data-testid="stMainBlockContainer"] { padding-top: 2.5rem; max-width: 100rem; }
[data-testid="stMainBlockContainer"] h1 { font-size: 1.6rem; padding: 0; }
[data-testid="stColumn"] [data-testid="stColumn"]:has([data-testid="stSelectbox"]) { min-width: 8.5rem; }
@media (max-width: 70rem) {
  [data-testid="stMainBlockContainer"] { padding-left: 1.5rem; padding-right: 1.5rem; }
  [data-testid="stColumn"] { min-width: 15rem; }
}
</style>"""


class Missing(Exception):
    """An analysis that this page needs is not in the run, or failed."""

    def __init__(self, analyses: tuple[str, ...], cells: dict[Cell, dict[str, Any]]) -> None:
        super().__init__(", ".join(analyses))
        self.analyses, self.cells = analyses, cells


@dataclass(frozen=True)
class Here:
    """What a page is about: a run, a model and a task in it, and one of its prompts."""

    run: Run
    selection: Selection
    model: str
    task: str
    prompts: list[dict[str, Any]]
    tokens: tuple[str, ...]

    @property
    def ex(self) -> int:
        """Return the number of the selected prompt; the first, if none is."""
        return self.selection.ex or 0

    @property
    def cells(self) -> dict[Cell, dict[str, Any]]:
        """Return what is recorded of this model and task."""
        return self.run.cells(self.model, self.task)

    @property
    def numbers(self) -> dict[str, int | None]:
        """Return what is selected, by the name of its kind."""
        return {
            name: getattr(self.selection, name) for name in ("layer", "token", "head", "src", "tgt")
        }

    @property
    def is_over_all(self) -> bool:
        """Tell whether means over prompts are asked for."""
        return self.selection.over == "all"

    def labels(self, analysis: str) -> list[str]:
        """Return the labels under which an analysis is finished."""
        return [
            cell.label
            for cell, info in self.cells.items()
            if cell.analysis == analysis and info["status"] == "ok"
        ]

    def cell(self, *analyses: str) -> Cell:
        """Return the finished cell of the first of these analyses; raise Missing where there is
        none.
        """
        for analysis in analyses:
            if labels := self.labels(analysis):
                label = self.selection.label if self.selection.label in labels else labels[0]
                asked = Cell(self.model, self.task, analysis, label)
                return next(cell for cell in self.cells if cell == asked)  # which knows its folder
        raise Missing(
            analyses, {cell: info for cell, info in self.cells.items() if cell.analysis in analyses}
        )

    def info(self, cell: Cell) -> dict[str, Any]:
        """Return what run.json says of a cell."""
        return self.cells[cell]

    def measured(self, cell: Cell) -> Measured:
        """Return a cell's tensors."""
        return self.run.measured(cell)

    def at(self, **changes: Any) -> "Here":
        """Return the same place with another selection; another prompt has other tokens."""
        moved = replace(self, selection=self.selection.moved(**changes))
        return (
            replace(moved, tokens=tokens_of(self.run, self.model, self.task, moved.ex))
            if "ex" in changes
            else moved
        )

    def select(self, **changes: Any) -> None:
        """Move the selection, which is the address."""
        select(self.selection.moved(**changes))

    def token_label(self, i: int) -> str:
        """Return a token's number and text."""
        return f"{i} {visible(self.tokens[i])}" if 0 <= i < len(self.tokens) else str(i)


def root_folder() -> Path:
    """Return the folder whose runs are shown."""
    return Path(os.environ.get(ROOT, "runs"))


def show(name: str, body: Callable[[Here], None]) -> None:
    """Draw a page about a run."""
    selection = begin(name)
    if not selection.run:
        st.info("No run is open. Choose one on the page “Runs”.")
        return
    try:
        here = _here(selection)
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
    _explain(here, menu.BY_NAME[name].analyses)
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
    st.title(menu.BY_NAME[name].title)
    selection = Selection.read(st.query_params)
    if name in ("runs", "live") or not selection.run:
        _navigate(selection, None)
    for bad in selection.bad:
        st.warning(plain(bad))
    return selection


def refuse(error: RunError) -> None:
    """Say why something cannot be shown."""
    st.error(plain(error))


# Where we are


def _here(selection: Selection) -> Here | None:
    run = open_run(root_folder(), selection.run)
    pairs = run.pairs
    if not pairs:
        return None
    wanted = [
        pair
        for pair in pairs
        if selection.model in ("", pair[0]) and selection.task in ("", pair[1])
    ]
    if not wanted:
        st.warning(
            plain(
                f"no {selection.model} on {selection.task} in this run; showing {pairs[0][0]} on"
                f" {pairs[0][1]}"
            )
        )
    model, task = wanted[0] if wanted else pairs[0]
    prompts = run.prompts(model, task)
    n_prompts = len(prompts) or max(
        (cell.get("n_prompts", 0) for cell in run.cells(model, task).values()), default=0
    )
    n_layers = run.n_layers(model)
    limits = {"ex": max(1, n_prompts)} | ({} if n_layers is None else {"layer": n_layers + 1})
    selection = selection.within(limits)
    tokens = tokens_of(run, model, task, selection.ex or 0)
    if tokens:
        selection = selection.within({"token": len(tokens)})
    for bad in selection.bad:
        st.warning(plain(bad))
    return Here(run, replace(selection, bad=()), model, task, prompts, tokens)


def tokens_of(run: Run, model: str, task: str, ex: int) -> tuple[str, ...]:
    """Return the texts of a prompt's tokens; none in a run that keeps none."""
    ids, vocabulary = run.tokens(model, task), run.vocabulary(model)
    if not 0 <= ex < len(ids):
        return ()
    return tuple(vocabulary[i] if i in range(len(vocabulary)) else f"⟨{i}⟩" for i in ids[ex])


def _expected(run: Run) -> set[Cell]:
    config = run.info["config"]
    named = [name.partition("@") for name in config["analyses"]]
    return {
        Cell(m, t, name, label)
        for m in config["models"]
        for t in config["tasks"]
        for name, _, label in named
    }


def _wait(name: str) -> None:
    """Look again until the run has gone on."""
    before = len(open_run(root_folder(), name).info["cells"])

    @st.fragment(run_every="2s")
    def look() -> None:
        try:
            if len(open_run(root_folder(), name).info["cells"]) != before:
                st.rerun()
        except RunError:
            return  # it is being written

    look()


# The bars


def _navigate(selection: Selection, here: Here | None) -> None:
    """Draw the links to all pages; those that this run has nothing for say so."""
    there_is = (
        {cell.analysis for cell, info in here.cells.items() if info["status"] == "ok"}
        if here
        else set()
    )
    params = selection.moved(of="", over="", label="").params()
    with st.sidebar:
        for entry in menu.ENTRIES:
            if here is None and entry.name not in ("runs", "live"):
                continue
            lacks = (
                here is not None
                and bool(entry.analyses)
                and not there_is.intersection(entry.analyses)
            )
            note = f"not in this run: {' or '.join(entry.analyses)}" if lacks else None
            label = f"{entry.title} (not run)" if lacks else entry.title
            st.page_link(entry.page, label=label, query_params=params, help=note)
        if here is None:
            st.caption("Open a run to see its pages.")


def _bar(here: Here) -> None:
    """Draw what is selected, as boxes that can be driven without a mouse, and the prompt's tokens."""
    run, selection = here.run, here.selection
    pairs = [
        f"{model} · {PurePosixPath(task).name}" for model, task in run.pairs
    ]  # a task may be a file
    names = [f"{i}: {prompt.get('id', '')}" for i, prompt in enumerate(here.prompts)] or [
        str(here.ex)
    ]
    st.markdown(f"Run **{plain(run.id)}**")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        at = run.pairs.index((here.model, here.task))
        choose(
            "Model and task", pairs, at, lambda i: here.select(model=run.pairs[i][0], task=run.pairs[i][1]), key="pair",
            width=250,
        )  # fmt: skip
        choose(
            f"Prompt (of {len(names)})",
            names,
            here.ex,
            lambda i: here.select(ex=i),
            key="ex",
            width=250,
        )
        is_last = here.ex + 1 >= len(names)
        st.button(
            "◀",
            help="Previous prompt",
            disabled=here.ex == 0,
            on_click=lambda: here.select(ex=here.ex - 1),
        )
        st.button(
            "▶", help="Next prompt", disabled=is_last, on_click=lambda: here.select(ex=here.ex + 1)
        )
        with st.popover("Link"):
            st.caption("This address shows the same selection again.")
            st.code(f"{(st.context.url or '').split('?')[0]}?{selection.query()}", language=None)
    if here.tokens:
        strip(
            here.tokens,
            key="strip",
            selected=selection.token,
            on_pick=lambda i: here.select(token=i),
        )
    elif here.prompts:
        st.text(here.prompts[here.ex].get("text", ""))
        st.caption("This run keeps no tokens; one of this version does.")


def _explain(here: Here, analyses: tuple[str, ...]) -> None:
    """Say what the page's analyses ask, how, what they found, and how they could mislead."""
    for analysis in analyses:
        if not here.labels(analysis):
            continue
        info = here.info(here.cell(analysis))
        with st.expander(f"**{plain(analysis)}**: {plain(info.get('question', ''))}"):
            said = {"Found": info.get("summary"), "How": info.get("how"), "But": info.get("caveat")}
            st.markdown(
                "\n".join(f"- {word}: {plain(text)}" for word, text in said.items() if text)
            )


def choose(
    label: str,
    options: list[str],
    at: int | None,
    on_choice: Callable[[int], None],
    *,
    key: str,
    width: int | Literal["stretch"] = "stretch",
) -> None:
    """Draw a box to choose one of `options` from, which shows what is selected."""
    st.session_state[key] = at

    def chosen() -> None:
        if st.session_state[key] is not None:
            on_choice(int(st.session_state[key]))

    st.selectbox(
        label, range(len(options)), format_func=lambda i: options[i], key=key, on_change=chosen, placeholder="none",
        width=width,
    )  # fmt: skip


def option(here: Here, label: str, options: list[str], *, field: str = "of") -> str:
    """Draw a box for what the page shows, kept in the address, and return the choice; the first, if
    none fits.
    """
    current = getattr(here.selection, field)
    at = options.index(current) if current in options else 0
    choose(label, options, at, lambda i: here.select(**{field: options[i]}), key=f"{field}-box")
    return options[at]


def finished_cell(here: Here) -> Cell | None:
    """Let one of the finished analyses be chosen, and return its cell; say so, and return None,
    where there is none.
    """
    finished = {
        PurePosixPath(cell.path).name: cell
        for cell, info in here.cells.items()
        if info["status"] == "ok"
    }
    if not finished:
        st.info("No analysis of this model and task is finished.")
        return None
    return finished[option(here, "Analysis", list(finished))]


def mean_or_prompt(here: Here) -> bool:
    """Let one prompt or the mean over prompts be chosen; return whether it is the mean."""
    return option(here, "Over", ["this prompt", "all"], field="over") == "all"


# What is missing


def _say_missing(here: Here, missing: Missing) -> None:
    for cell, info in missing.cells.items():
        st.error(f"{plain(cell.path)} {info['status']}: {plain(info.get('error', ''))}")
        if info.get("traceback"):
            with st.expander("What happened"):
                st.code(info["traceback"], language=None)
    st.info(
        f"This page shows {' or '.join(plain(name) for name in missing.analyses)}. This makes it:"
    )
    st.code(command(here, missing.analyses[0]), language="bash")


def command(here: Here, analysis: str) -> str:
    """Return the command that makes an analysis of this model and task."""
    out = here.run.folder.parent / f"{here.run.folder.name}-{analysis}"
    words = [
        "interp",
        "run",
        "--model",
        here.model,
        "--task",
        here.task,
        "--analysis",
        analysis,
        "--out",
        str(out),
    ]
    if n := here.run.info["config"].get("n"):
        words += ["--n", str(n)]
    return shlex.join(words)
