"""All numbers of a circuit as a tidy frame."""

from typing import TYPE_CHECKING

import pandas as pd

from interp.analyses.circuit_discovery.areas import AREAS, why_not_comparable
from interp.figures.words import CIRCUITS

if TYPE_CHECKING:
    from interp.analyses.circuit_discovery.result import CircuitDiscoveryResult

_EDGES_LISTED = 200
_COLUMNS = (
    *("measure", "kind", "fraction", "n_edges", "sender", "receiver"),
    *("mean", "low", "high", "n_prompts", "note"),
)
Rows = list[dict[str, object]]


def frame_of(result: "CircuitDiscoveryResult") -> pd.DataFrame:
    """Return the metric, faithfulness by kind and fraction, its summaries, and edge scores."""
    metric = {"clean": result.clean, "corrupted": result.corrupted, "gap": result.gap}
    first: Rows = [
        {"measure": result.analysis.metric, "kind": kind, **each.columns()}
        for kind, each in metric.items()
    ]
    edges: Rows = [
        {"measure": "edge score", "sender": sender, "receiver": receiver, "mean": score}
        for sender, receiver, score in result.whole.edges[:_EDGES_LISTED]
    ]
    rows = [*first, *_faithfulness(result), *_summaries(result), *edges]
    frame = pd.DataFrame(rows).reindex(columns=list(_COLUMNS))
    return frame.astype({"n_edges": "Int64", "n_prompts": "Int64"})


def _faithfulness(result: "CircuitDiscoveryResult") -> Rows:
    rows: Rows = []
    for kind in CIRCUITS:
        curve = result.curve(kind)
        for at, fraction in enumerate(result.analysis.fractions):
            if kind == "random" and at not in result.chosen:
                continue
            n_edges = result.circuits[at].n_edges
            about = {
                "measure": "faithfulness",
                "kind": kind,
                "fraction": fraction,
                "n_edges": result.whole.n_edges - n_edges if kind == "complement" else n_edges,
                "n_prompts": result.gap.n,
            }
            rows.append(about | {name: float(column[at]) for name, column in curve.items()})
    return rows


def _summaries(result: "CircuitDiscoveryResult") -> Rows:
    """Return areas, what the chosen circuit and its controls keep, and the draws' spread."""
    rows: Rows = []
    for name in AREAS:
        about = {
            "measure": name,
            "kind": "circuit",
            "note": why_not_comparable(name, result.analysis),
        }
        rows.append({**about, **result.area(name).columns()})
    rows.append({"measure": "edges in common", "kind": "random", "mean": result.shared})
    if result.is_absent:
        return rows
    kept = {kind: result.kept(kind) for kind in CIRCUITS}
    as_much = float((result.by_draw >= kept["circuit"].value).mean())
    for kind, each in kept.items():
        rows.append({"measure": "kept", "kind": kind, **each.columns()})
    return [
        *rows,
        {"measure": "kept", "kind": "best random draw", "mean": float(result.by_draw.max())},
        {"measure": "draws that keep as much", "kind": "random", "mean": as_much},
    ]
