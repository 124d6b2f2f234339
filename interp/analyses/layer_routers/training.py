"""What the routers, and the controls beside them, learn on the training and validation thirds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from interp.analyses.layer_routers import gated, supervised
from interp.analyses.layer_routers.labels import shortest_routes
from interp.analyses.layer_routers.routes import (
    TRAIN,
    VALIDATION,
    Rows,
    along,
    parts_of,
    scores,
)
from interp.models import Model
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sweeps.cosines import influence
from interp.sweeps.tags import keys_of
from interp.tasks import Task
from interp.tasks.batch import TokenBatch
from interp.tasks.prompts import key_of

if TYPE_CHECKING:
    from interp.analyses.layer_routers import LayerRouters


@dataclass(frozen=True)
class Batch:
    """Prompts of one third, of equal length."""

    recording: Recording
    shard: TokenBatch

    @property
    def rows(self) -> Rows:
        """Return the numbers of all prompts."""
        return torch.arange(len(self.shard.prompts), device=self.shard.tokens.device)


def learned(analysis: "LayerRouters", model: Model, task: Task) -> Tensors:
    """Return which third each prompt is in, both rules, and the orders of the controls."""
    prompts = sorted(task.prompts, key=lambda prompt: key_of(prompt.id))
    parts = parts_of(prompts, seed=analysis.seed)
    thirds = {
        part: [
            *batches(
                model, task.of([p for p, of in zip(prompts, parts, strict=True) if of == part])
            )
        ]
        for part in (TRAIN, VALIDATION)
    }
    prepared: Tensors = {"keys": keys_of(prompts), "part": parts}
    prepared |= orders(thirds[TRAIN])
    if "supervised" in analysis.rules:
        prepared |= imitating(analysis, thirds[TRAIN], thirds[VALIDATION]).tensors()
    if "gated" in analysis.rules:
        order = prepared["order.skip loss"]
        prepared |= gating(analysis, thirds[TRAIN], thirds[VALIDATION], order).tensors()
    return prepared


def batches(model: Model, task: Task) -> Iterator[Batch]:
    """Yield the prompts of a task with a recording each."""
    for shard in model.shards(task):
        batch = model.tokenize(shard)
        yield Batch(model.record(batch), batch)


def orders(training: Sequence[Batch]) -> Tensors:
    """Return the orders [layer] in which a fixed set loses layers, the least needed first.

    By "skip loss": the answer's log-probability that skipping a layer alone costs; by "influence":
    Block Influence, 1 - cos(in, out), over all tokens but the first.
    """
    lost, turned = [], []
    for batch in training:
        n_layers = batch.recording.n_layers
        by_layer = []
        for layer in range(n_layers):
            visits = torch.ones(len(batch.rows), n_layers, dtype=torch.int64)
            visits[:, layer] = 0
            resid = along(batch.recording, batch.rows, visits.to(batch.rows.device))
            by_layer.append(-scores(batch.recording, batch.shard, batch.rows, resid)[:, 1])
        lost.append(torch.stack(by_layer, dim=1).double())
        taps = [batch.recording.resid(tap) for tap in range(n_layers + 1)]
        start = min(1, batch.recording.n_pos - 1)
        cosines = [influence(*pair)[:, start:, 0].mean(1) for pair in pairwise(taps)]
        turned.append(torch.stack(cosines, dim=1).double())
    return {
        f"order.{name}": torch.cat(values).mean(0).argsort(stable=True).cpu()
        for name, values in (("skip loss", lost), ("influence", turned))
    }


def imitating(
    analysis: "LayerRouters", training: Sequence[Batch], held_out: Sequence[Batch]
) -> supervised.Routers:
    """Return routers that imitate the shortest right paths of the training third.

    Where no prompt has one, there is nothing to imitate, and every layer is run.
    """
    examples, tests = (
        [each for batch in third if len((each := examples_of(analysis, batch)).labels)]
        for third in (training, held_out)
    )
    n_layers, d_model = _sizes(training[0])
    if not examples:
        return supervised.Routers.always_run(n_layers, d_model)
    start = supervised.Routers.drawn(n_layers, d_model, seed=analysis.seed)
    start = start.read(start.tensors(), training[0].rows.device)
    return supervised.trained(start, examples, tests, steps=analysis.steps)


def examples_of(analysis: "LayerRouters", batch: Batch) -> supervised.Examples:
    """Return the shortest right paths of a batch, and what stands before layers on them."""
    visits, is_right = shortest_routes(
        batch.recording,
        batch.shard,
        batch.rows,
        n_simulations=analysis.n_simulations,
        seed=analysis.seed,
    )
    rows, labels = batch.rows[is_right], visits[is_right]
    _, windows = supervised.streams_along(batch.recording, rows, labels)
    return supervised.Examples(torch.stack(windows, dim=1), labels)


def gating(
    analysis: "LayerRouters",
    training: Sequence[Batch],
    held_out: Sequence[Batch],
    order: Int[Tensor, " layer"],
) -> gated.Gates:
    """Return gates trained on one third, their penalty and threshold chosen on another."""
    start = gated.Gates.opened(*_sizes(training[0]), training[0].rows.device)
    pairs = [(batch.recording, batch.shard) for batch in training]
    trained = [
        gated.trained(start, pairs, penalty=penalty, epochs=analysis.epochs)
        for penalty in analysis.penalties
    ]
    candidates = [
        gated.Gates(gates.weight, gates.bias, threshold)
        for gates, threshold in product(trained, gated.THRESHOLDS)
    ]
    pairs = [(batch.recording, batch.shard) for batch in held_out]
    return gated.chosen(candidates, pairs, order)


def _sizes(batch: Batch) -> tuple[int, int]:
    return batch.recording.n_layers, batch.recording.resid(0).shape[-1]
