"""Edges are scored on half of the prompts, and the metric of circuits is measured on the other."""

from collections.abc import Sequence
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from interp.backward import Rules
from interp.errors import TaskError
from interp.metrics import Metric
from interp.models import Model
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sweeps.edges import (
    NUMBERS_HELD,
    circuit_values,
    edge_scores,
    few_at_once,
    plain_pass,
)
from interp.sweeps.twins import twins_of
from interp.sweeps.wiring import Wiring
from interp.tasks import Prompt, Task
from interp.tasks.batch import TokenBatch
from interp.tasks.prompts import key_of


def is_for_discovery(prompt_id: str) -> bool:
    """Tell whether edges are scored on a prompt: half of them are, chosen by id alone."""
    return crc32(prompt_id.encode()) % 2 == 0


def split_of(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """Return the prompts that circuits are found on, and the new ones; TaskError for too few."""
    found = [prompt for prompt in prompts if is_for_discovery(prompt.id)]
    new = [prompt for prompt in prompts if not is_for_discovery(prompt.id)]
    if not found or len(new) < 2:
        raise TaskError(
            "circuits are found on half of the prompts, and chosen and tried on two halves of"
            f" the other; {len(prompts)} are too few"
        )
    return found, new


def is_new(shard: TokenBatch) -> Bool[Tensor, " batch"]:
    """Return on which prompts no edges are scored."""
    return torch.tensor([not is_for_discovery(prompt.id) for prompt in shard.prompts])


def scored_edges(
    model: Model, task: Task, *, metric: Metric, rules: Rules, needs_means: bool
) -> Tensors:
    """Return edge "scores" [prompt receiver sender], the prompts' "key", and the "wiring".

    With `needs_means`, also the mean "writes" [sender d_model] over corrupted runs and positions.
    """
    wiring = Wiring.of(model)
    writes = torch.zeros(wiring.is_edge.shape[1], model.d_model, device=model.device)
    scores, keys, n_tokens = [], [], 0
    for prompts in model.shards(task):
        shard = model.tokenize(prompts)
        recording = model.record(shard)
        for every in twins_of(recording, shard, metric=metric, direction="denoise"):
            for twins in few_at_once(every, wiring, d_model=model.d_model):
                scores.append(edge_scores(recording, twins, wiring, rules=rules).cpu())
                keys += [key_of(prompts[row].id) for row in twins.clean.rows.tolist()]
                if needs_means:
                    away = plain_pass(recording, twins.corrupted, wiring, positions=slice(1))
                    writes = writes + away.writes.float().sum((0, 1))
                    n_tokens += twins.corrupted.numel()
    means = {"writes": writes / n_tokens} if needs_means else {}
    scored = {"scores": torch.cat(scores), "key": torch.tensor(keys)}
    return scored | {"wiring": wiring.numbers} | means


def metric_of(
    recording: Recording,
    shard: TokenBatch,
    circuits: Sequence[NDArray[np.bool_]],
    prepared: Tensors,
    *,
    metric: Metric,
) -> Float[Tensor, "batch circuit"]:
    """Return the metric of circuits of kept edges; 0 where edges are scored on a prompt."""
    wiring, unseen = Wiring.from_numbers(prepared["wiring"]), is_new(shard)
    values = torch.zeros(len(shard.prompts), len(circuits))
    for every in twins_of(recording, shard, metric=metric, direction="denoise"):
        new = every.only(unseen[every.clean.rows.cpu()].nonzero()[:, 0])
        d_model = recording.resid(0).shape[-1]
        for twins in few_at_once(new, wiring, d_model=d_model) if len(new.clean.rows) else ():
            away = plain_pass(recording, twins.corrupted, wiring, positions=slice(1))
            if metric == "kl":
                where = twins.clean.predicting
                clean = recording.forward(twins.clean.tokens, positions=where)
                twins = twins.with_reference(clean.logits)
            kept = circuit_values(
                recording, twins, wiring, circuits, away=away, instead=prepared.get("writes")
            )
            values[twins.clean.rows.cpu()] = kept.T.cpu()
    return values


def metric_of_task(
    model: Model,
    task: Task,
    circuits: Sequence[NDArray[np.bool_]],
    prepared: Tensors,
    *,
    metric: Metric,
) -> tuple[Tensors, Int[Tensor, " prompt"]]:
    """Return the metric of circuits as "values" [prompt circuit], the keys "new", and groups."""
    values, keys, groups = [], [], []
    for prompts in model.shards(task):
        shard = model.tokenize(prompts)
        values.append(metric_of(model.record(shard), shard, circuits, prepared, metric=metric))
        keys += [key_of(prompt.id) for prompt in prompts]
        groups.append(shard.groups)
    return {"values": torch.cat(values), "new": torch.tensor(keys)}, torch.cat(groups)


def numbers_held(shard: TokenBatch, n_written: int, n_circuits: int) -> int:
    """Return the numbers of the largest pass: what senders write, and what receivers read.

    `n_written` is what all senders write at a token. To score edges takes about nine times as much,
    with the graph and both runs.
    """
    each, n_new = shard.tokens.shape[1] * n_written, int(is_new(shard).sum())
    few = max(1, NUMBERS_HELD // each)
    scored, tried = (min(few, n) * each for n in (len(shard.prompts) - n_new, n_new))
    at_once = min(n_circuits, max(1, NUMBERS_HELD // max(1, tried)))
    return max(9 * scored, (at_once + 3) * tried)
