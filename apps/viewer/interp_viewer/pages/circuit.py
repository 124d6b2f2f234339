"""A circuit as a graph, or the scores of its nodes by layer and token."""

from typing import Any

import numpy as np

from interp.errors import RunError
from interp_viewer.about import about
from interp_viewer.graph import choose_k, draw_circuit
from interp_viewer.grid import Axis, Grid
from interp_viewer.pane import pane
from interp_viewer.positions import over_positions, token_axis
from interp_viewer.selected import Selected
from interp_viewer.widgets import controls, mean_or_prompt, one_of, option
from interp_viewer.wiring import read_wires

TITLE = "Circuit"
COMPARED = ("relevance_patching", "activation_patching")
EDGES = "edges between components"


def page(here: Selected) -> None:
    """Draw the circuit, or the scores of nodes by layer and token."""
    edges = [EDGES] if here.labels("circuit_discovery") else []
    if not edges and not any(map(here.labels, COMPARED)):
        here.cell("circuit_discovery", *COMPARED)
    with controls():
        of = option(here, "Show", [*edges, *_scores(here)])
        if is_graph := of == EDGES:
            over = {"all": "mean over all", "this prompt": "this prompt"}
            one_of(here, "Over", over, field="over")
            wires = read_wires(here)
            k = choose_k(here, wires)
        else:
            mean_or_prompt(here)
    if is_graph:
        draw_circuit(here, wires, k)
    else:
        pane(here, grid(here, of), key="nodes", at_cell=_at_cell(here, of))
    about(here, *COMPARED)


def choices(here: Selected) -> list[str]:
    """Return "METHOD NODE" of every score; units (heads, neurons) are summed."""
    if scores := _scores(here):
        return scores
    here.cell(*COMPARED)
    raise RunError("there are no scores")


def _scores(here: Selected) -> list[str]:
    scores = []
    for analysis in ("relevance_patching", "activation_patching"):
        if here.labels(analysis):
            names = here.measured(here.cell(analysis)).names
            skip = ("last", "n_pos", "base", "source")
            scores += [
                name if analysis == "relevance_patching" else f"exact {name}"
                for name, (_, shape) in names.items()
                if name not in skip and len(shape) in (3, 4)  # [prompt layer pos (unit)]
            ]
    return scores


def _source(here: Selected, of: str) -> tuple[Any, str]:
    analysis = "activation_patching" if of.startswith("exact ") else "relevance_patching"
    return here.cell(analysis), of.removeprefix("exact ")


def grid(here: Selected, of: str) -> Grid:
    """Return a score [layer token], summed over heads and neurons."""
    of = of if of in (known := choices(here)) else known[0]
    cell, name = _source(here, of)
    measured = here.measured(cell)
    values = measured.of_prompt(name, here.ex)
    has_units = values.ndim == 3
    if here.is_over_all and not has_units:
        method, _, node = name.partition(" ") if not of.startswith("exact ") else ("", "", name)
        where = {"node": node} | ({"method": method} if method else {})
        return over_positions(here, cell, where, title=f"{of}, mean over prompts", is_signed=True)
    values = values[:, : int(measured.of_prompt("n_pos", here.ex))]
    notes = ("Scores of heads (or neurons) are summed.",) if has_units else ()
    if here.is_over_all:
        notes = (*notes, "Units have no mean over prompts here; this is the selected prompt.")
    return Grid(
        f"{of}, prompt {here.ex}",
        (values.sum(-1) if has_units else values).astype(np.float32),
        Axis.of("layer", len(values), "layer"),
        token_axis(here, values.shape[1]),
        is_signed=True,
        notes=notes,
    )


def _at_cell(here: Selected, of: str) -> Any:
    cell, name = _source(here, of)
    measured = here.measured(cell)
    has_units = len(measured.names[name][1]) == 4
    return None if here.is_over_all or has_units else lambda row, col: measured.at(name, row, col)
