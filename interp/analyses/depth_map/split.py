"""Which prompts are fitted, which choose the ridge, which are held out; what is known of them."""

import random
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from interp.errors import AnalysisError
from interp.models import Model
from interp.shapes import Tensors
from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch

Role = Literal["fit", "validation", "test"]


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


def stacked(prepared: Tensors, kind: str, ids: Sequence[str]) -> Tensor | None:
    """Return what was prepared of every prompt [batch ...], 0 for those that have nothing.

    None if no prompt has anything.
    """
    known = next((value for key, value in prepared.items() if key.startswith(f"{kind} ")), None)
    if known is None:
        return None
    return torch.stack([prepared.get(f"{kind} {key}", torch.zeros_like(known)) for key in ids])


def misses_of(shard: TokenBatch, prepared: Tensors, *, begin: int) -> Tensors:
    """Return what maps miss on a shard's held-out prompts, and the number of tokens judged."""
    keys = [prompt.id for prompt in shard.prompts]
    misses, control = (stacked(prepared, kind, keys) for kind in ("prompt", "control"))
    assert misses is not None  # some prompt is held out
    n_read = shard.tokens.shape[1] - begin
    parts = {
        "error": misses[:, 0],
        "squared": misses[:, 1],
        "tokens": torch.tensor([n_read * (f"prompt {key}" in prepared) for key in keys]),
        "ridge": prepared["ridge"].expand(len(keys), -1, -1).contiguous(),
        "drawn": shard.groups,
    }
    return parts if control is None else parts | {"control": control}


def onward_of(shard: TokenBatch, prepared: Tensors) -> Tensors:
    """Return "onward" [batch grid source target], "itself" and "own", if states are continued.

    Of held-out prompts; 0 for others.
    """
    keys = [prompt.id for prompt in shard.prompts]
    each = {kind: stacked(prepared, kind, keys) for kind in ("onward", "itself", "own")}
    return {kind: values for kind, values in each.items() if values is not None}


def held_out(whole: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the rows of held-out prompts; raise AnalysisError if there is none."""
    is_held = whole["tokens"] > 0
    if not is_held.any():
        raise AnalysisError(f"none of {len(is_held)} prompts is held out; give more")
    return {
        key: rows[is_held] if key == "drawn" else rows[is_held].astype(np.float64)
        for key, rows in whole.items()
    }
