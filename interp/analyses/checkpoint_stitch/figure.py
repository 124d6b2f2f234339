"""The figure: accuracy by cut, without and with a map, and what single blocks change."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.checkpoint_stitch.blocks import KINDS, PERMUTED, SKIP, SWAP, UNRELATED
from interp.figures.plots import lines_over_depth
from interp.stats.estimate import estimates
from interp.stats.shares import shares

if TYPE_CHECKING:
    from interp.analyses.checkpoint_stitch.result import CheckpointStitchResult

_LINES = ("this model below, other above", "other below, this model above")
_UNTRAINED = "this model below, untrained above"
_PANELS = {
    "none": "accuracy, stream as it is",
    "orthogonal": "accuracy, stream rotated",
    "affine": "accuracy, stream mapped",
}
_PLAIN = {"this model": "dot", "other model": "dash"}
_BLACK = {"line": {"color": "black"}, "marker": {"color": "black"}}
_ALONE = "one block, change in nats"
_NAMES = {
    SWAP: "other's block",
    SKIP: "block skipped",
    UNRELATED: "unrelated block",
    PERMUTED: "block's change permuted",
}


def drawn(result: "CheckpointStitchResult") -> go.Figure:
    """Return the figure: a panel per map, and one of single blocks."""
    rows = pd.concat([*_cuts(result), *_alone(result), *_plain(result)])
    name = result.analysis.against or ""
    title = f"This model and {name}, joined at every depth"
    figure = lines_over_depth(rows, y="mean", groups="line", panels="panel", title=title)
    n_cuts = len(result.analysis.maps)
    for i in range(1, n_cuts + 1):
        figure.update_xaxes(title_text="layers below the cut", row=1, col=i)
        figure.update_yaxes(range=[-0.03, 1.03], tickformat=".0%", row=1, col=i)
    for trace in figure.data:
        if trace.name in _PLAIN:
            trace.update(mode="lines", line={"color": "#666", "dash": _PLAIN[trace.name]})
        if trace.legendgroup == _NAMES[PERMUTED]:  # the colours have run out
            trace.update({"fillcolor": "black"} if trace.fill else _BLACK)
    return figure.update_layout(legend={"orientation": "h", "y": -0.25}, height=440)


def _cuts(result: "CheckpointStitchResult") -> list[pd.DataFrame]:
    frames = []
    groups, cuts = result.prompt_groups, np.array(result.cuts)
    for kind in result.analysis.maps:
        lines = dict(zip(_LINES, np.moveaxis(result.curve(kind, "accuracy"), 1, 0), strict=True))
        if result.has_untrained:
            lines[_UNTRAINED] = result.curve(kind, "accuracy", of="untrained")[:, 0]
        for name, values in lines.items():
            keys = {"panel": _PANELS[kind], "line": name, "layer": cuts}
            frames.append(pd.DataFrame(keys | shares(values, groups=groups)))
    return frames


def _plain(result: "CheckpointStitchResult") -> list[pd.DataFrame]:
    """Return both models as they are, at every cut and in every panel of cuts."""
    frames, plain = [], result.plain("accuracy").mean(0)
    for kind in result.analysis.maps:
        for name, value in zip(_PLAIN, plain, strict=True):
            keys = {"panel": _PANELS[kind], "line": name, "layer": np.array(result.cuts)}
            frames.append(pd.DataFrame(keys | {"mean": value, "low": np.nan, "high": np.nan}))
    return frames


def _alone(result: "CheckpointStitchResult") -> list[pd.DataFrame]:
    frames, layers = [], np.array(result.analysis.layers(result.n_layers))
    for kind in KINDS:
        change = result.change_in_log_prob(kind)
        if change is not None:
            found = estimates(change, groups=result.prompt_groups, seed=result.analysis.seed)
            keys = {"panel": _ALONE, "line": _NAMES[kind], "layer": layers}
            frames.append(pd.DataFrame(keys | found))
    return frames
