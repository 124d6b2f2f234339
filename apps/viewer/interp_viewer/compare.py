"""Two runs, or two prompts, side by side: one colour scale, and the difference."""

from dataclasses import replace

import numpy as np
import pandas as pd
import streamlit as st

from interp.errors import RunError
from interp_viewer.grid import Grid
from interp_viewer.grids import GRIDS, choices
from interp_viewer.pane import pane, picture, selected_cell
from interp_viewer.reading import headers, open_run
from interp_viewer.screen import Here, Missing, choose, option, tokens_of
from interp_viewer.text import number, plain


def page(here: Here) -> None:
    """Draw a grid of here, of what it is compared with, and their difference."""
    there = [name for name in GRIDS if here.labels(name)]
    if not there:
        raise Missing(tuple(GRIDS), {})
    left, right = st.columns(2)
    with left:
        analysis = option(here, "Analysis", there, field="node")
        of = option(here, "What", choices(here, analysis))
    with right:
        other = _other(here)
    if other is None:
        st.info("Choose another run, or another prompt, to compare with.")
        return
    try:
        grids = [GRIDS[analysis](here, of), GRIDS[analysis](other, of)]
    except Missing:
        st.warning(plain(f"{other.run.id} has no {analysis} of {other.model} on {other.task}"))
        return
    _warn(here, other, grids)
    top = max(grid.range[1] for grid in grids)
    names = [_name(here, other, side) for side in (here, other)]
    for i, (grid, column) in enumerate(zip(grids, st.columns(2), strict=True)):
        with column:
            shown = replace(grid, title=f"{names[i]}: {grid.title}", top=top, threshold=None)
            picture(here, shown, key=f"compare-{i}")
            cell = selected_cell(here, shown)
            if cell is not None:
                st.markdown(f"Selected: **{plain(number(float(shown.values[cell])))}**")
    if grids[0].values.shape == grids[1].values.shape:
        title = f"{names[0]} minus {names[1]}"
        plain_values = {
            "low": None,
            "high": None,
            "n": None,
            "texts": None,
            "threshold": None,
            "top": None,
            "notes": (),
        }
        found = replace(
            grids[0],
            title=title,
            values=grids[0].values - grids[1].values,
            is_signed=True,
            lower_is_better=False,
            **plain_values,
        )
        pane(here, found, key="compare-difference")
        _ranked(found)
    else:
        st.info(
            f"The grids have {grids[0].values.shape} and {grids[1].values.shape} cells, so no cell"
            " has a counterpart; below, means over depth."
        )
        _over_depth(grids, names)


def _other(here: Here) -> Here | None:
    """Return what is compared: "RUN" or "RUN:PROMPT", chosen by two boxes."""
    name, _, prompt = (
        here.selection.cmp.rpartition(":")
        if ":" in here.selection.cmp
        else (here.selection.cmp, "", "")
    )
    found = [header.id for header in headers(here.run.root) if not header.error]
    if name and name not in found:
        st.warning(plain(f"no run {name} to compare with; there is {', '.join(found[:20])}"))
        name = ""
    at = found.index(name) if name else None
    choose(
        "Compare with run",
        found,
        at,
        lambda i: here.select(cmp=f"{found[i]}:{here.ex}"),
        key="cmp-run",
    )
    if not name:
        return None
    run = open_run(here.run.root, name)
    pair = next((pair for pair in run.pairs if pair == (here.model, here.task)), None) or next(
        (pair for pair in run.pairs if pair[1] == here.task), run.pairs[0] if run.pairs else None
    )
    if pair is None:
        raise RunError(f"{name} has nothing measured yet")
    prompts = run.prompts(*pair)
    n = max(1, len(prompts))
    ex = int(prompt) if prompt.isdecimal() and int(prompt) < n else min(here.ex, n - 1)
    names = [f"{i}: {p.get('id', '')}" for i, p in enumerate(prompts)] or ["0"]
    choose("and prompt", names, ex, lambda i: here.select(cmp=f"{name}:{i}"), key="cmp-ex")
    selection = here.selection.moved(run=name, model=pair[0], task=pair[1], ex=ex)
    selection = replace(selection, of=here.selection.of, node=here.selection.node)
    return Here(run, selection, *pair, prompts, tokens_of(run, *pair, ex))


def _name(here: Here, other: Here, side: Here) -> str:
    words = [side.run.id] if here.run.id != other.run.id else []
    words += [side.model] if here.model != other.model else []
    return " ".join([*words, f"prompt {side.ex}"])


def _warn(here: Here, other: Here, grids: list[Grid]) -> None:
    if (
        here.tokens
        and other.tokens
        and here.tokens != other.tokens
        and "token" in grids[0].cols.keys
    ):
        st.warning("The two prompts have different tokens; columns are compared by their number.")
    if here.model != other.model:
        st.warning(plain(f"Two models: {here.model} and {other.model}."))


def _ranked(found: Grid) -> None:
    """List the cells that differ most."""
    values = np.abs(np.nan_to_num(found.values))
    best = np.argsort(-values, axis=None, kind="stable")[:20]
    rows, cols = np.unravel_index(best, values.shape)
    frame = pd.DataFrame(
        {
            found.rows.name: [found.rows.labels[i] for i in rows],
            found.cols.name: [found.cols.labels[i] for i in cols],
            "difference": found.values[rows, cols],
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
