"""What the tidy frame of an analysis says of every layer, as a strip to draw at a glance.

A strip is None where the analysis was asked for something else (other scopes, nodes or alphas).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from interp.figures.words import ALL_BUT_FIRST

Values = NDArray[np.float64]
_VOID = 0.8  # the alpha of voids that is drawn


@dataclass(frozen=True)
class Strip:
    """What one analysis says of every layer: bars, lines or a grid.

    `bars` or `lines` have a value per layer, `grid` [row layer] a row for each of `rows`. `low` and
    `high` are the bars' intervals. `scale` names what is measured; `top` is where a grid's colours
    end, `instead` the same in a unit that every task has.
    """

    title: str
    scale: str
    bars: Values | None = None
    low: Values | None = None
    high: Values | None = None
    lines: Mapping[str, Values] = field(default_factory=dict)
    grid: Values | None = None
    rows: Sequence[str] = ()
    top: float | None = None
    instead: "Strip | None" = None

    @property
    def may_be_0(self) -> NDArray[np.bool_]:
        """Return of which bars the interval includes 0."""
        if self.low is None or self.high is None:
            return np.zeros(0 if self.bars is None else len(self.bars), bool)
        return np.asarray((self.low <= 0) & (self.high >= 0))


def writes(frame: pd.DataFrame) -> Strip | None:
    """Return how much each layer writes."""
    rows = frame[
        (frame["measure"] == "norm relative to the stream") & (frame["component"] == "layer")
    ]
    rows = rows[rows["positions"] == ALL_BUT_FIRST] if "positions" in rows else rows
    return _bars("What it writes", "‖write‖ / ‖stream‖", rows, by="layer")


def needed_now(frame: pd.DataFrame) -> Strip | None:
    """Return what breaks at the answer without each layer."""
    rows, title = frame[frame["scope"] == "all"], "Needed by the answer"
    of_output, of_answer = (rows[rows["effect"] == name] for name in ("output", "log_prob"))
    output = _bars(title, "‖p − p′‖ without it", of_output, by="skipped")
    answer = _bars(title, "nats of the answer lost without it", of_answer, by="skipped")
    return output if answer is None else replace(answer, instead=output)


def needed_later(frame: pd.DataFrame) -> Strip | None:
    """Return what breaks at later tokens: the mean change of what later layers write there."""
    rows = frame[(frame["scope"] == "future") & (frame["effect"] == "layer")]
    if rows.empty:
        return None
    behind = rows[rows["affected"] > rows["skipped"]]
    mean = behind.groupby("skipped")["mean"].mean()
    values = np.full(int(rows["skipped"].max()) + 1, np.nan)
    values[mean.index.to_numpy(int)] = mean.to_numpy(float)
    scale = "change of what later layers write at later tokens (none after the last)"
    return Strip("Needed by later tokens", scale, bars=values)


def decided(frame: pd.DataFrame) -> Strip | None:
    """Return what the lens sees: the final prediction, and the answer."""
    lines = {}
    for measure, name in (("top-5 overlap", "top-5 overlap"), ("answer is first", "answer first")):
        rows = frame[(frame["measure"] == measure) & frame["position"].isna()]
        if len(rows):
            lines[name] = rows.sort_values("layer")["mean"].to_numpy(float)[1:]
    return (
        Strip("Decided", "what the stream after it already predicts", lines=lines)
        if lines
        else None
    )


def used(frame: pd.DataFrame) -> Strip | None:
    """Return for which share of tokens each layer is not void, in prompts and in responses."""
    rows = frame[np.isclose(frame["alpha"], _VOID) & frame["position"].isna()]
    names, grid = [], []
    for phase, tokens in (("prompt", "without first"), ("response", "all")):
        here = rows[(rows["phase"] == phase) & (rows["tokens"] == tokens) & rows["layer"].notna()]
        if len(here):
            names.append(phase)
            grid.append(here.sort_values("layer")["usage"].to_numpy(float))
    if not grid:
        return None
    return Strip(
        "Not void",
        "share of tokens whose length it changes",
        grid=np.array(grid),
        rows=names,
        top=1.0,
    )


def attribution(frame: pd.DataFrame) -> Strip | None:
    """Return which tokens the answer is attributed to at each layer."""
    rows = frame[frame["position"].notna() & (frame["position"] != "first")]
    if rows.empty:
        return None
    size = rows.assign(mean=rows["mean"].abs())
    whole = size.groupby("layer")["mean"].sum()
    last = size[size["position"] == "-1"].groupby("layer")["mean"].sum().reindex(whole.index)
    layers, shares = whole.index.to_numpy(int), (last.fillna(0) / whole).to_numpy(float)
    values = np.full(layers.max() + 1, np.nan)
    values[layers] = shares
    lines = {"last token": values, "tokens before it": 1 - values}
    return Strip("Where the answer is", "share of attribution", lines=lines)


def heads(frame: pd.DataFrame) -> Strip | None:
    """Return how much of the gap to the twin each head, and MLP, carries at all positions."""
    rows = frame[frame["method"] == frame["method"].iloc[0]]
    of_heads = rows[rows["node"] == "z"].pivot_table(
        index="unit", columns="layer", values="share", aggfunc="sum"
    )
    grid, names = [*of_heads.to_numpy(float)], [f"head {unit}" for unit in of_heads.index]
    of_mlps = rows[rows["node"] == "mlp_out"].groupby("layer")["share"].sum()
    if len(of_mlps):
        grid, names = [*grid, of_mlps.to_numpy(float)], [*names, "MLP"]
    if not grid:
        return None
    scale = "share of the gap to the twin"
    return Strip("Heads and MLPs", scale, grid=np.array(grid), rows=names)


StripOf = Callable[[pd.DataFrame], Strip | None]
STRIPS: dict[str, StripOf] = {
    "residual_contribution": writes,
    "layer_skip": needed_now,
    "layer_skip, later": needed_later,
    "logit_lens": decided,
    "void_detection": used,
    "integrated_gradients": attribution,
    "relevance_patching": heads,
}


def _bars(title: str, scale: str, rows: pd.DataFrame, *, by: str) -> Strip | None:
    if rows.empty:
        return None
    rows = rows.sort_values(by)
    mean, low, high = (rows[name].to_numpy(float) for name in ("mean", "low", "high"))
    return Strip(title, scale, mean, low, high)
