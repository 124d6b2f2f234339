"""Two runs, or two prompts, side by side: one colour scale, and the difference."""

from dataclasses import replace
from types import ModuleType

import numpy as np
import pandas as pd
import streamlit as st

from interp.errors import RunError
from interp_viewer import menu
from interp_viewer.grid import Grid
from interp_viewer.listing import summaries
from interp_viewer.pane import pane, picture, selected_cell
from interp_viewer.reading import ViewedRun, find_run
from interp_viewer.selected import Missing, Selected, tokens_of
from interp_viewer.text import number, plain
from interp_viewer.widgets import choose, option

TITLE = "Compare"


def page(here: Selected) -> None:
    """Draw this run's grid, the one it is compared with, and their difference."""
    builders = _builders()
    measured = [name for name, (_, needed) in builders.items() if any(map(here.labels, needed))]
    if not measured:
        raise Missing(tuple(builders), {})
    left, right = st.columns(2)
    with left:
        analysis = option(here, "Analysis", measured, field="node")
        builder, _ = builders[analysis]
        of = option(here, "What", builder.choices(here))
    with right:
        other = _other(here)
    if other is None:
        st.info("Choose another run, or another prompt, to compare with.")
        return
    try:
        grids: list[Grid] = [builder.grid(side, of) for side in (here, other)]
    except Missing:
        st.warning(plain(f"{other.run.id} has no {analysis} of {other.model} on {other.task}"))
        return
    _warn(here, other, grids)
    names = [_name(here, other, side) for side in (here, other)]
    _side_by_side(here, grids, names)
    shapes = [grid.values.shape for grid in grids]
    if shapes[0] == shapes[1]:
        difference = _difference(grids, title=f"{names[0]} minus {names[1]}")
        pane(here, difference, key="compare-difference")
        _ranked(difference)
    else:
        st.info(
            f"The grids have {shapes[0]} and {shapes[1]} cells,"
            " so no cell has a counterpart; below, means over depth."
        )
        _over_depth(grids, names)


def _builders() -> dict[str, tuple[ModuleType, tuple[str, ...]]]:
    """Map what can be compared to the page's module and the analyses of which one is needed."""
    modules = [entry.module for entry in menu.entries().values()]
    compared = [(module, module.COMPARED) for module in modules if hasattr(module, "COMPARED")]
    return {needed[0]: (module, needed) for module, needed in compared}


def _side_by_side(here: Selected, grids: list[Grid], names: list[str]) -> None:
    """Draw both grids on one colour scale."""
    top = max(grid.range[1] for grid in grids)
    for i, (grid, column) in enumerate(zip(grids, st.columns(2), strict=True)):
        with column:
            shown = replace(grid, title=f"{names[i]}: {grid.title}", top=top, threshold=None)
            picture(here, shown, key=f"compare-{i}")
            cell = selected_cell(here, shown)
            if cell is not None:
                st.markdown(f"Selected: **{plain(number(float(shown.values[cell])))}**")


def _difference(grids: list[Grid], *, title: str) -> Grid:
    """Return the first grid minus the second, over the rows and columns that both have."""
    first, second = grids
    of_one = dict.fromkeys(("low", "high", "n", "texts", "threshold", "top"))
    return replace(
        first,
        title=title,
        values=first.values - second.values,
        is_signed=True,
        notes=(),
        **of_one,
    )


def _other(here: Selected) -> Selected | None:
    """Return what is compared: "RUN" or "RUN:PROMPT", chosen by two boxes."""
    name, prompt = here.selection.cmp, ""
    if ":" in name:
        name, _, prompt = name.rpartition(":")
    readable = [summary.id for summary in summaries(here.run.root) if not summary.error]
    if name and name not in readable:
        st.warning(plain(f"no run {name} to compare with; there is {', '.join(readable[:20])}"))
        name = ""
    at = readable.index(name) if name else None

    def choose_run(i: int) -> None:
        here.select(cmp=f"{readable[i]}:{here.ex}")

    choose("Compare with run", readable, at, choose_run, key="cmp-run")
    if not name:
        return None
    run = find_run(here.run.root, name)
    model, task = _counterpart(here, run)
    prompts = run.prompts(model, task)
    n = max(1, len(prompts))
    ex = int(prompt) if prompt.isdecimal() and int(prompt) < n else min(here.ex, n - 1)
    names = [f"{i}: {p.get('id', '')}" for i, p in enumerate(prompts)] or ["0"]
    choose("and prompt", names, ex, lambda i: here.select(cmp=f"{name}:{i}"), key="cmp-ex")
    selection = here.selection.moved(run=name, model=model, task=task, ex=ex)
    selection = replace(selection, of=here.selection.of, node=here.selection.node)
    return Selected(run, selection, model, task, prompts, tokens_of(run, model, task, ex))


def _counterpart(here: Selected, run: ViewedRun) -> tuple[str, str]:
    """Return a run's closest model and task: the same two, else the same task, else the first."""
    known = run.models_and_tasks
    if not known:
        raise RunError(f"{run.id} has nothing measured yet")
    if (here.model, here.task) in known:
        return here.model, here.task
    return next((each for each in known if each[1] == here.task), known[0])


def _name(here: Selected, other: Selected, side: Selected) -> str:
    words = [side.run.id] if here.run.id != other.run.id else []
    words += [side.model] if here.model != other.model else []
    return " ".join([*words, f"prompt {side.ex}"])


def _warn(here: Selected, other: Selected, grids: list[Grid]) -> None:
    both = here.tokens and other.tokens and here.tokens != other.tokens
    if both and "token" in grids[0].cols.keys:
        st.warning("The two prompts have different tokens; columns are compared by position.")
    if here.model != other.model:
        st.warning(plain(f"Two models: {here.model} and {other.model}."))


def _ranked(difference: Grid) -> None:
    """List the cells that differ most."""
    values = np.abs(np.nan_to_num(difference.values))
    best = np.argsort(-values, axis=None, kind="stable")[:20]
    rows, cols = np.unravel_index(best, values.shape)
    frame = pd.DataFrame(
        {
            difference.rows.name: [difference.rows.labels[i] for i in rows],
            difference.cols.name: [difference.cols.labels[i] for i in cols],
            "difference": difference.values[rows, cols],
        }
    )
    st.markdown("**The largest differences**")
    st.dataframe(frame, hide_index=True)


def _over_depth(grids: list[Grid], names: list[str]) -> None:
    """Draw each grid's mean over columns against the share of depth."""
    rows = []
    for grid, name in zip(grids, names, strict=True):
        with np.errstate(invalid="ignore"):
            means = np.array(
                [np.nanmean(row) if np.isfinite(row).any() else np.nan for row in grid.values]
            )
        depth = np.linspace(0, 100, len(means))
        rows.append(pd.DataFrame({"share of depth, %": depth, "mean": means, "of": name}))
    st.line_chart(pd.concat(rows), x="share of depth, %", y="mean", color="of")
