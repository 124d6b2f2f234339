"""Which layer of one model predicts which layer of another."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from interp_viewer.about import about
from interp_viewer.grid import Axis, Grid
from interp_viewer.lines import draw_figure, lines
from interp_viewer.pane import pane
from interp_viewer.selected import Selected
from interp_viewer.widgets import controls, option

TITLE = "Depth map"
COMPARED = ("depth_map",)
BOUNDED, CONTINUED = ("error", "r2", "similarity"), "continued_"
FRONTIERS = {"frontier_measured": "in the target", "frontier_itself": "in itself"}


def choices(here: Selected) -> list[str]:
    """Return the measures of pairs of sites."""
    frame = here.run.frame(here.cell("depth_map"))
    pairs = frame[frame["source"].notna() & frame["target"].notna()]
    return list(dict.fromkeys(pairs["measure"]))


def grid(here: Selected, of: str) -> Grid:
    """Return one measure [source target]."""
    cell, known = here.cell("depth_map"), choices(here)
    of = of if of in known else known[0]
    frame = here.run.frame(cell)
    rows = frame[(frame["measure"] == of) & frame["source"].notna() & frame["target"].notna()]
    tables = {
        name: rows.pivot(index="source", columns="target", values=name)
        for name in ("value", "low", "high")
        if rows[name].notna().any()
    }
    columns = {name: table.to_numpy(np.float32) for name, table in tables.items()}
    sources, targets = (
        tuple(map(int, axis)) for axis in (tables["value"].index, tables["value"].columns)
    )
    name = here.info(cell)["parameters"]["target"] or "itself"
    is_onward, is_twin = of.startswith(CONTINUED), of.startswith("untrained_")
    does = f"every layer of {here.model} predicts every layer of {name}"
    onward = f"right answers of {here.model}'s states, continued at layers of {name}"
    middle = f"source {sources[-1] / 2:g}, target {targets[-1] / 2:g}"
    return Grid(
        f"{of}: {onward if is_onward else does}" + ", mean of its untrained twins" * is_twin,
        columns["value"],
        _axis("source, before layer", sources, "src", "layer"),
        _axis("target, before layer", targets, "tgt"),
        top=1.0 if is_onward or of.removeprefix("untrained_") in BOUNDED else None,
        low=columns.get("low"),
        high=columns.get("high"),
        notes=(f"Half of the depth: {middle}.",),
    )


def _axis(name: str, taps: tuple[int, ...], *keys: str) -> Axis:
    return Axis(name, tuple(map(str, taps)), taps, keys)


def _frontier(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the furthest layers at which states still answer, a line for each target."""
    rows = frame[frame["measure"].isin(FRONTIERS)]
    return rows.assign(
        line=rows["measure"].map(FRONTIERS),
        layer=rows["source"].astype(int),
        panel="layers of this model run",
        mean=rows["value"],
    )


def page(here: Selected) -> None:
    """Draw the grid, the best source of every target, and the statistics of the whole."""
    with controls():
        of = option(here, "Measure", choices(here))
    picture = grid(here, of)
    pane(here, picture, key="depthmap")
    about(here, "depth_map")
    frame = here.run.frame(here.cell("depth_map"))
    if len(frontier := _frontier(frame)):
        title = "The furthest layer at which what a layer made still answers"
        lines(here, frontier, title=title, key="depthmap-frontier", marked="src")
    best = frame[frame["is_best"].fillna(False).astype(bool)].sort_values("target")
    if len(best):
        n_sources, n_targets = picture.values.shape
        target = best["target"].astype(int).to_numpy()
        look = {"template": "plotly_white", "height": 320}
        figure = go.Figure(layout=look | {"title": "The best source of every target"})
        figure.add_scatter(
            x=target, y=best["source"].astype(int), mode="lines+markers", name="best source"
        )
        figure.add_scatter(
            x=[0, n_targets - 1],
            y=[0, n_sources - 1],
            mode="lines",
            name="same relative depth",
            line={"dash": "dot", "color": "grey"},
        )
        figure.update_xaxes(title_text="target, before layer").update_yaxes(title_text="source")
        draw_figure(
            figure,
            key="depthmap-best",
            alt="The best source layer of every target layer; a table stands below",
        )
    st.dataframe(
        frame[frame["source"].isna() & frame["target"].isna()].dropna(axis=1, how="all"),
        hide_index=True,
    )
