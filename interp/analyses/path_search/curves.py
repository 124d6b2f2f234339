"""The figure of `path_search`."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.figures.intervals import interval, lines_with_intervals
from interp.figures.plots import COLOURS, layer_step, titled

if TYPE_CHECKING:
    from interp.analyses.path_search.result import PathSearchResult

_GREY = "#777777"


def drawn(result: "PathSearchResult") -> go.Figure:
    """Draw answers reached by length, answers reached in all, and how often layers are run."""
    frame, n_layers = result.to_frame(), result.n_layers
    who = "wrong answers" if (frame["prompts"] == "wrong answers").any() else "all prompts"
    figure = make_subplots(
        rows=2,
        cols=2,
        specs=[[{}, {}], [{"colspan": 2}, None]],
        subplot_titles=[
            "answered by a path of so many layers",
            f"{who} that are made right" if who != "all prompts" else "prompts answered",
            "times that the shortest right path runs each layer",
        ],
        vertical_spacing=0.2,
        horizontal_spacing=0.22,
        row_heights=[0.55, 0.45],
    )
    reach = frame[frame["measure"] == "answered in so many layers"]
    longest = _longest(result)
    _lines(figure, reach[reach["layer"] <= longest], (1, 1), in_legend=True)
    figure.add_scatter(
        x=[n_layers],
        y=[float(result.is_right.mean())],
        mode="markers",
        marker={"symbol": "diamond", "size": 11, "color": _GREY},
        name="the ordinary path",
        row=1,
        col=1,
    )
    figure.update_xaxes(title_text="layers run, at most", row=1, col=1)
    figure.update_yaxes(title_text="share of prompts", range=[-0.03, 1.03], row=1, col=1)
    _reached(figure, frame[(frame["measure"] == "answered") & (frame["prompts"] == who)])
    _lines(figure, frame[frame["measure"] == "times run"], (2, 1), in_legend=False)
    figure.add_hline(y=1, line={"color": _GREY, "dash": "dot"}, row=2, col=1)
    figure.update_xaxes(title_text="layer", dtick=layer_step(n_layers), tick0=0, row=2, col=1)
    figure.update_yaxes(title_text="times run", rangemode="tozero", row=2, col=1)
    figure.update_layout(height=620, legend={"y": 0.36, "yanchor": "top"})
    tries = result.analysis.n_simulations
    return titled(figure, f"Other paths through the layers, with {tries} tries for each prompt")


def _longest(result: "PathSearchResult") -> int:
    """Return the most layers that a shortest right path runs, or the model's."""
    lengths = np.concatenate([*result.lengths.values()])
    known = lengths[lengths <= 2 * result.n_layers]
    return int(max(result.n_layers, *known)) + 1 if len(known) else result.n_layers + 1


def _lines(figure: go.Figure, frame: pd.DataFrame, at: tuple[int, int], *, in_legend: bool) -> None:
    rows = [of_kind.astype({"layer": int}) for _, of_kind in frame.groupby("kind", sort=False)]
    lines = lines_with_intervals(rows, x="layer", y="mean", colours=COLOURS[: len(rows)])
    for of_kind, traces in zip(rows, lines, strict=True):
        name = str(of_kind["kind"].iloc[0])
        traces[-1] |= {"name": name, "showlegend": in_legend, "mode": "lines"}
        for trace in traces:
            figure.add_scatter(**trace, legendgroup=name, row=at[0], col=at[1])


def _reached(figure: go.Figure, rows: pd.DataFrame) -> None:
    """Draw a bar for the search and each control, the search on top."""
    rows = rows.iloc[::-1]
    colours = dict(zip(("search", "random paths"), COLOURS, strict=False))
    figure.add_bar(
        x=rows["mean"].astype(np.float32),
        y=rows["kind"],
        orientation="h",
        error_x=interval(rows),
        marker_color=[colours.get(kind, _GREY) for kind in rows["kind"]],
        showlegend=False,
        row=1,
        col=2,
    )
    figure.update_xaxes(title_text="share of prompts", range=[0, 1.03], row=1, col=2)
