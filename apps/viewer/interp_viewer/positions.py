"""Means over prompts at positions that count from each prompt's last token."""

from collections.abc import Mapping

import numpy as np

from interp.runs.folder import Cell
from interp_viewer.grid import Axis, Grid
from interp_viewer.screen import Here


def over_positions(
    here: Here,
    cell: Cell,
    where: Mapping[str, str],
    *,
    title: str,
    is_signed: bool,
    rows_name: str = "layer",
) -> Grid:
    """Return column `mean` of the rows that `where` names [layer position], with interval and
    number of prompts.
    """
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
    values = tuple(0 if name == "first" else last + int(float(name)) for name in names)
    return Grid(
        title,
        columns["mean"],
        Axis(rows_name, tuple(map(str, layers)), tuple(int(layer) for layer in layers), ("layer",)),
        Axis("position from the last token", tuple(names), values, ("token",)),
        is_signed=is_signed,
        missing="no prompt has this position",
        low=columns.get("low"),
        high=columns.get("high"),
        n=columns.get("n_prompts"),
    )
