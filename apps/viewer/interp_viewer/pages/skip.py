"""What breaks when a layer is skipped: later layers, the output, the answer."""

from dataclasses import dataclass

import numpy as np

from interp.figures.words import ALL, ALL_BUT_FIRST
from interp_viewer.about import about
from interp_viewer.grid import Axis, Grid, Values
from interp_viewer.lines import lines
from interp_viewer.pane import pane
from interp_viewer.selected import Selected
from interp_viewer.widgets import controls, mean_or_prompt, option

TITLE = "Layer skip"
COMPARED = ("layer_skip",)
_SCOPES = {
    "future": "future tokens",
    "direct": "direct",
    "direct_future": "direct, future tokens",
}
STATISTICS = {"mean": "mean over positions", "max": "largest over positions"}
_EFFECTS = {
    "output": "change of the probabilities (L2)",
    "log_prob": "loss of the answer's log-probability (nats)",
    "accuracy": "accuracy after the skip",
}


@dataclass(frozen=True)
class Effect:
    """A scope and a statistic, or the first scope minus this one."""

    scope: str
    statistic: str
    everywhere: str
    is_difference: bool = False

    @property
    def name(self) -> str:
        """Return the effect's name in the menu."""
        minus = f"{self.everywhere} minus " if self.is_difference else ""
        return f"{minus}{self.shown} ({STATISTICS[self.statistic]})"

    @property
    def shown(self) -> str:
        """Return what the scope is called."""
        return _SCOPES.get(self.scope, self.everywhere)


def choices(here: Selected) -> list[str]:
    """Return what was measured, and how the other scopes differ from all positions."""
    return [effect.name for effect in effects(here)]


def effects(here: Selected) -> list[Effect]:
    """Return the effects to choose from."""
    cell = here.cell("layer_skip")
    names, asked = here.measured(cell).names, here.info(cell)["parameters"]
    # interp 0.1 had no such parameter and spared position 0
    skipped = asked.get("skipped_positions", "all but the first")
    everywhere = ALL if skipped == "all" else ALL_BUT_FIRST
    scopes = [scope for scope in ("all", *_SCOPES) if f"{scope}.max" in names]
    plain = [Effect(scope, of, everywhere) for of in STATISTICS for scope in scopes]
    return [*plain, *(Effect(s, "mean", everywhere, is_difference=True) for s in scopes[1:])]


def grid(here: Selected, of: str) -> Grid:
    """Return the effect of every skipped layer on every later one [skipped affected]."""
    known = effects(here)
    choice = next((effect for effect in known if effect.name == of), known[0])
    values, low, high, n_prompts = _values(here, choice.scope, choice.statistic)
    if choice.is_difference:
        values, low, high = _values(here, "all", choice.statistic)[0] - values, None, None
    n = len(values)
    is_later = np.triu(np.ones((n, n), bool), 1)
    over = (
        "mean over prompts"
        if here.is_over_all and choice.statistic == "mean"
        else f"prompt {here.ex}"
    )
    over = "largest over prompts" if here.is_over_all and choice.statistic == "max" else over
    return Grid(
        f"Relative change of a layer's write when another is skipped: {choice.name}; {over}",
        np.where(is_later, values, np.nan).astype(np.float32),
        Axis.of("skipped layer", n, "src", "layer"),
        Axis.of("affected layer", n, "tgt"),
        is_signed=choice.is_difference,
        top=None if choice.is_difference else 1.0,
        missing="a layer before the skipped one cannot be affected",
        low=low,
        high=high,
        n=n_prompts,
        notes=(f"The second half of the depth begins at layer {n // 2}.",),
    )


def _values(
    here: Selected, scope: str, statistic: str
) -> tuple[Values, Values | None, Values | None, Values | None]:
    """Return values, interval and number of prompts [skipped affected], of one prompt or all."""
    cell = here.cell("layer_skip")
    if not here.is_over_all:
        return here.measured(cell).of_prompt(f"{scope}.{statistic}", here.ex), None, None, None
    frame = here.run.frame(cell)
    rows = frame[(frame["scope"] == scope) & (frame["effect"] == "layer")]
    at = rows["skipped"].astype(int), rows["affected"].astype(int)
    n = int(at[0].max()) + 1
    grids = {}
    for column in (statistic, "low", "high"):
        grids[column] = np.full((n, n), np.nan, np.float32)
        grids[column][at] = rows[column]
    is_mean = statistic == "mean"
    n_prompts = np.full((n, n), here.info(cell)["n_prompts"], np.float32)
    return (
        grids[statistic],
        grids["low"] if is_mean else None,
        grids["high"] if is_mean else None,
        n_prompts,
    )


def page(here: Selected) -> None:
    """Draw the grid, and what every skipped layer does to the output."""
    cell = here.cell("layer_skip")
    with controls():
        of = option(here, "Effect", choices(here))
        mean_or_prompt(here)
    choice = next(effect for effect in effects(here) if effect.name == of)
    measured = here.measured(cell)
    name = f"{choice.scope}.{choice.statistic}"
    pane(
        here,
        grid(here, of),
        key="skip",
        at_cell=None if choice.is_difference else lambda row, col: measured.at(name, row, col),
    )
    about(here, "layer_skip")
    frame = here.run.frame(cell)
    rows = frame[(frame["scope"] == choice.scope) & frame["effect"].isin(list(_EFFECTS))]
    layers, panels = rows["skipped"].astype(int), rows["effect"].map(_EFFECTS)
    lines(
        here,
        rows.assign(layer=layers, line="mean over prompts", panel=panels),
        title=f"What skipping a layer does to the output ({choice.shown})",
        key="skip-lines",
        marked="src",
    )
