"""What each sublayer writes to the stream: over depth, and token by token."""

import numpy as np

from interp_viewer.about import about
from interp_viewer.grid import Axis, Grid
from interp_viewer.lines import lines
from interp_viewer.pane import pane
from interp_viewer.positions import token_axis
from interp_viewer.selected import Selected
from interp_viewer.widgets import controls, option

TITLE = "Residual contribution"
COMPARED = ("residual_contribution",)
SIGNED = "cosine with the stream"


def choices(here: Selected) -> list[str]:
    """Return "MEASURE: COMPONENT" in the order in which tensors hold them."""
    frame = here.run.frame(here.cell("residual_contribution"))
    return list(dict.fromkeys(frame["measure"] + ": " + frame["component"]))


def grid(here: Selected, of: str) -> Grid:
    """Return one measure of a prompt [layer token]."""
    cell = here.cell("residual_contribution")
    names = choices(here)
    i = names.index(of) if of in names else 0
    values = here.measured(cell).of_prompt("by_position", here.ex)[..., i]
    return Grid(
        f"{names[i]}, prompt {here.ex}",
        values.astype(np.float32),
        Axis.of("layer", len(values), "layer"),
        token_axis(here, values.shape[1]),
        is_signed=names[i].startswith(SIGNED),
        top=None if names[i].startswith(SIGNED) else _top(values),
        notes=(
            "The first token is often an attention sink; the colour scale does not depend on it.",
        ),
    )


def _top(values: np.ndarray) -> float | None:
    rest = values[:, 1:] if values.shape[1] > 1 else values
    return float(rest.max()) if rest.size and rest.max() > 0 else None


def page(here: Selected) -> None:
    """Draw the grid of tokens, and lines over depth."""
    cell = here.cell("residual_contribution")
    names = choices(here)
    with controls():
        of = option(here, "Measure", names)
    measured, i = here.measured(cell), names.index(of)
    pane(
        here,
        grid(here, of),
        key="residual",
        at_cell=lambda row, col: measured.at("by_position", row, col, i),
    )
    about(here, "residual_contribution")
    measure = of.split(": ")[0]
    frame = here.run.frame(cell)
    rows = frame[frame["measure"] == measure]
    lines(
        here,
        rows.assign(line=rows["component"], panel=rows["positions"]),
        title=f"{measure}, mean over {here.info(cell)['n_prompts']} prompts (band: 95 % interval)",
        key="residual-lines",
    )
