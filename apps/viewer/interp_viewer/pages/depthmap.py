"""Which layer of one model predicts which layer of another."""

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from interp_viewer.about import about
from interp_viewer.grid import Axis, Grid
from interp_viewer.lines import draw_figure
from interp_viewer.pane import pane
from interp_viewer.selected import Selected
from interp_viewer.widgets import controls, option

TITLE = "Depth map"
COMPARED = ("depth_map",)


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
    columns = {
        name: rows.pivot(index="source", columns="target", values=name).to_numpy(np.float32)
        for name in ("value", "low", "high")
        if rows[name].notna().any()
    }
    n_sources, n_targets = columns["value"].shape
    parameters = here.info(cell)["parameters"]
    return Grid(
        f"{of}: every layer of {here.model} predicts every layer of"
        f" {parameters['target'] or 'itself'}"
        + (", mean of its untrained twins" if of.startswith("untrained_") else ""),
        columns["value"],
        Axis.of("source, in front of layer", n_sources, "src", "layer"),
        Axis.of("target, in front of layer", n_targets, "tgt"),
        top=1.0 if of.removeprefix("untrained_") in ("error", "r2", "similarity") else None,
        low=columns.get("low"),
        high=columns.get("high"),
        notes=(
            f"Half of the depth: source {(n_sources - 1) / 2:g}, target {(n_targets - 1) / 2:g}.",
        ),
    )


def page(here: Selected) -> None:
    """Draw the grid, the best source of every target, and the statistics of the whole."""
    with controls():
        of = option(here, "Measure", choices(here))
    picture = grid(here, of)
    pane(here, picture, key="depthmap")
    about(here, "depth_map")
    frame = here.run.frame(here.cell("depth_map"))
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
        figure.update_xaxes(title_text="target, in front of layer").update_yaxes(
            title_text="source"
        )
        draw_figure(
            figure,
            key="depthmap-best",
            alt="The best source layer of every target layer; a table stands below",
        )
    st.dataframe(
        frame[frame["source"].isna() & frame["target"].isna()].dropna(axis=1, how="all"),
        hide_index=True,
    )
