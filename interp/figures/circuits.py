"""A circuit as a drawing: nodes by layer and head, its largest edges as curves between them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.figures.plots import COLOURS, layer_step
from interp.figures.words import counted, node_named
from interp.numerals import number

Edge = tuple[str, str, float]  # sender, receiver, score
Place = tuple[float, float]  # lane, layer
MOST_EDGES = 40
_TINY = 0.02  # of the largest score, below which no edge is drawn
_WIDEST, _THINNEST = 6.0, 1.0  # pixels
_BEND = {"k": -0.3, "v": 0.15}  # of an edge's height, by what is read; of others `_BENT`
_BENT = 0.3
_MLP = 0.35  # layers that an MLP stands above the heads of its layer
_STEPS = np.linspace(0, 1, 13)[:, None]
_NODE, _BAR = "#666666", "#999999"
_SYMBOLS = {"m": "square", "e": "diamond", "l": "diamond"}  # of heads: circles


@dataclass(frozen=True)
class Lanes:
    """Where the nodes of a model stand: heads from left to right, then MLPs; layers upwards."""

    n_layers: int
    n_heads: int
    n_kv_heads: int

    @property
    def width(self) -> float:
        """Return how far it is from the first lane to the last."""
        return self.n_heads + 1.0

    @property
    def ends(self) -> tuple[float, float]:
        """Return where the embedding and the logits stand."""
        apart = max(1.0, self.n_layers / 12)
        return -apart, self.n_layers - 1 + apart + _MLP

    def place(self, key: str) -> Place:
        """Return where a node stands, or the middle of the heads that share a key or value."""
        if key in ("embed", "logits"):
            return self.width / 2, self.ends[key == "logits"]
        layer, _, head = key[1:].partition(".h")
        if not head:
            return self.width, int(layer) + _MLP
        shared = self.n_heads // self.n_kv_heads if key[0] in "kv" else 1
        middle = shared * int(head) + (shared - 1) / 2
        return middle, int(layer) - (_MLP if shared > 1 else 0.0)


def circuit_above(figure: go.Figure, edges: Sequence[Edge], lanes: Lanes) -> go.Figure:
    """Put the largest of `edges`, in falling order, above a figure of one panel.

    An edge is as wide as its score is large, and dashed if that is negative.
    """
    drawn = [edge for edge in edges[:MOST_EDGES] if abs(edge[2]) >= _TINY * abs(edges[0][2])]
    axes = {"xaxis": "x2", "yaxis": "y2", "showlegend": False}
    figure.add_traces([go.Scatter(**trace, **axes) for trace in _traces(drawn, lanes)])
    below, low, high = 0.27, 0.39, 1.0
    heads = [*range(0, lanes.n_heads, layer_step(lanes.n_heads))]
    layers = [*range(0, lanes.n_layers, layer_step(lanes.n_layers))]
    first, last = lanes.ends
    plain = {"showgrid": False, "zeroline": False}
    figure.update_layout(
        yaxis={"domain": [0, below]},
        xaxis2={
            **{"anchor": "y2", "title": "head", "range": [-0.7, lanes.width + 0.15 * lanes.width]},
            **{"tickvals": [*heads, lanes.width], "ticktext": [*map(str, heads), "MLP"], **plain},
        },
        yaxis2={
            **{"anchor": "x2", "title": "layer", "domain": [low, high]},
            **{"range": [first - 0.7, last + 0.7], "tickvals": [first, *layers, last]},
            **{"ticktext": ["embed", *map(str, layers), "logits"], **plain},
        },
        height=920,
    )
    is_shared = any(_is_shared(receiver, lanes) for _, receiver, _ in drawn)
    bars = "; grey bars: heads that share a key or value" if is_shared else ""
    title = (
        f"the {counted(len(drawn), 'edge')} with the largest scores, of {len(edges):,}"
        f" (wider: larger; dashed: negative{bars})"
    )
    place = {"x": 0.5, "xref": "paper", "yref": "paper", "yanchor": "bottom", "showarrow": False}
    figure.add_annotation(text=title, y=high, **place)
    return figure.add_annotation(text="what circuits of this size keep", y=below, **place)


def _traces(edges: Sequence[Edge], lanes: Lanes) -> Iterator[dict[str, Any]]:
    """Yield the drawn edges, the smallest first, then the nodes at their ends."""
    largest = max((abs(score) for _, _, score in edges), default=1.0) or 1.0
    for sender, receiver, score in reversed(edges):
        curve = _curve(lanes.place(sender), lanes.place(receiver), lanes, receiver[0])
        width = _THINNEST + (_WIDEST - _THINNEST) * abs(score) / largest
        sign = {"color": COLOURS[0]} if score >= 0 else {"color": COLOURS[1], "dash": "dash"}
        name = f"{node_named(sender)} → {node_named(receiver)} {number(score, '+.3f')}"
        ends = {
            "x": curve[:, 0],
            "y": curve[:, 1],
            "mode": "lines",
            "line": {"width": width, **sign},
        }
        yield ends | {"hovertemplate": f"{name}<extra></extra>"}
    keys = dict.fromkeys(key for edge in edges for key in edge[:2])
    yield from (_shared(key, lanes) for key in keys if _is_shared(key, lanes))
    whole = [key for key in keys if not _is_shared(key, lanes)]
    nodes = dict.fromkeys(f"a{key[1:]}" if key[0] in "qkv" else key for key in whole)
    places = np.array([lanes.place(key) for key in nodes], np.float32).reshape(-1, 2)
    symbols = [_SYMBOLS.get(key[0], "circle") for key in nodes]
    yield {
        **{
            "x": places[:, 0],
            "y": places[:, 1],
            "mode": "markers",
            "text": [*map(node_named, nodes)],
        },
        **{"marker": {"color": _NODE, "size": 9, "symbol": symbols}},
        "hovertemplate": "%{text}<extra></extra>",
    }


def _is_shared(key: str, lanes: Lanes) -> bool:
    """Tell whether several heads read a receiver: a key or value."""
    return key[0] in "kv" and lanes.n_kv_heads < lanes.n_heads


def _shared(key: str, lanes: Lanes) -> dict[str, Any]:
    """Return a bar below the heads that share a key or value."""
    x, y = lanes.place(key)
    half = (lanes.n_heads // lanes.n_kv_heads - 1) / 2 + 0.3
    look = {"mode": "lines", "line": {"color": _BAR, "width": 2}}
    return {"x": [x - half, x + half], "y": [y, y], **look, "hoverinfo": "skip"}


def _curve(start: Place, end: Place, lanes: Lanes, read: str) -> np.ndarray:
    """Return the points [point 2] of an edge, bent aside so that upright edges stay apart."""
    size = np.array([lanes.width, lanes.n_layers])
    first, last = np.array(start) / size, np.array(end) / size
    middle = (first + last) / 2 + [_BEND.get(read, _BENT) * (last - first)[1], 0.0]
    t = _STEPS
    points = (1 - t) ** 2 * first + 2 * t * (1 - t) * middle + t**2 * last
    curve: np.ndarray = (points * size).astype(np.float32)
    return curve
