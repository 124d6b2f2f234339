"""Nodes placed until the attributions add up, against 256 equal steps, as published.

Counted, not timed: blocks run there and back, on the shipped model. Both run only the blocks behind
the layer.
"""

import statistics

import torch

from benchmarks.harness import Row
from interp import load_model, load_task
from interp.analyses.integrated_gradients import IntegratedGradients

_STEPS = 256


@torch.no_grad()
def run() -> dict[str, Row]:
    """Return nodes and blocks of both, and how well each adds up, over 64 two-hop prompts."""
    model, task = load_model("zoo/hops-4l"), load_task("two-hop", n=64)
    ways = {
        "ours": IntegratedGradients(),
        "published": IntegratedGradients(nodes="published", max_nodes=_STEPS),
    }
    measured = {}
    for name, analysis in ways.items():
        blocks, clean, parts = 0.0, 0.0, []
        for prompts in model.shards(task):
            shard = model.tokenize(prompts)
            recording = model.record(shard)
            recording.resid(0)
            clean += recording.work.block_tokens
            parts.append(analysis.measure(recording, shard, {}))
            blocks += recording.work.block_tokens
        measured[name] = (analysis.combine(parts), (blocks - clean) / clean)
    (ours, our_work), (published, their_work) = measured["ours"], measured["published"]
    nodes = ours.arrays["nodes"].flatten().tolist()
    errors = {name: result.relative_error for name, (result, _) in measured.items()}
    apart = abs(ours.attribution.values - published.attribution.values)[:, :, 1:]
    values = {
        "nodes, median": statistics.median(nodes),
        "nodes, most": max(nodes),
        "cases over a quarter of the published nodes": sum(n > _STEPS / 4 for n in nodes),
        "cases that wanted more than the cap": int(ours.arrays["capped"].sum()),
        "largest difference of an attribution": float(apart[apart == apart].max()),
    }
    for name, error in errors.items():
        values |= {
            f"completeness error, {name}, median": float(statistics.median(error.flatten())),
            f"completeness error, {name}, worst": float(error.max()),
        }
    n_cases = f"{len(nodes)} cases"
    return {
        f"blocks there and back, all of {n_cases}": {
            "ratio": round(our_work / their_work, 3),
            "goal": 0.25,
            "forwards": [round(our_work, 1), round(their_work, 1)],
        },
        f"nodes, median of {n_cases}": {
            "ratio": round(statistics.median(nodes) / _STEPS, 3),
            "goal": 0.25,
        },
    } | {name: {"value": value} for name, value in values.items()}
