"""Which layers have attention, and which another mixer: a column of frames, a mark in figures."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

_SHADE = "rgba(90, 90, 90, 0.13)"


def with_mixers(frame: pd.DataFrame, mixers: Sequence[str]) -> pd.DataFrame:
    """Return a frame with the mixer of each row's `layer`, "" where that is no single layer."""
    if "layer" not in frame or "mixer" in frame:
        return frame
    names = [
        mixers[int(layer)] if isinstance(layer, int | float) and layer in range(len(mixers)) else ""
        for layer in frame["layer"].tolist()
    ]
    return frame.assign(mixer=names)


def with_shaded_mixers(figure: go.Figure, mixers: Sequence[str]) -> go.Figure:
    """Return a figure whose layers without attention alone are shaded on every axis of layers."""
    others = [layer for layer, mixer in enumerate(mixers) if mixer != "attention"]
    axes = [axis for axis in figure.select_xaxes() if axis.title.text == "layer"]
    for axis in axes:
        name = axis.plotly_name.replace("axis", "")
        for layer in others:
            figure.add_shape(
                type="rect",
                xref=name,
                yref=f"{axis.anchor or 'y'} domain",
                x0=layer - 0.5,
                x1=layer + 0.5,
                y0=0,
                y1=1,
                fillcolor=_SHADE,
                line_width=0,
                layer="below",
            )
    if axes and figure.layout.title.text:
        kinds = ", ".join(dict.fromkeys(mixers[layer] for layer in others))
        note = f"shaded: other mixers than attention ({kinds})"
        figure.layout.title.text += f"<br><sub>{note}</sub>"
        figure.layout.meta = {**(figure.layout.meta or {}), "note": note}
    return figure
