"""A report of eight analyses on 64 prompts of `zoo/hops-8l`: forwards per prompt as counted in the run, against the
same list as naive loops.

Naive: one forward for what is read from a clean pass; 10 L + 1 for skips (all positions; four splits, each with its
direct effects); (L + 1) T for erasure of single positions and as many again for prefixes; 256 steps at every layer for
integrated gradients (backward passes are counted on neither side); L (L - 1) / 2 for a grid of back-patches, and as
many for each control.
"""

import tempfile
from pathlib import Path
from typing import Any

import interp
from interp.runs import Study, execute

_MODEL, _TASK, _N = "zoo/hops-8l", "two-hop", 64
_CONTROLS = 2


def run() -> dict[str, Any]:
    """Return the ratio of forwards of each analysis, and of their sum."""
    analyses = {
        "residual_contribution": {}, "logit_lens": {}, "layer_skip": {"scopes": ("all", "future", "direct")},
        "residual_erasure": {}, "integrated_gradients": {}, "depth_score": {}, "block_influence": {},
        "back_patching": {"controls": ("forward", "random")},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        done = execute(Study((_MODEL,), (_TASK,), analyses, n=_N), Path(folder) / "run")
    ours = {cell["analysis"]: cell for cell in done["cells"].values()}
    naive = _naive()
    results = {
        name: {"ratio": round(ours[name]["forwards_per_prompt"] / naive[name], 4), "ours": ours[name]["forwards_per_prompt"]}
        | {"naive": naive[name], "seconds_ours": ours[name]["seconds"]}
        for name in analyses
    }
    total = sum(cell["forwards_per_prompt"] for cell in ours.values())
    results["all together"] = {"ratio": round(total / sum(naive.values()), 4), "ours": round(total, 2)} | {
        "naive": sum(naive.values()), "seconds_ours": round(sum(cell["seconds"] for cell in ours.values()), 2)
    }  # fmt: skip
    return {f"{name}: {_told(row)}": row for name, row in results.items()}


def _told(row: dict[str, Any]) -> str:
    return f"{row['ours']:.2f} forwards a prompt instead of {row['naive']:.0f} ({row['seconds_ours']:.2f} s in all)"


def _naive() -> dict[str, float]:
    model, task = interp.load_model(_MODEL), interp.load_task(_TASK, n=_N)
    lengths = [batch.tokens.shape[1] for batch in map(model.tokenize, model.shards(task)) for _ in batch.prompts]
    layers, tokens = model.n_layers, sum(lengths) / len(lengths)
    return {
        "residual_contribution": 1, "logit_lens": 1, "block_influence": 1, "layer_skip": 10 * layers + 1,
        "depth_score": layers + 1, "residual_erasure": 2 * (layers + 1) * tokens,
        "integrated_gradients": 256 * layers, "back_patching": (1 + _CONTROLS) * layers * (layers - 1) / 2,
    }  # fmt: skip
