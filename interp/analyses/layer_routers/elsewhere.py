"""What routers that were trained on one task do on another."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.analyses.layer_routers.rates import at_rate
from interp.analyses.layer_routers.routes import fixed_sets
from interp.analyses.layer_routers.testing import FULL, by_rules
from interp.analyses.layer_routers.training import batches
from interp.models import Model
from interp.result import joined
from interp.shapes import Tensors
from interp.stats.shares import share
from interp.tasks import Prompt, load_task
from interp.tasks.prompts import key_of

if TYPE_CHECKING:
    from interp.analyses.layer_routers import LayerRouters

_MOST = 128  # prompts of the other task


def fitted_task(model: Model, name: str) -> list[tuple[Prompt, ...]]:
    """Return the shards of a task, of at most 128 prompts, drawn by their ids."""
    task = model.fit(load_task(name)).task
    chosen = sorted(task.prompts, key=lambda prompt: key_of(prompt.id))[:_MOST]
    return model.shards(task.of(chosen))


def judged_elsewhere(
    analysis: "LayerRouters", model: Model, prepared: Tensors
) -> Float[Tensor, "way 5"]:
    """Return accuracy, its interval's ends, the number of prompts and the mean share of layer runs.

    Ways: the full model; for each rule, the rule and the fixed set by skip loss at its rate.
    """
    parts, groups = [], []
    for shard in fitted_task(model, analysis.other_task):
        batch = next(iter(batches(model, load_task(analysis.other_task).of(shard))))
        measured = by_rules(analysis, batch.recording, batch.shard, batch.rows, prepared)
        order = prepared["order.skip loss"].expand(len(batch.rows), -1)
        measured["fixed"] = fixed_sets(batch.recording, batch.shard, batch.rows, order)
        parts.append(measured)
        groups.append(batch.shard.groups)
    arrays, of = joined(parts), torch.cat(groups).numpy()
    ways = [_way(arrays[f"scores.{FULL}"][:, 0], 1.0, of)]
    for rule in analysis.rules:
        runs = float(arrays[f"visits.{rule}"].sum(1).mean())
        fixed, _ = at_rate(arrays["fixed"][..., 0], runs, model.n_layers)
        ways.append(_way(arrays[f"scores.{rule}"][:, 0], runs / model.n_layers, of))
        ways.append(_way(fixed, min(1.0, runs / model.n_layers), of))
    return torch.tensor(ways, dtype=torch.float64)


def _way(right: np.ndarray, rate: float, groups: np.ndarray) -> list[float]:
    accuracy = share(right, groups=groups)
    return [accuracy.value, accuracy.low, accuracy.high, float(len(right)), rate]
