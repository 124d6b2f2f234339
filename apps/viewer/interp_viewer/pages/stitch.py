"""Two models joined at every cut, in both directions, and single blocks swapped, with controls."""

import pandas as pd
import streamlit as st

from interp_viewer.about import about
from interp_viewer.lines import lines
from interp_viewer.selected import Selected
from interp_viewer.text import number
from interp_viewer.widgets import controls, one_of, option

TITLE = "Checkpoint stitch"
_COLUMNS = ["panel", "line", "layer", "mean", "low", "high"]
_MAPS = {"none": "stream as it is", "orthogonal": "stream rotated", "affine": "stream mapped"}
_CURVES = {"cut": "joined", "untrained": "control, untrained in the other's place"}
_BLOCKS = {
    "swap": "other's block",
    "skip": "block skipped",
    "unrelated": "unrelated block",
    "permuted": "block's change permuted",
}


def page(here: Selected) -> None:
    """Draw a measure over cuts and over single blocks, and what the weights' change is."""
    cell = here.cell("checkpoint_stitch")
    frame = here.run.frame(cell)
    cuts = frame[frame["what"].isin(_CURVES)]
    kinds = [kind for kind in _MAPS if kind in set(cuts["map"])]
    with controls():
        measure = option(here, "Measure", list(dict.fromkeys(cuts["measure"])), width=340)
        kind = one_of(here, "Map", {kind: _MAPS[kind] for kind in kinds}, field="over")
    other = here.info(cell)["parameters"]["against"]
    lines(
        here,
        _over_cuts(frame, measure, kind),
        title=f"{here.model} and {other}, joined after every cut: {measure}",
        key="stitch-cuts",
    )
    st.caption("Layers below the cut from left to right; both plain models are level lines.")
    lines(
        here,
        _over_blocks(frame, measure),
        title=f"One block of {other} in {here.model}, and its controls: {measure}",
        key="stitch-blocks",
    )
    _change(frame)
    about(here, "checkpoint_stitch")
    _weights(frame, here.selection.layer)


def _over_cuts(frame: pd.DataFrame, measure: str, kind: str) -> pd.DataFrame:
    """Return curves over cuts under a map, and both plain models at every cut."""
    of_measure = frame[frame["measure"] == measure]
    cuts = of_measure[of_measure["what"].isin(_CURVES) & (of_measure["map"] == kind)]
    is_control = cuts["what"] == "untrained"
    line = cuts["direction"].where(~is_control, cuts["direction"].str.replace("other", "untrained"))
    rows = cuts.assign(line=line, layer=cuts["cut"].astype(int), panel=cuts["what"].map(_CURVES))
    is_plain = (of_measure["what"] == "plain") & (of_measure["direction"] != "untrained")
    plain = of_measure.loc[is_plain, ["direction", "mean"]].rename(columns={"direction": "line"})
    level = rows[["layer", "panel"]].drop_duplicates().merge(plain, how="cross")
    return pd.concat([rows, level], ignore_index=True)[_COLUMNS]


def _over_blocks(frame: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Return lines over layers of single blocks."""
    rows = frame[frame["what"].isin(_BLOCKS) & (frame["measure"] == measure)]
    layer = rows["layer"].astype(int)
    return rows.assign(line=rows["what"].map(_BLOCKS), layer=layer, panel=measure)[_COLUMNS]


def _change(frame: pd.DataFrame) -> None:
    """Say how far the other model is, beside copies with the same change permuted."""
    is_kl = (frame["what"] == "plain") & frame["measure"].str.startswith("KL")
    (own,) = frame.loc[is_kl & (frame["direction"] == "this model"), "mean"]
    random = frame.loc[frame["what"] == "random", "mean"]
    text = f"All of the change: KL {number(float(own))} nats"
    if len(random):
        low, high = number(float(random.min())), number(float(random.max()))
        text += f"; the same change permuted, {len(random)} copies: {low} to {high}"
    st.markdown(f"**{text}**")


def _weights(frame: pd.DataFrame, layer: int | None) -> None:
    """List how the weights changed, of the chosen layer or of all."""
    rows = frame[frame["what"] == "weights"]
    if layer is not None and (rows["layer"] == layer).any():
        rows = rows[rows["layer"] == layer]
    with st.expander("How the weights changed"):
        table = rows.pivot(index=["layer", "matrix"], columns="measure", values="mean")
        st.dataframe(table.reset_index(), hide_index=True)
