"""Right and wrong judged by texts instead of ranks: clean, patched and sampled."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from interp.analyses.back_patching.tries import Tries, n_pairs
from interp.models import Model
from interp.result import concatenated
from interp.shapes import Tensors
from interp.sweeps.tags import keys_of, rows_of
from interp.sweeps.texts import hold_answers, patched_texts, sampled_texts
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

_TEXTS = "texts."


def judge_texts(
    model: Model,
    task: Task,
    tries_of: Callable[[TokenBatch], Iterator[Tries]],
    *,
    max_new_tokens: int,
    seed: int,
) -> Tensors:
    """Return whether the texts of a task's prompts hold the answers, and the prompts' keys."""
    parts = []
    for prompts in model.shards(task):
        shard = model.tokenize(prompts)
        parts.append(
            _judged(model, shard, tries_of(shard), max_new_tokens=max_new_tokens, seed=seed)
        )
    return {f"{_TEXTS}{key}": of_all for key, of_all in concatenated(parts).items()}


def judgements_of(shard: TokenBatch, prepared: Tensors) -> Tensors:
    """Return what `judge_texts` found for a shard's prompts; nothing if texts do not decide."""
    if f"{_TEXTS}key" not in prepared:
        return {}
    rows = rows_of(prepared[f"{_TEXTS}key"], shard.prompts)
    return {
        key.removeprefix(_TEXTS): value[rows]
        for key, value in prepared.items()
        if key.startswith(_TEXTS) and key != f"{_TEXTS}key"
    }


@torch.no_grad()
def _judged(
    model: Model, shard: TokenBatch, all_tries: Iterator[Tries], *, max_new_tokens: int, seed: int
) -> Tensors:
    n_tries = n_pairs(model.n_layers)
    clean = model.generate(shard, max_new_tokens=max_new_tokens).texts
    sampled = sampled_texts(model, shard, n=n_tries, max_new_tokens=max_new_tokens, seed=seed)
    is_drawn = hold_answers(sampled, shard.prompts)
    tensors: Tensors = {
        "key": keys_of(shard.prompts),
        "is_right": hold_answers([clean], shard.prompts)[0],
        "sampled.one": is_drawn.float().mean(0),
        "sampled.any": is_drawn.any(0).float(),
        "is_unchanged": torch.ones(len(shard.prompts), dtype=torch.bool),
    }
    for tries in all_tries:
        right: dict[int, Tensor] = {}
        for target, values in tries.values.items():
            texts = patched_texts(
                model,
                shard,
                values,
                layer=target,
                positions=tries.positions,
                max_new_tokens=max_new_tokens,
            )
            right[target] = hold_answers(texts, shard.prompts).to(torch.int8)
            if tries.kind == "own" and target in (sources := tries.sources[target]):
                pairs = zip(texts[sources.index(target)], clean, strict=True)
                tensors["is_unchanged"] &= torch.tensor([own == before for own, before in pairs])
        tensors[f"{tries.kind}.right"] = tries.grid(right, n_layers=model.n_layers)
    return tensors
