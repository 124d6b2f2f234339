"""Two halves of the prompts: what is chosen or fitted on one half is used on the other.

By groups (of one fact, one name), or by answers. No group is in both halves, or no answer: so maps
are judged on other prompts and other entities than they were fitted on. Which half an answer is in
depends on the answers alone, not on the order of prompts.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.shapes import Tensors
from interp.stats.groups import Grouping
from interp.tasks.batch import TokenBatch
from interp.tasks.prompts import key_of

_FEWEST = 8  # answers; with fewer of them the halves are of groups of prompts


def in_first_half(shards: Sequence[TokenBatch], *, seed: int) -> Bool[np.ndarray, " prompt"]:
    """Return which prompts of all shards are in the first half; no group is in both."""
    groups = torch.cat([shard.groups for shard in shards]).cpu().numpy()
    return Grouping.of(len(groups), groups).half(seed=seed)


def halves_or_all(half: Bool[np.ndarray, " prompt"]) -> Bool[Tensor, "half prompt"]:
    """Return which prompts are in the first and the second half; all in both if one is empty."""
    both = np.stack([half, ~half])
    return torch.tensor(both if both.any(1).all() else np.ones_like(both))


def halves_of(batches: Sequence[TokenBatch], *, seed: int) -> Tensors:
    """Return "units" [unit], sorted, the "half" [unit] of each, and "by_answer" [1]: 0 or 1.

    A unit is an answer's first token, or where there are few answers a group of prompts.
    """
    answers = [batch.answer for batch in batches if batch.answer is not None]
    units = _unique(torch.cat([answer.cpu() for answer in answers])) if answers else None
    by_answer = units is not None and len(answers) == len(batches) and len(units) >= _FEWEST
    if units is None or not by_answer:
        units = _unique(torch.cat([batch.groups for batch in batches]))
    order = sorted(range(len(units)), key=lambda i: key_of(f"{seed} {int(units[i])}"))
    half = torch.zeros(len(units), dtype=torch.long)
    half[order[1::2]] = 1
    return {"units": units, "half": half, "by_answer": torch.tensor([int(by_answer)])}


def _unique(values: Tensor) -> Tensor:
    """Return all different values, sorted."""
    return torch.tensor(sorted({*values.tolist()}))


def half_of(batch: TokenBatch, halves: Tensors) -> Int[Tensor, " batch"]:
    """Return which half, 0 or 1, each prompt of a batch is in; units must be known."""
    if bool(halves["by_answer"].item()) and batch.answer is not None:
        units = batch.answer.cpu()
    else:
        units = batch.groups
    return halves["half"][torch.searchsorted(halves["units"], units)]
