"""A drawn circuit says which nodes its edges join, how large their scores are, and their sign."""

import numpy as np
import plotly.graph_objects as go
import pytest

from interp.figures.circuits import MOST_EDGES, Lanes, circuit_above
from interp.figures.paper import for_paper

EDGES = [("a1.h2", "logits", -2.0), ("m0", "q1.h2", 1.0), ("embed", "m0", 0.5)]


def _drawn(edges: list[tuple[str, str, float]], lanes: Lanes) -> go.Figure:
    figure = go.Figure()
    figure.add_scatter(x=[0.1, 1.0], y=[0.5, 1.0], name="the best edges")
    figure.add_scatter(x=[0.1, 1.0], y=[0.0, 0.2], name="random paths")
    return circuit_above(figure, edges, lanes)


def _curves(figure: go.Figure) -> list[go.Scatter]:
    return [trace for trace in figure.data if "→" in (trace.hovertemplate or "")]


def test_edges_run_from_their_sender_to_the_head_that_reads() -> None:
    lanes = Lanes(n_layers=3, n_heads=4, n_kv_heads=4)
    embedding, read, last = _curves(_drawn(EDGES, lanes))
    assert (read.x[-1], read.y[-1]) == (2, 1) == (last.x[0], last.y[0])
    assert (read.x[0], read.y[0]) == pytest.approx((embedding.x[-1], embedding.y[-1]))
    assert "MLP 0 → L1H2 (query) +1.000" in read.hovertemplate


def test_width_is_the_size_of_a_score_and_dashes_its_sign() -> None:
    edges = _curves(_drawn(EDGES, Lanes(n_layers=3, n_heads=4, n_kv_heads=4)))
    widths = [edge.line.width for edge in edges]
    assert widths == sorted(widths)
    assert [edge.line.dash for edge in edges] == [None, None, "dash"]


def test_a_shared_key_ends_between_the_heads_that_share_it() -> None:
    lanes = Lanes(n_layers=3, n_heads=6, n_kv_heads=2)
    figure = _drawn([("a0.h1", "k2.h1", 1.0)], lanes)
    (edge,) = _curves(figure)
    assert edge.x[-1] == 4  # the middle of heads 3, 4 and 5
    assert edge.y[-1] < 2
    assert "share a key or value" in figure.layout.annotations[0].text


@pytest.mark.parametrize("n_layers", [1, 30, 80])
@pytest.mark.parametrize("width", [85.0, 170.0])
def test_only_the_largest_are_drawn_inside_their_panel(n_layers: int, width: float) -> None:
    rng = np.random.default_rng(0)
    heads = [(f"a{i}.h{h}", "logits") for i in range(n_layers) for h in range(64)]
    scores = np.sort(rng.exponential(size=len(heads)))[::-1]
    edges = [(*ends, float(score)) for ends, score in zip(heads, scores, strict=True)]
    figure = _drawn([*edges, ("embed", "logits", 1e-9)], Lanes(n_layers, 64, 8))
    assert 1 < len(_curves(figure)) <= MOST_EDGES
    for axis, values in (("xaxis2", "x"), ("yaxis2", "y")):
        low, high = figure.layout[axis].range
        assert all(low < min(e[values]) <= max(e[values]) < high for e in _curves(figure))
    paper = for_paper(figure.to_plotly_json(), width=width)
    named = [trace for trace in paper["data"] if trace.get("name")]
    assert [trace["line"].get("dash") for trace in named] == ["solid", "4px,2px"]
