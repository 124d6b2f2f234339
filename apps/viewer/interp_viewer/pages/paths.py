"""Which layers the shortest right path of every prompt runs, and all that was tried for one."""

import numpy as np
import streamlit as st

from interp_viewer.about import about
from interp_viewer.grid import Axis, Grid
from interp_viewer.lines import draw_figure
from interp_viewer.pane import picture
from interp_viewer.routes import by_length, route
from interp_viewer.selected import Selected
from interp_viewer.tensors import Measured
from interp_viewer.text import number, shortened
from interp_viewer.tries import KINDS, Tries, path_named
from interp_viewer.widgets import controls, option

TITLE = "Paths"
_LONGEST = 24  # letters of a prompt beside its row


def page(here: Selected) -> None:
    """Draw the layers that every prompt's path runs beside the path and tries of the chosen one."""
    measured = here.measured(here.cell("path_search"))
    tries = {kind: Tries.of(measured, kind) for kind in KINDS}
    with controls():
        kind = option(here, "Shortest right path of", list(KINDS), width=380)
    left, right = st.columns([0.52, 0.48], gap="medium")
    with left:
        picture(here, _usage(here, measured, tries[kind], kind), key="paths")
    with right:
        rows = {measured.number(row): row for row in range(measured.n_prompts)}
        if here.ex in rows:
            _prompt(here, tries, rows[here.ex], kind)
        else:
            st.info(f"Prompt {here.ex} was left out of this analysis; choose another one.")
    about(here, "path_search")


def _usage(here: Selected, measured: Measured, tries: Tries, kind: str) -> Grid:
    """Return how often each prompt's shortest right path runs each layer [prompt layer]."""
    numbers = tuple(measured.number(row) for row in range(measured.n_prompts))
    marks = np.where(tries.is_right[:, 0], "✓", "✗")
    labels = tuple(
        f"{mark} {_named(here, i)}" for mark, i in zip(marks.tolist(), numbers, strict=True)
    )
    return Grid(
        f"How often the shortest right path of {kind} runs each layer",
        tries.usage(),
        Axis("prompt", labels, numbers, ("ex",)),
        Axis.of("layer", tries.n_layers),
        is_upward=False,
        top=2.0,
        missing="no path that was tried is right",
        notes=(
            "Click a row to see its paths; ✓, ✗: the ordinary one is right, wrong.",
            "Dark: skipped; grey: once; yellow: twice or more.",
        ),
    )


def _named(here: Selected, i: int) -> str:
    text = str(here.prompts[i].get("text", "")) if i < len(here.prompts) else ""
    return f"{i} {shortened(text, _LONGEST)}".rstrip()


def _prompt(here: Selected, tries: dict[str, Tries], row: int, kind: str) -> None:
    """Draw the chosen prompt's shortest right path, and all of its tries by length."""
    of = tries[kind]
    n_tries, chosen = of.lengths.shape[1], of.shortest(row)
    if chosen is None:
        st.markdown(f"**Prompt {here.ex}: none of the {n_tries} paths is right ({kind})**")
    else:
        path = of.path(row, chosen)
        named, log_prob = path_named(path), number(float(of.log_prob[row, chosen]))
        figure = route(path, of.n_layers, kind)
        is_ordinary = path == list(range(of.n_layers))
        which = "the ordinary path" if is_ordinary else f"{len(path)} layers, not {of.n_layers}"
        st.markdown(f"**Prompt {here.ex}, shortest right path ({kind}): {which}**")
        draw_figure(figure, key="path", alt=f"The path as blocks: {named}")
        st.caption(f"Layers in order: {named}; log-probability of the answer {log_prob} nats")
    st.markdown(f"**Prompt {here.ex}, all {n_tries} tries of each kind (filled: right)**")
    draw_figure(
        by_length(tries, row, kind),
        key="front",
        alt="Every try by layers run and log-probability; the numbers are on the page “Data”",
    )
