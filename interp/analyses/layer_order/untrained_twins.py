"""Swaps and skips of neighbours in untrained twins: what order does before anything is learned."""

from collections.abc import Sequence

import torch

from interp.analyses.layer_order.variants import Variant
from interp.analyses.layer_order.walks import changes_of
from interp.models import Model
from interp.models.untrained import twins_of
from interp.shapes import Tensors
from interp.tasks import Task
from interp.tasks.prompts import key_of

JUDGED = 8  # prompts that twins are asked


def twins_changes(model: Model, task: Task, pairs: Sequence[Variant], *, seed: int) -> Tensors:
    """Return "twins" [twin operation measure]: of swaps, then of skips; of KL, then first tokens.

    They are means over pairs and over a few prompts, chosen by their ids. Nothing where no twin can
    be built.
    """
    judged = task.of(sorted(task.prompts, key=lambda prompt: key_of(prompt.id))[:JUDGED])
    half = len(pairs) // 2
    by_twin = []
    for twin in twins_of(model, seed=seed):
        changes = torch.cat(
            [
                changes_of(twin.record(batch), pairs, None)[0]
                for batch in map(twin.tokenize, twin.shards(judged))
            ]
        )
        means = [changes[:, some, :2].mean((0, 1)) for some in (slice(half), slice(half, None))]
        by_twin.append(torch.stack(means).cpu())
    return {"twins": torch.stack(by_twin)} if by_twin else {}
