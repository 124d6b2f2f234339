"""Until which layer a token matters for the answer, by erasure and integrated gradients."""

import numpy as np

from interp.runs.folder import Cell
from interp_viewer.about import about
from interp_viewer.grid import Axis, Grid, Values
from interp_viewer.lines import stored
from interp_viewer.pane import pane
from interp_viewer.positions import over_positions, token_axis
from interp_viewer.selected import Selected
from interp_viewer.widgets import controls, mean_or_prompt, option

TITLE = "Erasure and gradients"
COMPARED = ("residual_erasure", "integrated_gradients")
SHOWN = {
    "position.output": "one position erased: change of the probabilities (L2)",
    "position.answer": "one position erased: fall of the answer's probability",
    "prefix.output": "all but the first up to a position erased: change of the probabilities (L2)",
    "prefix.answer": "all but the first up to a position erased: fall of the answer's probability",
}
GRADIENTS = "integrated gradients: attribution"


def choices(here: Selected) -> list[str]:
    """Return what was measured."""
    measured = []
    if here.labels("residual_erasure"):
        names = here.measured(here.cell("residual_erasure")).names
        measured += [shown for name, shown in SHOWN.items() if name in names]
    if here.labels("integrated_gradients"):
        measured.append(GRADIENTS)
    if not measured:
        here.cell("residual_erasure", "integrated_gradients")
    return measured


def _measured(here: Selected, of: str) -> tuple[Cell, str, dict[str, str]]:
    """Return an effect's analysis, its tensor, and what its rows in the table have."""
    if of == GRADIENTS:
        return here.cell("integrated_gradients"), "attribution", {"measure": "attribution"}
    name = next(name for name, shown in SHOWN.items() if shown == of)
    rows = dict(zip(("scope", "effect"), name.split("."), strict=True))
    return here.cell("residual_erasure"), name, rows


def _layers(here: Selected, of: str) -> list[int]:
    """Return the layers before which an effect was measured: all, or every few."""
    cell, _, rows = _measured(here, of)
    frame = here.run.frame(cell)
    for column, value in rows.items():
        frame = frame[frame[column] == value]
    return sorted(int(layer) for layer in frame["layer"].dropna().unique())


def grid(here: Selected, of: str) -> Grid:
    """Return one effect [layer token], of a prompt or as the mean over prompts."""
    of = of if of in (known := choices(here)) else known[0]
    is_signed = of == GRADIENTS or "answer" in of
    cell, name, rows = _measured(here, of)
    if here.is_over_all:
        title = f"{of}, mean over prompts"
        return over_positions(here, cell, rows, title=title, is_signed=is_signed)
    measured, layers = here.measured(cell), _layers(here, of)
    values = measured.of_prompt(name, here.ex)[layers]
    if "n_pos" in measured.names:
        values = values[:, : int(measured.of_prompt("n_pos", here.ex))]
    return Grid(
        f"{of}, prompt {here.ex}",
        values.astype(np.float32),
        Axis("before layer", tuple(map(str, layers)), tuple(layers), ("layer",)),
        token_axis(here, values.shape[1]),
        is_signed=is_signed,
    )


def page(here: Selected) -> None:
    """Draw the grid, and the analysis's own figure."""
    with controls():
        of = option(here, "Effect", choices(here))
        mean_or_prompt(here)
    cell, name, _ = _measured(here, of)
    measured, layers = here.measured(cell), _layers(here, of)

    def at_cell(row: int, col: int) -> Values:
        return measured.at(name, layers[row], col)

    pane(here, grid(here, of), key="erasure", at_cell=None if here.is_over_all else at_cell)
    about(here, *COMPARED)
    stored(here, cell)
