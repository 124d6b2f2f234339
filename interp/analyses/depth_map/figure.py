"""The drawing of a depth map: the grid, and what is reached at the best source of every target."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.figures.plots import COLOURS, heatmap, layer_step, titled

AXES = {"residual": "before layer", "contribution": "contribution of layer"}
_STYLES: tuple[dict[str, object], ...] = (
    {"mode": "markers", "marker": {"color": COLOURS[1], "size": 9}},
    {"mode": "lines", "line": {"color": COLOURS[1], "width": 2}},
)


def draw(
    grid: np.ndarray,
    paths: Mapping[str, np.ndarray],
    lines: Mapping[str, np.ndarray],
    *,
    label: str,
    axis: str,
    name: str,
) -> go.Figure:
    """Draw a grid [source target] with two paths [target] over it, and lines [target] beside it.

    Paths and lines end at the last target; `label` says what is drawn, `name` the target.
    """
    titles = [f"{label}, every source and target", f"{label} at the best source"]
    shape = {"column_widths": [0.6, 0.4], "horizontal_spacing": 0.2}
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles, **shape)
    heatmap(
        figure,
        grid,
        at=(1, 1),
        x=f"target ({axis})",
        y=f"source ({axis})",
        reversescale="error" in label,
        zmin=0,
        zmax=max(1.0, float(np.quantile(grid, 0.9))),
        colorbar={"x": 0.52},
    )
    targets = np.arange(grid.shape[1])
    for (path, sources), style in zip(paths.items(), _STYLES, strict=True):
        x = targets[-len(sources) :]
        figure.add_scatter(x=x, y=sources, name=path, **style, row=1, col=1)
    for (line, y), colour in zip(lines.items(), (0, 2, 5), strict=False):
        look = {"name": line, "line_color": COLOURS[colour]}
        x = targets[-len(y) :]
        figure.add_scatter(x=x, y=y.astype(np.float32), **look, row=1, col=2)
    figure.update_xaxes(title_text=f"target ({axis})", dtick=layer_step(grid.shape[1]))
    figure.update_yaxes(rangemode="tozero", row=1, col=2)
    figure.update_layout(legend={"orientation": "h", "y": -0.25}, height=460)
    return titled(figure, f"Which layer predicts which layer of {name}")
