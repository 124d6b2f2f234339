"""Which layers leave a token's norm alone, and what skipping them does."""

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from interp_viewer.about import about
from interp_viewer.grid import Axis, Grid
from interp_viewer.lines import stored
from interp_viewer.pane import pane
from interp_viewer.positions import token_axis
from interp_viewer.selected import Selected
from interp_viewer.widgets import controls, one_of

TITLE = "Voids"
COMPARED = ("void_detection",)
ASKS = ("void_detection", "void_skip")
PHASES = {"prompt": "prompt.norms", "response": "response.norms"}
# of layers with nothing before them: active whatever the threshold, unless they shorten the stream
_ALWAYS = 99.0
_NO_TOKEN = 3


def scores(
    norms: NDArray[np.float32], first_range: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Return [layer pos] of norms [tap pos]: a layer's change over the range of those before it.

    A layer is void for a token where this is below alpha ("Void in Language Models", arXiv
    2505.14467). Where there is no range, it is void only if it shortens the stream. `first_range`
    [pos] is the first layer's published range.
    """
    changes = np.diff(norms, axis=0)
    spread = np.maximum.accumulate(changes, axis=0) - np.minimum.accumulate(changes, axis=0)
    before = np.concatenate(
        [np.zeros_like(spread[:1]) if first_range is None else first_range[None], spread[:-1]]
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(before > 0, changes / before, np.where(changes >= 0, _ALWAYS, -_ALWAYS))
    return np.clip(ratios, -_ALWAYS, _ALWAYS).astype(np.float32)


def grid(here: Selected, of: str) -> Grid:
    """Return how active every layer is for every token of a prompt or its response."""
    cell = here.cell("void_detection")
    measured, phase = here.measured(cell), of if of in PHASES else "prompt"
    norms = measured.of_prompt(PHASES[phase], here.ex)
    first = f"{phase}.first_range"
    ratios = scores(norms, measured.of_prompt(first, here.ex) if first in measured.names else None)
    there = measured.of_prompt(f"{phase}.class", here.ex) != _NO_TOKEN
    massive = np.flatnonzero(measured.of_prompt(f"{phase}.massive", here.ex) & there)
    values = np.where(there[None], ratios, np.nan).astype(np.float32)
    alpha = (
        here.selection.thr
        if here.selection.thr is not None
        else float(here.info(cell)["parameters"]["alpha"])
    )
    n_void = int((values < alpha).sum())
    notes = [f"{n_void} of {int(there.sum()) * len(values)} cells are void below {alpha:g}."]
    notes.append(
        f"Where no change came before, {_ALWAYS:g} stands for longer (active),"
        f" −{_ALWAYS:g} for shorter (void)."
    )
    if len(massive):
        notes.append(f"Tokens with massive activations: {', '.join(map(str, massive))}.")
    n = values.shape[1]
    cols = token_axis(here, n) if phase == "prompt" else Axis.of("token of the response", n)
    return Grid(
        "Change of a token's norm by a layer,"
        f" over the range of changes before it ({phase} {here.ex})",
        values,
        Axis.of("layer", len(values), "layer"),
        cols,
        top=2.0,
        missing="no pass has read a token there",
        threshold=("void below", alpha),
        hatched="void",
        notes=tuple(notes),
    )


def choices(here: Selected) -> list[str]:
    """Return the phases that were measured: of the prompt, and of the response."""
    names = here.measured(here.cell("void_detection")).names
    return [phase for phase, name in PHASES.items() if name in names]


def page(here: Selected) -> None:
    """Draw the map of layers and tokens and usage over depth; and what skipping voids does."""
    if here.labels("void_detection"):
        _map(here)
    if here.labels("void_skip"):
        st.subheader("Skipping void layers")
        stored(here, here.cell("void_skip"))
    elif not here.labels("void_detection"):
        here.cell("void_detection", "void_skip")


def _map(here: Selected) -> None:
    with controls():
        of = one_of(here, "Phase", {name: f"of the {name}" for name in choices(here)}, field="of")
    pane(here, grid(here, of), key="voids")
    about(here, "void_detection", "void_skip")
    stored(here, here.cell("void_detection"))
    st.caption(
        "Void cells are grey and hatched;"
        " the slider moves the threshold at once, and the address when it is let go."
    )
