"""Whether greedy texts without some layers still hold the answer."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.analyses.layer_removal.orders import Order, sets_of
from interp.models import Model
from interp.shapes import Tensors
from interp.sweeps.continuations import texts_along
from interp.sweeps.removal import Removed
from interp.sweeps.tags import rows_of
from interp.sweeps.texts import hold_answers
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

N_DRAWN = 2  # random orders whose texts are written


@torch.no_grad()
def judged(
    model: Model,
    task: Task,
    chosen: Tensors,
    orders: Sequence[Order],
    counts: Sequence[int],
    *,
    max_new_tokens: int,
) -> Tensors:
    """Return "texts" [prompt order step] and the whole model's "texts.clean" [prompt], 0 or 1.

    They are 1 where the text holds the answer. Of random orders, the first `N_DRAWN` are read.
    """
    n_orders = min(len(orders) + N_DRAWN, chosen["removed"].shape[1])
    clean = torch.zeros(len(chosen["key"]))
    texts = torch.zeros(len(chosen["key"]), n_orders, len(counts))
    for prompts in model.shards(task):
        shard = model.tokenize(prompts)
        rows = torch.tensor(rows_of(chosen["key"], shard.prompts))
        for half in (False, True):
            own = (chosen["is_first"][rows] == half).nonzero()[:, 0]
            if not len(own):
                continue
            removed, some = chosen["removed"][int(half), :n_orders], shard.only(own.tolist())
            held = _held(model, some, removed, counts, max_new_tokens=max_new_tokens)
            clean[rows[own]], texts[rows[own]] = held
    return {"texts.clean": clean, "texts": texts}


def _held(
    model: Model,
    shard: TokenBatch,
    removed: Int[Tensor, "order most"],
    counts: Sequence[int],
    *,
    max_new_tokens: int,
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch order step"]]:
    """Return whether texts of the whole model, and without layers, hold the answer."""
    sets = {Removed(): [], **sets_of(removed, counts)}
    paths = [[x for x in range(model.n_layers) if x not in gone] for gone in sets]
    said = texts_along(model, shard, paths, max_new_tokens=max_new_tokens)
    verdicts = hold_answers(said, shard.prompts).float()
    texts = torch.zeros(len(shard.prompts), len(removed), len(counts))
    for verdict, places in zip(verdicts, sets.values(), strict=True):
        for order, step in places:
            texts[:, order, step] = verdict
    return verdicts[0], texts
