"""In which order layers are left out: by importances measured on prompts, by weights, by place."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.analyses.layer_removal.scores import answer_log_prob
from interp.models import Model
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sweeps.cosines import influence
from interp.sweeps.halves import in_first_half
from interp.sweeps.large_weights import large_weights
from interp.sweeps.removal import Removed, ends_without
from interp.sweeps.surprise import nats_per_token
from interp.sweeps.tags import keys_of
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

Order = Literal[
    "block influence", "skip loss", "text loss", "ZD", "last first", "first first", "greedy"
]
MEASURED = ("block influence", "skip loss", "text loss")
Half = Bool[np.ndarray, " prompt"]


class Measured:
    """A task's shards, each with its clean pass; importances and greedy orders are made of them."""

    def __init__(self, model: Model, task: Task) -> None:
        self.shards = [model.tokenize(prompts) for prompts in model.shards(task)]
        self._model = model

    def recordings(self) -> Iterator[tuple[Recording, TokenBatch]]:
        """Yield each shard with a recording of its clean pass."""
        for shard in self.shards:
            yield self._model.record(shard), shard

    def over_shards(self, tensors: Iterator[Tensor]) -> np.ndarray:
        """Return what is known of each shard's prompts, of all prompts."""
        return torch.cat([*tensors]).double().cpu().numpy()


def importances(recording: Recording, shard: TokenBatch, names: Sequence[str]) -> Tensors:
    """Return importances [batch layer] of `names` that are measured; larger is more important.

    "block influence" is the mean over all positions but the first; "skip loss" and "text loss" are
    the losses, in nats, of the answer and of the prompt's own tokens when the layer alone is left
    out.
    """
    layers = range(recording.n_layers)
    found: Tensors = {}
    if "block influence" in names:
        turned = [
            influence(recording.resid(layer), recording.resid(layer + 1))[:, 1:, 0].mean(1)
            for layer in layers
        ]
        found["block influence"] = torch.stack(turned, dim=1)
    if "skip loss" in names or "text loss" in names:
        every = torch.arange(recording.batch_size, device=shard.tokens.device)
        for name in ("skip loss", "text loss"):
            found[name] = torch.zeros(recording.batch_size, recording.n_layers)
        for removed, end in ends_without(recording, [Removed({x}) for x in layers], every):
            (layer,) = removed
            found["skip loss"][:, layer] = -answer_log_prob(recording, end, shard).cpu()
            if "text loss" in names:
                found["text loss"][:, layer] = nats_per_token(recording, end[None], shard.tokens)[
                    0
                ].cpu()
    return found


def choose_orders(
    model: Model, task: Task, names: Sequence[Order], *, n_random: int, most: int, seed: int
) -> Tensors:
    """Return which layers go first, in every order, for the prompts of both halves.

    "removed" [half order most]: row 0 is made on the first half of the prompts ("is_first"
    [prompt]) and serves the second, row 1 the other way round. With one group there are no halves,
    and all prompts make what serves all. "key" [prompt] stands for the prompts.
    """
    measured = Measured(model, task)
    is_first = in_first_half(measured.shards, seed=seed)
    makers = [is_first, ~is_first]
    if is_first.all() or not is_first.any():
        makers = [np.ones_like(is_first)] * 2
    found = [importances(*both, names) for both in measured.recordings()]
    known = {
        name: measured.over_shards(each[name] for each in found)
        for name in MEASURED
        if name in names
    }
    if "ZD" in names:
        zd = -large_weights(model.blocks).double().numpy()  # the more large weights, the sooner
        known["ZD"] = np.broadcast_to(zd, (len(is_first), len(zd)))
    orders = []
    for half in makers:
        made = [_order(name, known, model.n_layers, half) for name in names if name != "greedy"]
        if "greedy" in names:
            made.insert(names.index("greedy"), greedy_order(measured, half, most=most))
        made += drawn_orders(model.n_layers, n_random=n_random, seed=seed)
        orders.append([[*order[:most]] for order in made])
    return {
        "key": torch.cat([keys_of(shard.prompts) for shard in measured.shards]),
        "is_first": torch.from_numpy(is_first),
        "removed": torch.tensor(orders),
    }


def _order(
    name: str, known: dict[str, Float[np.ndarray, "prompt layer"]], n_layers: int, half: Half
) -> list[int]:
    if name in known:
        return [int(layer) for layer in known[name][half].mean(0).argsort(kind="stable")]
    layers = range(n_layers)
    return [*(reversed(layers) if name == "last first" else layers)]


def drawn_orders(n_layers: int, *, n_random: int, seed: int) -> list[list[int]]:
    """Return orders drawn at random, which depend on nothing but the seed."""
    random = np.random.default_rng(seed)
    return [random.permutation(n_layers).tolist() for _ in range(n_random)]


def greedy_order(measured: Measured, half: Half, *, most: int) -> list[int]:
    """Return layers so that each costs least of the answer's loss, given those already gone."""
    gone: list[int] = []
    for _ in range(most):
        losses: dict[Removed, list[float]] = {}
        begin = 0
        for recording, shard in measured.recordings():
            rows = np.flatnonzero(half[begin : begin + len(shard.prompts)])
            begin += len(shard.prompts)
            if not len(rows):
                continue
            left = [x for x in range(recording.n_layers) if x not in gone]
            prompts = torch.from_numpy(rows).to(shard.tokens.device)
            tries = [Removed({*gone, x}) for x in left]
            for removed, end in ends_without(recording, tries, prompts):
                loss = -answer_log_prob(recording, end, shard.only(rows.tolist()))
                losses.setdefault(removed, []).extend(loss.double().tolist())
        best = min(losses, key=lambda each: (np.mean(losses[each]), sorted(each)))
        gone += best - {*gone}
    return gone


def sets_of(
    orders: Int[Tensor, "order most"], counts: Sequence[int]
) -> dict[Removed, list[tuple[int, int]]]:
    """Return the sets of layers that orders [order most] leave out, with (order, step) of each."""
    places: dict[Removed, list[tuple[int, int]]] = {}
    for order, layers in enumerate(orders.tolist()):
        for step, count in enumerate(counts):
            places.setdefault(Removed(layers[:count]), []).append((order, step))
    return places
