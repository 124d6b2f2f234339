"""A circuit as a graph that can be clicked, its selected node or edge, and its edges as a table."""

import io
import json
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import streamlit as st

from interp.figures.plots import Axes, curves
from interp.figures.words import CIRCUITS, node_named
from interp_viewer import annotations, menu
from interp_viewer.about import about
from interp_viewer.drawing import drawing, nodes_of, svg
from interp_viewer.lines import draw_figure
from interp_viewer.selected import Selected
from interp_viewer.text import number, plain
from interp_viewer.widgets import choose
from interp_viewer.wiring import MOST_EDGES, TINY, Edge, Wires, graph_of

_DEFAULT_K = 40
_LISTED = 12


def choose_k(here: Selected, wires: Wires) -> int:
    """Let the number of edges be chosen, and return it."""
    most = min(MOST_EDGES, max(6, wires.n_edges))
    k = here.selection.k if here.selection.k is not None else _DEFAULT_K
    st.session_state["k-box"] = max(5, min(k, most))
    return int(
        st.number_input(
            f"Edges of {wires.n_edges:,}",
            5,
            most,
            step=5,
            key="k-box",
            on_change=lambda: here.select(k=int(st.session_state["k-box"])),
            width=250,
            help=f"At most {most:,} are drawn.",
        )
    )


def draw_circuit(here: Selected, wires: Wires, k: int) -> None:
    """Draw the graph beside what is selected in it, how faithful it is, and its edges."""
    notes, largest = annotations.read(here), wires.largest(k)
    drawn = [edge for edge in largest if abs(edge.score) >= TINY * abs(largest[0].score)]
    n_tiny = len(largest) - len(drawn)
    edges = [edge for edge in drawn if not {edge.sender, edge.node} & set(notes.hidden)]
    spec = drawing(
        edges,
        wires,
        labels=notes.labels,
        pinned=set(notes.pinned),
        node=here.selection.node,
        edge=here.selection.edge,
    )
    left, right = st.columns([0.76, 0.24], gap="medium")
    with left:
        _draw(here, edges, spec)
        st.caption(_what_is_drawn(wires, edges, n_tiny))
    with right:
        _choose_node(here, edges)
        _about(here, wires, edges, notes)
    about(here, "circuit_discovery")
    _faithfulness(here, len(edges))
    _edge_table(here, edges, notes, spec)


def _what_is_drawn(wires: Wires, edges: list[Edge], n_tiny: int) -> str:
    share = 100 * wires.share(edges)
    tiny = f" {n_tiny} more are below {TINY:.0%} of the largest and not drawn." if n_tiny else ""
    return (
        f"**{len(edges)} of {wires.n_edges:,} edges, {share:.0f} % of all absolute scores.**{tiny}"
        " Layers grow upwards; heads (circles) and MLPs (squares) stand from left to right. Width:"
        " size of the score; blue: positive, red and dashed: negative."
    )


def _draw(here: Selected, edges: list[Edge], spec: dict[str, Any]) -> None:
    selection = here.selection
    used = nodes_of(edges)

    def picked() -> None:
        """Select what was clicked.

        The chart may hold a node and an edge: the one that was not selected before is meant.
        """
        groups = st.session_state["circuit"].selection.selected
        held = {
            group["data_type"]: group["data_indices"][-1]
            for group in groups
            if group["data_indices"]
        }
        names = {"node": used, "edge": [edge.name for edge in edges]}
        clicked = {kind: names[kind][i] for kind, i in held.items() if i < len(names.get(kind, ()))}
        new = {kind: name for kind, name in clicked.items() if name != getattr(selection, kind)}
        if "edge" in new:
            here.select(edge=new["edge"], node="", layer=_layer(edges[held["edge"]].node))
        elif "node" in new:
            here.select(
                node=new["node"], edge="", layer=_layer(new["node"]), head=_head(new["node"])
            )

    with st.container(key="graph"):
        st.echarts_chart(
            spec,
            key="circuit",
            on_select=picked,
            alt=f"A circuit of {len(edges)} edges; the same edges stand in the table below",
        )


def _layer(node: str) -> int | None:
    return int(node[1:].split(".")[0]) if node[0] in "am" and node[1:2].isdigit() else None


def _head(node: str) -> int | None:
    return int(node.rpartition(".h")[2]) if ".h" in node else None


def _choose_node(here: Selected, edges: list[Edge]) -> None:
    names = nodes_of(edges)
    at = names.index(here.selection.node) if here.selection.node in names else None
    choose(
        "Node",
        [node_named(name) for name in names],
        at,
        lambda i: here.select(node=names[i], edge="", layer=_layer(names[i]), head=_head(names[i])),
        key="node",
    )
    known = [edge.name for edge in edges]
    at = known.index(here.selection.edge) if here.selection.edge in known else None
    choose(
        "Edge",
        [edge.shown for edge in edges],
        at,
        lambda i: here.select(edge=known[i], node=""),
        key="edge",
    )


def _about(here: Selected, wires: Wires, edges: list[Edge], notes: "annotations.Notes") -> None:
    """Say what the selected node or edge is, and let it be pinned, hidden and labelled."""
    selection = here.selection
    if edge := next((edge for edge in edges if edge.name == selection.edge), None):
        place = edges.index(edge) + 1
        st.metric(edge.shown, number(edge.score))
        st.caption(f"the {place}. largest of {wires.n_edges:,} edges")
        _of_prompts(here, wires, edge)
    elif selection.node:
        incoming, outgoing = (
            [e for e in edges if side(e) == selection.node]
            for side in (lambda e: e.node, lambda e: e.sender)
        )
        st.markdown(
            f"**{plain(node_named(selection.node))}**: {len(incoming)} edges in,"
            f" {len(outgoing)} out, of those shown"
        )
        shown = [f"- {plain(e.shown)} {number(e.score)}" for e in [*incoming, *outgoing]]
        more = (
            [f"- {len(shown) - _LISTED} more, in the table below"] if len(shown) > _LISTED else []
        )
        st.markdown("\n".join([*shown[:_LISTED], *more]))
        _link_to_patterns(here)
        annotations.edit(here, notes, selection.node)
    else:
        st.caption("Click a node or an edge, or choose one here.")
    if notes.hidden and st.button(f"Show {len(notes.hidden)} hidden nodes again"):
        annotations.write(here, annotations.Notes(notes.pinned, (), notes.labels))
        st.rerun()


def _link_to_patterns(here: Selected) -> None:
    """Link to what the selected node attends to, if it is a head and the run has its patterns."""
    node = here.selection.node
    head = _head(node)
    if head is None or not here.labels("head_patterns"):
        return
    elsewhere = {"node": "", "edge": "", "of": "", "over": "", "label": ""}
    there = here.selection.moved(layer=_layer(node), head=head, **elsewhere)
    label = f"What {node_named(node)} attends to →"
    st.page_link(menu.entry_of("head_patterns").page, label=label, query_params=there.params())


def _of_prompts(here: Selected, wires: Wires, edge: Edge) -> None:
    measured = here.measured(here.cell("circuit_discovery"))
    values = measured.at(
        "scores", wires.receivers.index(edge.receiver), wires.senders.index(edge.sender)
    )
    values = values[np.isfinite(values)]
    low, middle, high = np.percentile(values, [25, 50, 75])
    st.caption(
        f"Over {len(values)} prompts: median {number(middle)},"
        f" half of them {number(low)} to {number(high)}."
    )


def _faithfulness(here: Selected, n_shown: int) -> None:
    frame = here.run.frame(here.cell("circuit_discovery"))
    rows = frame[frame["measure"] == "faithfulness"].reset_index(drop=True)
    total = float(rows["n_edges"].max())
    figure = curves(
        rows.replace({"kind": CIRCUITS}),
        x="fraction",
        groups="kind",
        axes=Axes("share of all edges (log scale)", "faithfulness"),
        title="What circuits of this size keep",
        is_log=True,
    )
    if n_shown:
        figure.add_vline(x=n_shown / total, line_dash="dot", line_color="grey")
        at = float(
            np.log10(n_shown / total)
        )  # a line is placed in shares, a text on a log axis in their logarithms
        figure.add_annotation(
            x=at, y=1, yref="paper", yanchor="bottom", text="shown above", showarrow=False
        )
    figure.update_layout(height=340)
    draw_figure(
        figure,
        key="faithfulness",
        alt="Faithfulness of circuits by their share of edges; the numbers are on the page “Data”",
    )


def _edge_table(
    here: Selected, edges: list[Edge], notes: "annotations.Notes", spec: dict[str, Any]
) -> None:
    st.markdown("**The edges shown**")
    frame = pd.DataFrame(
        [(node_named(e.sender), node_named(e.receiver), e.score) for e in edges],
        columns=["sender", "receiver", "score"],
    )
    st.dataframe(frame, hide_index=True, height=260)
    graph = graph_of(edges, notes.labels)
    buffer = io.BytesIO()
    nx.write_graphml(graph, buffer)
    about = {
        "run": here.run.id,
        "model": here.model,
        "task": here.task,
        "edges": [e.__dict__ for e in edges],
        "pinned": list(notes.pinned),
        "hidden": list(notes.hidden),
        "labels": notes.labels,
    }
    left, middle, right = st.columns(3)
    left.download_button(
        "Save as JSON", json.dumps(about, indent=1), "circuit.json", "application/json"
    )
    middle.download_button(
        "Save as GraphML", buffer.getvalue(), "circuit.graphml", "application/xml"
    )
    right.download_button("Save as SVG", svg(spec), "circuit.svg", "image/svg+xml")
