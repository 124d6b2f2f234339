"""Lines over depth, with the selected layer marked."""

import json

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from interp.figures.plots import lines_over_depth
from interp.runs.folder import Cell
from interp_viewer.selected import Selected
from interp_viewer.text import plain

_CONFIG = {
    "displaylogo": False,
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "toImageButtonOptions": {"format": "svg"},
}


def lines(
    here: Selected, frame: pd.DataFrame, *, title: str, key: str, marked: str = "layer"
) -> None:
    """Draw column `mean` over layers: a line per value of `line`, a panel per value of `panel`."""
    rows = frame.reset_index(drop=True)
    figure = lines_over_depth(rows, y="mean", groups="line", panels="panel", title=title)
    has_legend = frame["line"].nunique() > 1
    margin = {"t": 60, "b": 40, "l": 40, "r": 20}
    figure.update_layout(height=320, margin=margin, showlegend=has_legend)
    figure.update_annotations(font_size=12)
    at = getattr(here.selection, marked)
    if at is not None:
        figure.add_vline(x=at, line_dash="dot", line_color="grey")
    draw_figure(
        figure, key=key, alt=f"{title}, as lines over layers; the numbers are on the page “Data”"
    )


def draw_figure(figure: go.Figure, *, key: str, alt: str) -> None:
    """Draw a Plotly figure below its title, which may take several lines in a narrow window."""
    if title := figure.layout.title.text:
        st.markdown(f"**{plain(title)}**")
        figure.update_layout(title_text="", margin_t=40)
    ink = "#fafafa" if st.context.theme.type == "dark" else "#31333f"
    figure.for_each_annotation(lambda note: note.update(font_color=note.font.color or ink))
    st.plotly_chart(figure, key=key, config=_CONFIG, alt=alt)


def stored(here: Selected, cell: Cell) -> None:
    """Draw the figure that an analysis left in its folder."""
    figure = go.Figure(json.loads(here.run.figure(cell)), skip_invalid=True)
    draw_figure(
        figure,
        key=f"figure-{cell.path}",
        alt=f"{cell.analysis}; the numbers are in the table below",
    )
