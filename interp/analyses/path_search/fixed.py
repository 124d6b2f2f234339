"""One path for all prompts, chosen on one half of them to be judged on the other."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from interp.models import Model
from interp.shapes import Tensors
from interp.sweeps.answers import require_answers
from interp.sweeps.halves import halves_or_all, in_first_half
from interp.sweeps.path_scores import PathScorer, Search
from interp.sweeps.path_tree import Path
from interp.sweeps.tags import keys_of
from interp.tasks.batch import TokenBatch


def fixed_paths(
    model: Model, shards: Sequence[TokenBatch], search: Search, *, seed: int
) -> Tensors:
    """Return "fixed.path" [half 2L]: the best of as many paths as each prompt has tries.

    The search is the prompts' own, with the mean reward of a half. "half" [prompt] says which half
    the prompts "key" [prompt] belong to; no group is in both. One group chooses for itself.
    """
    keys = torch.cat([keys_of(shard.prompts) for shard in shards])
    in_first = in_first_half(shards, seed=seed)
    paths = torch.full((2, 2 * model.n_layers), -1, dtype=torch.int16)
    for half, rows in enumerate(halves_or_all(in_first)):
        path = _best(model, shards, search, keys[rows], seed=seed + half)
        paths[half, : len(path)] = torch.tensor(path, dtype=torch.int16)
    return {"key": keys, "half": torch.from_numpy(~in_first).to(torch.int8), "fixed.path": paths}


def _best(
    model: Model, shards: Sequence[TokenBatch], search: Search, chosen: Tensor, *, seed: int
) -> Path:
    """Return the path with most right answers; of equals the highest reward, or the shortest."""
    batches = []
    for shard in shards:
        rows = torch.isin(keys_of(shard.prompts), chosen).nonzero()[:, 0].tolist()
        batches += [shard.only(rows)] if rows else []
    recordings = [model.record(batch) for batch in batches]
    tree = search.tree(model.n_layers, seed=seed)
    scored: dict[Path, tuple[float, float, int]] = {}
    for _ in range(search.n_simulations):
        path = tree.propose()
        right: list[bool] = []
        reward: list[float] = []
        for recording, batch in zip(recordings, batches, strict=True):
            every = range(len(batch.prompts))
            scorer = PathScorer(recording, every, require_answers(batch)[:, :1], batch.wrong)
            scores = scorer.scores(every, [path] * len(every))
            right += [score.is_right() for score in scores]
            reward += [score.reward(search.reward) for score in scores]
        tree.reward(float(np.mean(reward)))
        scored[path] = (float(np.mean(right)), round(float(np.mean(reward)), 6), -len(path))
    return max(scored, key=lambda path: scored[path])
