"""A circuit as an ECharts graph on fixed lanes, and the same as a picture that scales."""

from html import escape
from typing import Any

from interp.figures.words import node_named
from interp.numerals import number
from interp_viewer.wiring import Edge, Wires

POSITIVE, NEGATIVE = "#3182bd", "#d6453d"  # on white and on black
_SELECTED, _PINNED, _PLAIN = "#E69F00", "#009E73", "#8a8678"
_SHAPES = {"embed": "diamond", "logits": "diamond", "a": "circle", "m": "rect"}


def places(wires: Wires) -> dict[str, tuple[float, float]]:
    """Return where every node stands: x is its lane, y grows with the layer."""
    lanes = {
        "embed": ((wires.n_heads + 1) / 2, -1.0),
        "logits": ((wires.n_heads + 1) / 2, float(wires.n_layers)),
    }
    for layer in range(wires.n_layers):
        for head in range(wires.n_heads):
            lanes[f"a{layer}.h{head}"] = (float(head), float(layer))
        lanes[f"m{layer}"] = (wires.n_heads + 1.0, layer + 0.35)
    return lanes


def nodes_of(edges: list[Edge]) -> list[str]:
    """Return the nodes at the ends of edges, each once."""
    return list(dict.fromkeys(name for edge in edges for name in (edge.sender, edge.node)))


def drawing(
    edges: list[Edge],
    wires: Wires,
    *,
    labels: dict[str, str],
    pinned: set[str],
    node: str,
    edge: str,
) -> dict[str, Any]:
    """Return an ECharts graph of fixed places, with numbers in tooltips."""
    at, largest = places(wires), max((abs(e.score) for e in edges), default=1.0) or 1.0
    used = nodes_of(edges)
    step_x, step_y = 620 / (wires.n_heads + 2), 520 / (wires.n_layers + 1)
    nodes = []
    for name in used:
        place = {"x": at[name][0] * step_x, "y": -at[name][1] * step_y}
        colour = _SELECTED if name == node else _PINNED if name in pinned else _PLAIN
        size = 22 if name == node else 12
        nodes.append(place | _node(name, labels.get(name, node_named(name)), colour, size=size))
    links = []
    for e in edges:
        is_lit = not (node or edge) or e.name == edge or node in (e.sender, e.node)
        links.append(_link(e, width=1 + 7 * abs(e.score) / largest, is_lit=is_lit))
    margins = {"top": 16, "bottom": 16, "left": 20, "right": 80, "preserveAspect": True}
    arrows = {"edgeSymbol": ["none", "arrow"], "edgeSymbolSize": 6}
    how = {"type": "graph", "layout": "none", "roam": True, "selectedMode": "single"}
    series = {**how, "data": nodes, "links": links, **arrows, **margins}
    series["labelLayout"] = {"hideOverlap": True}
    return {"tooltip": {"trigger": "item"}, "animation": False, "series": [series]}


def _node(name: str, label: str, colour: str, *, size: int) -> dict[str, Any]:
    return {
        "name": node_named(name),
        "symbol": _SHAPES.get(name, _SHAPES.get(name[0], "circle")),
        "symbolSize": size,
        "label": {"show": True, "position": "right", "formatter": label, "fontSize": 12},
        "itemStyle": {"color": colour},
    }


def _link(edge: Edge, *, width: float, is_lit: bool) -> dict[str, Any]:
    style = {
        "color": POSITIVE if edge.score >= 0 else NEGATIVE,
        "width": width,
        "opacity": 1.0 if is_lit else 0.2,
        "curveness": 0.12 if edge.receiver[0] != "k" else -0.12,
        "type": "solid" if edge.score >= 0 else "dashed",
    }
    value = f"{edge.shown} {number(edge.score, '+.4f')}"
    return {
        "source": node_named(edge.sender),
        "target": node_named(edge.node),
        "value": value,
        "lineStyle": style,
    }


def svg(spec: dict[str, Any]) -> str:
    """Return a drawing as a picture that scales, the same in all its marks."""
    series = spec["series"][0]
    at = {node["name"]: (node["x"], node["y"]) for node in series["data"]}
    left, top = (min((place[i] for place in at.values()), default=0.0) - 40 for i in (0, 1))
    width, height = (
        max((place[i] for place in at.values()), default=0.0) - near + 120
        for i, near in enumerate((left, top))
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left:.0f} {top:.0f} {width:.0f}'
        f' {height:.0f}" font-family="sans-serif"><defs><marker id="end" viewBox="0 0 6 6"'
        ' refX="11" refY="3" markerWidth="6" markerHeight="6" markerUnits="userSpaceOnUse"'
        ' orient="auto"><path d="M0 0L6 3L0 6z" fill="#666"/></marker></defs>'
    ]
    for link in series["links"]:
        (x1, y1), (x2, y2), style = at[link["source"]], at[link["target"]], link["lineStyle"]
        bend = style["curveness"]
        middle = f"{(x1 + x2) / 2 - (y1 - y2) * bend:.1f} {(y1 + y2) / 2 - (x2 - x1) * bend:.1f}"
        dash = ' stroke-dasharray="5 3"' if style["type"] == "dashed" else ""
        parts.append(
            f'<path d="M{x1:.1f} {y1:.1f}Q{middle} {x2:.1f} {y2:.1f}" fill="none"'
            f' stroke="{style["color"]}" '
            f'stroke-width="{style["width"]:.1f}" opacity="{style["opacity"]}"'
            f' marker-end="url(#end)"{dash}>'
            f"<title>{escape(link['value'])}</title></path>"
        )
    for node in series["data"]:
        x, y, half = node["x"], node["y"], node["symbolSize"] / 2
        turned = f' transform="rotate(45 {x:.1f} {y:.1f})"' if node["symbol"] == "diamond" else ""
        round_ = half if node["symbol"] == "circle" else 0
        parts.append(
            f'<rect x="{x - half:.1f}" y="{y - half:.1f}" width="{2 * half:.1f}"'
            f' height="{2 * half:.1f}" rx="{round_:.1f}"'
            f' fill="{node["itemStyle"]["color"]}"{turned}/><text x="{x + half + 4:.1f}"'
            f' y="{y + 4:.1f}" font-size="12">{escape(node["label"]["formatter"])}</text>'
        )
    return "\n".join([*parts, "</svg>"])
