"""What any change of this size does: the whole change between two models, its entries permuted.

All prompts are run before the first shard is measured, and a shard looks up its own.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.analyses.checkpoint_stitch.changes import block_weights, permuted
from interp.metrics import changes, distribution
from interp.models import Model, temporary_weights
from interp.shapes import Tensors
from interp.sweeps.tags import keys_of, rows_of
from interp.tasks.batch import TokenBatch

_APART = 2**12  # between the seeds of copies


def run_random(
    model: Model, other: Model, batches: Sequence[TokenBatch], *, draws: int, seed: int
) -> Tensors:
    """Return "random" [prompt draw] of all prompts, and their "key" [prompt].

    It is KL(permuted ‖ model) in nats, where the model has the change of every block's parameters
    to the other's with its entries permuted; embedding and head stay. 0 where no block differs. One
    permuted copy of the blocks is held at a time.
    """
    keys = torch.cat([keys_of(batch.prompts) for batch in batches])
    found = torch.zeros(len(keys), draws)
    layers = [layer for layer in range(model.n_layers) if _differs(model, other, layer)]
    clean = [_last(model, batch) for batch in batches] if layers else []
    for draw in range(draws if layers else 0):
        weights: Tensors = {}
        for layer in layers:
            weights |= permuted(model, other, layer, seed=seed + _APART * (draw + 1))
        with temporary_weights(model, weights):
            each = [
                changes(before, distribution(_last(model, batch)))["kl"]
                for batch, before in zip(batches, clean, strict=True)
            ]
        found[:, draw] = torch.cat(each).cpu()
    return {"random": found, "key": keys}


def random_of(shard: TokenBatch, prepared: Tensors) -> Float[Tensor, "batch draw"]:
    """Return a shard's rows of what `run_random` returned."""
    return prepared["random"][rows_of(prepared["key"], shard.prompts)]


def _differs(model: Model, other: Model, layer: int) -> bool:
    theirs = block_weights(other, layer)
    return any(
        not torch.equal(weight, theirs[name].to(weight.device))
        for name, weight in block_weights(model, layer).items()
    )


def _last(model: Model, batch: TokenBatch) -> Float[Tensor, "batch d_vocab"]:
    logits: Tensor = model.forward(batch, positions=slice(-1, None)).logits
    return logits[:, 0].float()
