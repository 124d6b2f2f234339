"""Axes of tokens, and means over prompts at positions from the last token."""

from collections.abc import Mapping

import numpy as np

from interp.numerals import with_minus
from interp.runs.folder import Cell
from interp_viewer.grid import Axis, Grid
from interp_viewer.selected import Selected


def token_axis(here: Selected, n: int) -> Axis:
    """Return an axis of a prompt's tokens."""
    return Axis.of("token", n, "token", labels=tuple(here.token_label(i) for i in range(n)))


def over_positions(
    here: Selected,
    cell: Cell,
    where: Mapping[str, str],
    *,
    title: str,
    is_signed: bool,
    rows_name: str = "layer",
) -> Grid:
    """Return means [layer position] of the rows that `where` names, with their intervals."""
    frame = here.run.frame(cell)
    for column, value in where.items():
        frame = frame[frame[column] == value]
    frame = frame[frame["position"].notna()].assign(position=lambda f: f["position"].astype(str))
    names = list(dict.fromkeys(frame["position"]))
    names.sort(key=lambda name: -1e9 if name == "first" else float(name))
    layers = sorted(frame["layer"].astype(int).unique())
    columns = {}
    for column in ("mean", "low", "high", "n_prompts"):
        if column in frame:
            pivot = frame.pivot_table(
                index="layer", columns="position", values=column, aggfunc="first", dropna=False
            )
            columns[column] = pivot.reindex(index=layers, columns=names).to_numpy(np.float32)
    last = len(here.tokens) - 1 if here.tokens else 0
    behind = last + (0 if "0" in names else 1)  # of interp 0.1, where 0 was the last token
    values = tuple(
        0 if name == "first" else (last if int(name) > 0 else behind) + int(name) for name in names
    )
    return Grid(
        title,
        columns["mean"],
        Axis(rows_name, tuple(map(str, layers)), tuple(int(layer) for layer in layers), ("layer",)),
        Axis("position (−1: the last token)", tuple(map(with_minus, names)), values, ("token",)),
        is_signed=is_signed,
        missing="no prompt has this position",
        low=columns.get("low"),
        high=columns.get("high"),
        n=columns.get("n_prompts"),
    )
