"""The figure: KL by parameters kept, a panel per number of shared layers; single layers; pairs."""

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.figures.plots import COLOURS, layer_step, titled
from interp.figures.words import counted
from interp.models.loops import NAMES

if TYPE_CHECKING:
    from interp.analyses.recursion.result import RecursionResult

_COLOUR = dict(zip(NAMES, COLOURS, strict=True))
_LEAST = 1e-3  # nats: less is drawn as that
_POWERS = [0.001, 0.01, 0.1, 1.0, 10.0, 100.0]
_SHARE = {"tickvals": [0, 0.25, 0.5, 0.75, 1], "ticktext": ["0", "25 %", "50 %", "75 %", "100 %"]}
_BRIGHT = 90  # percentile of pairs' KL at which colours end


def drawn(result: "RecursionResult") -> go.Figure:
    """Return the figure of what was measured."""
    numbers = result.numbers[:2]
    below = ["one layer alone shares", *(["one layer with another's weights"] * bool(result.pairs))]
    titles = [counted(k, "shared layer") for k in numbers]
    figure = make_subplots(
        rows=2,
        cols=2,
        specs=[[{"colspan": 2}, None] if len(numbers) == 1 else [{}, {}], [{}, {}]],
        subplot_titles=[*titles, *below],
        vertical_spacing=0.2,
        horizontal_spacing=0.14,
    )
    for col, n_shared in enumerate(numbers, 1):
        _draw_curves(figure, result, n_shared, col=col)
    _draw_alone(figure, result)
    if result.pairs:
        _draw_pairs(figure, result)
    for row, n_panels in ((1, len(numbers)), (2, 1)):
        _label(figure, row, n_panels)
    if len(numbers) == 2:
        figure.update_yaxes(matches="y", row=1, col=2)
    for row in (1, 2):
        figure.update_yaxes(title_text="KL, nats", row=row, col=1)
    figure.update_layout(height=720, legend={"y": 1, "yanchor": "top"})
    return titled(figure, "Layers that share weights in a loop, with low-rank terms")


def _draw_curves(figure: go.Figure, result: "RecursionResult", n_shared: int, *, col: int) -> None:
    table = result.variants[result.variants["shared"] == n_shared]
    table = table[table["kept"] <= 1]  # more saves nothing
    for name in dict.fromkeys(table["name"]):
        rows = table[table["name"] == name].drop_duplicates("rank")
        ranks, kept = rows["rank"].tolist(), rows["kept"].to_numpy()
        kl = [float(result.outcome(name, rank, n_shared=n_shared).mean()) for rank in ranks]
        figure.add_scatter(
            x=kept.astype(np.float32),
            y=np.maximum(kl, _LEAST).astype(np.float32),
            text=[f"rank {rank}" for rank in ranks],
            name=name,
            legendgroup=name,
            showlegend=col == 1,
            mode="lines+markers",
            line={"color": _COLOUR[name]},
            marker={"color": _COLOUR[name]},
            row=1,
            col=col,
        )
    figure.update_xaxes(title_text="parameters kept", row=1, col=col, **_SHARE)


def _draw_alone(figure: go.Figure, result: "RecursionResult") -> None:
    means = result.alone.mean(0)
    for init, kl in zip(result.analysis.inits, means, strict=True):
        figure.add_scatter(
            x=np.arange(len(kl)),
            y=np.where(kl > 1e-6, np.maximum(kl, _LEAST), np.nan).astype(np.float32),
            name=init,
            legendgroup=init,
            showlegend=False,
            mode="lines+markers",
            line={"color": _COLOUR[init]},
            marker={"color": _COLOUR[init]},
            row=2,
            col=1,
        )
    ticks = {"dtick": layer_step(means.shape[1])}
    figure.update_xaxes(title_text="layer", **ticks, row=2, col=1)


def _label(figure: go.Figure, row: int, n_panels: int) -> None:
    """Label powers of ten on logarithmic axes; 2 and 5 too where fewer than two powers are seen."""
    drawn = [trace.y for trace in figure.select_traces({"type": "scatter"}, row=row)]
    kl = np.concatenate(drawn)
    n_seen = sum((kl <= power).any() and (kl >= power).any() for power in _POWERS)
    steps = (1, 2, 5) if n_seen < 2 else (1,)
    ticks = [step * power for power in _POWERS for step in steps]
    axis = {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    for col in range(1, n_panels + 1):
        figure.update_yaxes(**axis, row=row, col=col)


def _draw_pairs(figure: go.Figure, result: "RecursionResult") -> None:
    kl = result.arrays["grid"][..., 0].mean(0)
    layers = sorted({each.layer for each in result.pairs})
    grid = np.full((len(layers), len(layers)), np.nan, np.float32)
    for place, value in zip(result.pairs, kl, strict=True):
        grid[layers.index(place.layer), layers.index(place.other or 0)] = value
    names = [str(layer) for layer in layers]
    top = float(f"{np.nanpercentile(grid, _BRIGHT):.1g}")
    scale = {"len": 0.4, "y": 0.2, "title": {"text": "KL, nats", "side": "right"}}
    scale |= {"tickvals": [0, top / 2, top], "ticktext": ["0", f"{top / 2:g}", f"≥ {top:g}"]}
    axis: dict[str, Any] = {"type": "category", "showgrid": False, "row": 2, "col": 2}
    figure.add_heatmap(
        z=grid,
        x=names,
        y=names,
        colorscale="Cividis",
        zmin=0,
        zmax=top,
        colorbar=scale,
        hovertemplate="layer %{y}<br>weights of %{x}<br>%{z:.3f}<extra></extra>",
        hoverongaps=False,
        row=2,
        col=2,
    )
    figure.update_xaxes(title_text="other layer", **axis)
    figure.update_yaxes(title_text="layer", **axis)
