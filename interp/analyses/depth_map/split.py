"""Which prompts are fitted, which choose the ridge, which are held out; and random halves."""

import random
from collections.abc import Sequence
from typing import Literal

import numpy as np

from interp.models import Model
from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch

Role = Literal["fit", "validation", "test"]
_RESAMPLES = 200


def roles_of(prompts: Sequence[Prompt], *, seed: int) -> dict[str, Role]:
    """Assign roles: of every eight prompts five are fitted, one validates, two are held out."""
    rng = random.Random(seed)
    roles: dict[str, Role] = {}
    for start in range(0, len(prompts), 4):
        block: list[Role] = ["fit", "fit", "fit" if start % 8 else "validation", "test"]
        rng.shuffle(block)
        roles |= {
            prompt.id: role for prompt, role in zip(prompts[start : start + 4], block, strict=False)
        }
    return roles


def batches_by_role(
    model: Model, shards: Sequence[Sequence[Prompt]], *, seed: int
) -> dict[Role, list[TokenBatch]]:
    """Return the prompts that are fitted, that choose the ridge and that are held out."""
    roles = roles_of([prompt for shard in shards for prompt in shard], seed=seed)
    by_role: dict[Role, list[TokenBatch]] = {"fit": [], "validation": [], "test": []}
    for shard in shards:
        for role, batches in by_role.items():
            if chosen := [prompt for prompt in shard if roles[prompt.id] == role]:
                batches.append(model.tokenize(chosen))
    return by_role


def halves_of(n: int, *, seed: int) -> list[np.ndarray]:
    """Return random halves of n prompts.

    A mean over a half, drawn without replacement, varies about as much as one over n drawn anew.
    """
    rng = np.random.default_rng(seed)
    return [np.sort(rng.permutation(n)[: max(1, n // 2)]) for _ in range(_RESAMPLES)]
