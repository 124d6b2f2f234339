"""The figure of units' importance: ranks by gradient and by size, and a map of the modules."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.stats import rankdata

from interp.analyses.unit_importance.scores import SCORES, score_of
from interp.analyses.unit_importance.units import Kind
from interp.figures.plots import Axes, grid_below, scatters_with_diagonal
from interp.figures.words import value_text
from interp.stats.ranks import rank_correlation

if TYPE_CHECKING:
    from interp.analyses.unit_importance.result import UnitImportanceResult

_LOWEST = 1e-3  # of the largest importance, where the colours end
_TICKS = ["≤ 0.1 %", "1 %", "10 %", "100 %"]
_NOUNS = {
    "layer": "layers",
    "attention": "attention",
    "mlp": "MLPs",
    "head": "heads",
    "projection": "projections",
}


def figure_of(result: "UnitImportanceResult") -> go.Figure:
    """Draw units' ranks, and below the importance of every layer's modules by colour."""
    frames = []
    for kind in result.drawn:
        for score in (SCORES[0], SCORES[-1]):
            frames.append(_ranks(result, kind, score))
    figure = scatters_with_diagonal(
        pd.concat(frames),
        x="rank by zeroing it",
        y="rank by score",
        groups="score",
        panels="kind",
        title="Units ranked by their gradients, and by what happens without them"
        " (0: matters least)",
    )
    figure.update_xaxes(range=[-0.05, 1.05], tickvals=[0, 0.5, 1])
    figure.update_yaxes(range=[-0.05, 1.05], tickvals=[0, 0.5, 1])
    importance = np.abs(result.sums["module"].mean(0)).T
    least = max(float(importance.max()), 1e-30) * _LOWEST
    grid = np.log10(np.maximum(importance, least) / least)
    top = -np.log10(_LOWEST)
    figure = grid_below(
        figure,
        grid,
        axes=Axes("layer", "", of="importance of every layer's modules, share of the largest"),
        top=top,
        colorbar={"tickvals": [0, top / 3, 2 * top / 3, top], "ticktext": _TICKS},
    )
    labels = result.modules.labels
    names = {"tickmode": "array", "tickvals": [*range(len(labels))], "ticktext": labels}
    return figure.update_layout(yaxis99=names)


def _ranks(result: "UnitImportanceResult", kind: Kind, score: str) -> pd.DataFrame:
    means = result.compared[kind].mean(0)
    n = means.shape[1]
    scores, exact = (
        (rankdata(row) - 1) / max(1, n - 1) for row in (score_of(score, means), means[3])
    )
    name = {"importance": "by gradient", "size": "by the size of its output"}[score]
    alike = float(rank_correlation(score_of(SCORES[0], means), means[3]))
    panel = f"{_NOUNS[kind]}, correlation {value_text(alike, '.2f')}"
    return pd.DataFrame(
        {"kind": panel, "score": name, "rank by zeroing it": exact, "rank by score": scores}
    )
