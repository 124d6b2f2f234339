"""Which features carry the gap, and the prompts in which the one that is chosen is most active."""

import numpy as np
import pandas as pd
import streamlit as st

from interp.runs.folder import Cell
from interp_viewer.about import about
from interp_viewer.selected import Selected
from interp_viewer.text import number, plain, prompt_named
from interp_viewer.widgets import controls, option

TITLE = "Features"
_SHOWN = 8  # prompts in which a feature is most active


def page(here: Selected) -> None:
    """Draw the features that were patched alone beside the chosen one's most active tokens."""
    cell = here.cell("feature_patching")
    nodes = _nodes(here, cell)
    with controls():
        chosen = option(here, "Feature", list(nodes["feature"]))
    left, right = st.columns([0.5, 0.5], gap="medium")
    with left:
        st.caption("What each carries alone, mean over prompts, in the unit of the metric")
        st.dataframe(nodes.drop(columns="place"), hide_index=True, height=560)
    with right:
        _examples(here, cell, nodes[nodes["feature"] == chosen].iloc[0])
    about(here, "feature_patching")


def _nodes(here: Selected, cell: Cell) -> pd.DataFrame:
    """Return a row per node with its `place`: features by their exact effects, errors behind."""
    frame = here.run.frame(cell)
    frame = frame[frame["statistic"] == "node"]
    keys = ["dictionary", "feature", "kind"]
    order = frame[keys].drop_duplicates().reset_index(drop=True)
    methods = list(dict.fromkeys(frame["method"]))
    for method in methods:
        order[method] = frame.loc[frame["method"] == method, "mean"].to_numpy()
    names = order["dictionary"].str.rstrip("/").str.rpartition("/")[2]
    numbers = order["feature"].astype("string").fillna("error")
    rows = order.assign(place=range(len(order)), feature=names + "/" + numbers)
    shown = rows[["feature", "kind", *methods, "place"]]
    size = shown["exact"].abs().where(shown["kind"] != "error", -1.0)
    by_size = size.sort_values(ascending=False, kind="stable").index
    return shown.loc[by_size].reset_index(drop=True)


def _examples(here: Selected, cell: Cell, node: pd.Series) -> None:
    """Draw the prompts in which a node is most active, with the tokens around its peak."""
    measured = here.measured(cell)
    place = int(node["place"])
    peaks = measured.all("peak")[:, place]
    st.caption(
        f"{plain(node['feature'])} is most active at the token in «»; each leads to its prompt"
    )
    for row in np.argsort(-peaks, kind="stable")[:_SHOWN].tolist():
        ex = measured.number(row)
        text = bytes(measured.of_row("text", row)[place]).rstrip(b"\0").decode(errors="ignore")
        label = f"{number(float(peaks[row]))} · {plain(text)}"
        if st.button(label, key=f"example-{ex}", help=plain(prompt_named(ex, here.prompts[ex]))):
            here.select(ex=ex)
            st.rerun()
