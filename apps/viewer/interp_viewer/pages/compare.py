"""Two runs, or two prompts, side by side: one colour scale, and the difference."""

import shlex
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from interp.errors import RunError
from interp.figures.plots import lines_over_depth
from interp.runs.kept import kept_comparisons
from interp_viewer import menu
from interp_viewer.grid import Grid
from interp_viewer.lines import draw_figure
from interp_viewer.listing import summaries
from interp_viewer.pane import mirrors, picture, selected_cell
from interp_viewer.reading import ViewedRun, find_run
from interp_viewer.selected import Missing, Selected, tokens_of
from interp_viewer.text import number, plain, prompt_named
from interp_viewer.widgets import choose, controls, option

TITLE = "Compare"
_DEPTH = "share of depth, %"
_BELOW = 84  # pixels: the selected cell, and notes


def page(here: Selected) -> None:
    """Draw this run's grid, the one it is compared with, and their difference, side by side."""
    builders = _builders()
    measured = [name for name, (_, needed) in builders.items() if any(map(here.labels, needed))]
    if not measured:
        raise Missing(tuple(builders), {})
    with controls():
        analysis = option(here, "Analysis", measured, field="node", width=220)
        builder, _ = builders[analysis]
        of = option(here, "What", builder.choices(here))
        other = _other(here)
    if other is None:
        st.info("Choose another run, or another prompt, to compare with.")
        _over_all_prompts(here, None, analysis)
        return
    try:
        grids: list[Grid] = [builder.grid(side, of) for side in (here, other)]
    except Missing:
        st.warning(plain(f"{other.run.id} has no {analysis} of {other.model} on {other.task}"))
        return
    _side_by_side(here, grids, [_name(here, other, side) for side in (here, other)])
    for word in _doubts(here, other, grids):
        st.caption(plain(word))
    is_same = (here.run.id, here.model) == (other.run.id, other.model)
    _over_all_prompts(here, None if is_same else other, analysis)


def _builders() -> dict[str, tuple[ModuleType, tuple[str, ...]]]:
    """Map what can be compared to the page's module and the analyses of which one is needed."""
    modules = [entry.module for entry in menu.entries().values()]
    compared = [(module, module.COMPARED) for module in modules if hasattr(module, "COMPARED")]
    return {needed[0]: (module, needed) for module, needed in compared}


def _side_by_side(here: Selected, grids: list[Grid], names: list[str]) -> None:
    """Draw both grids on one colour scale, and beside them how they differ, with one selection."""
    top = max(grid.range[1] for grid in grids)
    shown = [
        replace(grid, title=name, top=top, threshold=None)
        for grid, name in zip(grids, names, strict=True)
    ]
    first, second, third = st.columns(3)
    if is_same := grids[0].values.shape == grids[1].values.shape:
        shown.append(_difference(shown, title=f"{names[0]} minus {names[1]}"))
    for i, (grid, column) in enumerate(zip(shown, (first, second, third), strict=False)):
        with column:
            picture(here, grid, key=f"compare-{i}", below=_BELOW)
    if not is_same:
        with third:
            _over_depth(grids, names)
    _selected(here, shown)
    st.caption(plain(" ".join(_notes(shown))))
    if is_same:
        with st.expander("The largest differences"):
            _ranked(shown[-1])


def _notes(shown: list[Grid]) -> list[str]:
    """Return the grids' captions; those that not both runs have, with the name of their grid."""
    captions = {grid.title: grid.captions() for grid in shown}
    common = [word for word in shown[0].captions() if word in shown[1].captions()]
    of_one = [
        f"{name}: {word}"
        for name, words in captions.items()
        for word in words
        if word not in common
    ]
    return [*common, *of_one]


def _selected(here: Selected, shown: list[Grid]) -> None:
    """Draw the boxes that select a cell, and what each grid holds there."""
    with st.container(key="controls-cell", horizontal=True, vertical_alignment="center"):
        mirrors(here, shown[0], key="compare", width=230)
        cells = [selected_cell(here, grid) for grid in shown]
        values = [
            f"{grid.title}: {number(float(grid.values[cell]))}"
            for grid, cell in zip(shown, cells, strict=True)
            if cell is not None
        ]
        st.markdown(
            f"**{plain(' · '.join(values))}**"
            if values
            else "Click a cell in any of them, or choose its row and column here."
        )


def _difference(grids: list[Grid], *, title: str) -> Grid:
    """Return the first grid minus the second; what is beyond their scale is beyond its own."""
    first, second = grids
    values = first.values - second.values
    finite = np.abs(values[np.isfinite(values)])
    top = float(min(first.range[1], finite.max())) if finite.any() else None
    of_one = dict.fromkeys(("low", "high", "n", "text_at", "threshold"))
    return replace(
        first,
        title=title,
        values=values,
        top=top,
        is_signed=True,
        notes=(),
        **of_one,
    )


def _other(here: Selected) -> Selected | None:
    """Return what is compared: "RUN" or "RUN:PROMPT", chosen by two boxes."""
    name, number_of = here.selection.cmp, ""
    if ":" in name:
        name, _, number_of = name.rpartition(":")
    readable = [summary.id for summary in summaries(here.run.root) if not summary.error]
    if name and name not in readable:
        st.warning(plain(f"no run {name} to compare with; there is {', '.join(readable[:20])}"))
        name = ""
    at = readable.index(name) if name else None

    def choose_run(i: int) -> None:
        here.select(cmp=f"{readable[i]}:{here.ex}")

    choose("With run", readable, at, choose_run, key="cmp-run", width=260)
    if not name:
        return None
    run = find_run(here.run.root, name)
    model, task = _counterpart(here, run)
    prompts = run.prompts(model, task)
    n = max(1, len(prompts))
    ex = int(number_of) if number_of.isdecimal() and int(number_of) < n else min(here.ex, n - 1)
    names = [prompt_named(i, prompt) for i, prompt in enumerate(prompts)] or ["0"]
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


def _doubts(here: Selected, other: Selected, grids: list[Grid]) -> list[str]:
    """Return why cells at the same place may not be comparable."""
    doubts = []
    both = here.tokens and other.tokens and here.tokens != other.tokens
    if both and "token" in grids[0].cols.keys:
        doubts.append("The two prompts have different tokens; columns are compared by position.")
    if here.model != other.model:
        doubts.append(f"Two models: {here.model} and {other.model}.")
    return doubts


def _over_all_prompts(here: Selected, other: Selected | None, analysis: str) -> None:
    """Show the comparisons that `interp compare --keep` left in this run, and how to make one."""
    kept = [one for one in kept_comparisons(here.run.folder) if one["analysis"] == analysis]
    if kept or other is not None:
        with st.expander("Over all prompts: what differs, with intervals", expanded=bool(kept)):
            _draw_kept(kept, analysis)
            if other is not None:
                _say_how(here, other, analysis)


def _draw_kept(kept: list[dict[str, Any]], analysis: str) -> None:
    for one in kept:
        for finding in one["findings"]:
            st.markdown(f"**{plain(finding['claim'])}**")
            st.caption(plain(finding.get("note", "")))
        figure = go.Figure(one["figure"], skip_invalid=True)
        draw_figure(figure, key=one["id"], alt=f"How {analysis} differs between runs, by layer")


def _say_how(here: Selected, other: Selected, analysis: str) -> None:
    sides = [f"{side.run.folder}:{side.model}" for side in (here, other)]
    st.caption("No model is loaded for this; both runs have to ask the same of the same prompts:")
    words = ["interp", "compare", *sides, "--analysis", analysis, "--keep"]
    st.code(shlex.join(words), language="sh")


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
    st.dataframe(frame, hide_index=True)


def _over_depth(grids: list[Grid], names: list[str]) -> None:
    """Draw each grid's mean over columns against the share of depth."""
    st.caption(
        f"The grids have {grids[0].values.shape} and {grids[1].values.shape} cells,"
        " so no cell has a counterpart."
    )
    rows = []
    for grid, name in zip(grids, names, strict=True):
        with np.errstate(invalid="ignore"):
            means = np.array(
                [np.nanmean(row) if np.isfinite(row).any() else np.nan for row in grid.values]
            )
        depth = np.linspace(0, 100, len(means))
        rows.append(pd.DataFrame({_DEPTH: depth, "mean": means, "of": name, "panel": "mean"}))
    title = "Means over depth"
    frame = pd.concat(rows, ignore_index=True)
    figure = lines_over_depth(frame, x=_DEPTH, y="mean", groups="of", panels="panel", title=title)
    alt = f"{title} of both grids; the numbers are on the page “Data”"
    draw_figure(figure.update_layout(height=320), key="means-over-depth", alt=alt)
