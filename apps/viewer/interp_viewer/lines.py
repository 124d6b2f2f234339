"""Lines over depth, with the selected layer marked, and any other figure."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

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
# the theme of the page decides the rest; Plotly takes ten times as long to check a whole template
_TEMPLATE = {"layout": {axis: {"automargin": True} for axis in ("xaxis", "yaxis")}}

Drawn = Mapping[str, Any]  # a Plotly figure, kept over clicks: not to be changed


def lines(
    here: Selected, frame: pd.DataFrame, *, title: str, key: str, marked: str = "layer"
) -> None:
    """Draw column `mean` over layers: a line per value of `line`, a panel per value of `panel`."""
    drawn = _over_depth(frame.reset_index(drop=True), title)
    at = getattr(here.selection, marked)
    marks = [] if at is None else [*_marks(drawn["layout"], at)]
    draw_figure(
        drawn,
        key=key,
        alt=f"{title}, as lines over layers; the numbers are on the page “Data”",
        marks=marks,
    )


@st.cache_resource(max_entries=64, show_spinner=False)
def _over_depth(rows: pd.DataFrame, title: str) -> Drawn:
    figure = lines_over_depth(rows, y="mean", groups="line", panels="panel", title=title)
    has_legend = rows["line"].nunique() > 1
    margin = {"t": 60, "b": 40, "l": 40, "r": 20}
    figure.update_layout(height=320, margin=margin, showlegend=has_legend)
    return _drawn(figure.update_annotations(font_size=12))


def _marks(layout: Drawn, at: int) -> Iterator[dict[str, Any]]:
    """Yield a line at a layer, for every panel."""
    for name in (name for name in layout if name.startswith("xaxis")):
        of = name.removeprefix("xaxis")
        where = {"x0": at, "x1": at, "y0": 0, "y1": 1, "xref": f"x{of}", "yref": f"y{of} domain"}
        yield {"type": "line", "line": {"dash": "dot", "color": "grey"}, **where}


def _drawn(figure: go.Figure) -> Drawn:
    drawn: dict[str, Any] = figure.to_dict()
    drawn["layout"]["template"] = _TEMPLATE
    return drawn


def draw_figure(
    figure: go.Figure | Drawn, *, key: str, alt: str, marks: list[dict[str, Any]] | None = None
) -> None:
    """Draw a Plotly figure below its title, which may take several lines in a narrow window.

    `marks` are shapes that are drawn on it.
    """
    drawn = _drawn(figure) if isinstance(figure, go.Figure) else figure
    layout = dict(drawn["layout"])
    if title := (layout.get("title") or {}).get("text"):
        st.markdown(f"**{plain(title)}**")
        layout |= {"title": None, "margin": {**layout.get("margin", {}), "t": 40}}
    ink = "#fafafa" if st.context.theme.type == "dark" else "#31333f"
    layout["annotations"] = [
        {**note, "font": {"color": ink} | note.get("font", {})}
        for note in layout.get("annotations", ())
    ]
    layout["shapes"] = [*layout.get("shapes", ()), *(marks or ())]
    shown = {"data": drawn["data"], "layout": layout}
    st.plotly_chart(shown, key=key, config=_CONFIG, alt=alt)


def stored(here: Selected, cell: Cell) -> None:
    """Draw the figure that an analysis left in its folder."""
    draw_figure(
        _parsed(here.run.figure(cell)),
        key=f"figure-{cell.path}",
        alt=f"{cell.analysis}; the numbers are in the table below",
    )


@st.cache_resource(max_entries=16, show_spinner=False)
def _parsed(figure: str) -> Drawn:
    return _drawn(go.Figure(json.loads(figure), skip_invalid=True))
