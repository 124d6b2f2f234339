"""A whole report of `zoo/hops-8l` on 64 prompts, against naive loops with plain hooks.

Ours is a run as the command line makes it: statistics, tables, figures and files are in its
seconds; one clean pass serves all. The peer computes only the arrays, one analysis after the other:
one forward each for what is read from a clean pass; 10 L + 1 for skips, as published; (L + 1) T for
erasing single positions; L + 1 for the depth score; L (L - 1) / 2 for a grid of back-patches, and
as many for each of two controls; for 4 of the prompts 256 steps of integrated gradients at every
layer (only the blocks after the layer, which is kind to the peer). Relevance patching is that of
`zoo/names-6l` on 64 prompts of `ioi`, against two forward passes and one backward in
TransformerLens's bridge.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

import interp
from benchmarks import back_patching, layer_skip, reductions, relevance_patching, residual_erasure
from benchmarks.harness import Row
from interp.analyses.integrated_gradients import IntegratedGradients
from interp.models import Model
from interp.runs import Study, execute
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

_N, _N_GRADIENTS, _CONTROLS = 64, 4, ("forward", "random")
_STUDIES = {
    ("zoo/hops-8l", "two-hop", _N): {
        "residual_contribution": {},
        "logit_lens": {},
        "layer_skip": {"scopes": ("all", "future", "direct")},
        "residual_erasure": {"scopes": ("position",)},
        "depth_score": {},
        "back_patching": {"position": "last", "known_only": False, "controls": _CONTROLS},
    },
    ("zoo/hops-8l", "two-hop", _N_GRADIENTS): {"integrated_gradients": {}},
    ("zoo/names-6l", "ioi", _N): {"relevance_patching": {"methods": ("relevance",)}},
}


def _naive(model: Model) -> dict[str, Callable[[TokenBatch], object]]:
    """Return by analysis what its naive loop does with a shard."""
    mean = torch.zeros(model.n_layers + 1, model.d_model)
    gradients = IntegratedGradients(nodes="published", max_nodes=256)
    return {
        "residual_contribution": lambda shard: reductions.naive_contribution(model, shard),
        "logit_lens": lambda shard: reductions.naive_lens(model, shard),
        "layer_skip": lambda shard: layer_skip.naive_everything(
            model, shard, layer_skip.even_splits(shard.tokens.shape[1])
        ),
        "residual_erasure": lambda shard: residual_erasure.naive(model, shard, mean),
        "depth_score": lambda shard: layer_skip.naive_all(model, shard),
        "back_patching": lambda shard: [
            back_patching.naive(model, shard) for _ in range(1 + len(_CONTROLS))
        ],
        "integrated_gradients": lambda shard: gradients.measure(model.record(shard), shard, {}),
        "relevance_patching": lambda shard: relevance_patching.three_passes(
            model.bridge, shard, is_bridge=True
        ),
    }


def run(repeats: int = 5) -> dict[str, Row]:
    """Return the seconds of each analysis and their sum, ours and the peer's, as medians."""
    seconds: dict[str, list[tuple[float, float]]] = {}
    for (model_name, task_name, n), analyses in _STUDIES.items():
        model, task = interp.load_model(model_name), interp.load_task(task_name, n=n)
        naive = _naive(model)
        for name in analyses:  # both warm
            naive[name](next(_shards(model, task)))
        for _ in range(repeats):
            ours = _ours(Study((model_name,), (task_name,), analyses, n=n))
            for name in analyses:
                seconds.setdefault(name, []).append((ours[name], _timed(naive[name], model, task)))
    pairs = {
        name: [median(side) for side in zip(*each, strict=True)] for name, each in seconds.items()
    }
    pairs["all together"] = [sum(side) for side in zip(*pairs.values(), strict=True)]
    return {
        name: {"ours_s": round(ours, 3), "peer_s": round(peer, 3), "ratio": round(ours / peer, 4)}
        for name, (ours, peer) in pairs.items()
    }


def _ours(study: Study) -> Mapping[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        done = execute(study, Path(folder) / "run")
    return {cell["analysis"]: cell["seconds"] for cell in done["cells"].values()}


def _timed(work: Callable[[TokenBatch], object], model: Model, task: Task) -> float:
    shards = list(_shards(model, task))
    began = time.perf_counter()
    for shard in shards:
        work(shard)
    return time.perf_counter() - began


def _shards(model: Model, task: Task) -> Any:
    return map(model.tokenize, model.shards(task))
