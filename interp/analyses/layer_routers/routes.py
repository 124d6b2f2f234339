"""Prompts along their own routes: each may skip, run or repeat a layer."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.metrics import outcomes
from interp.replay import Recording
from interp.shapes import Resid
from interp.sweeps.answers import require_answers
from interp.sweeps.tags import draw_seed
from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch

SCORES = ("accuracy", "log_prob")
MOST_RUNS = 2  # of one layer, by routes that a search proposes
TRAIN, VALIDATION, TEST = range(3)
_STEPS = 16  # sizes of a set of skipped layers that are tried, besides none

Rows = Int[Tensor, " rows"]
Visits = Int[Tensor, "rows layer"]
Decide = Callable[[int, Resid], Rows]  # the layer and the residual in front: how often it runs


def routed(recording: Recording, rows: Rows, decide: Decide) -> tuple[Resid, Visits]:
    """Return the last residuals of prompts `rows`, and how often each layer ran.

    `decide` gets the residual that stands before a layer on this route.
    """
    resid, visits = recording.resid(0)[rows], []
    for layer in range(recording.n_layers):
        visits.append(decide(layer, resid))
        resid = visited(recording, layer, resid, rows, visits[-1])
    return resid, torch.stack(visits, dim=1)


def along(recording: Recording, rows: Rows, visits: Visits) -> Resid:
    """Return the last residuals of prompts `rows` along known routes.

    Layers before the first that is not simply run are read from the clean pass.
    """
    changed = (visits != 1).any(0).nonzero()[:, 0]
    start = int(changed[0]) if len(changed) else recording.n_layers
    resid = recording.resid(start)[rows]
    for layer in range(start, recording.n_layers):
        resid = visited(recording, layer, resid, rows, visits[:, layer])
    return resid


def visited(recording: Recording, layer: int, resid: Resid, rows: Rows, times: Rows) -> Resid:
    """Return residuals of prompts `rows` behind `times` runs of one layer."""
    for visit in range(int(times.max()) if len(times) else 0):
        chosen = (times > visit).nonzero()[:, 0]
        resid = resid.index_copy(0, chosen, recording.rows(layer, resid[chosen], rows[chosen]))
    return resid


def scores(
    recording: Recording, shard: TokenBatch, rows: Rows, resid: Resid
) -> Float[Tensor, "rows score"]:
    """Return `SCORES` of the answer's first token, read from last residuals of prompts `rows`."""
    answer = require_answers(shard)[rows, 0]
    scored = outcomes(recording.logits(resid, positions=[-1])[:, 0], answer)
    return torch.stack([scored["accuracy"], scored["log_prob"]], dim=-1)


def set_sizes(n_layers: int) -> list[int]:
    """Return how many layers the sets of the controls skip: 0 to all, at most 16 besides 0."""
    steps = np.linspace(0, n_layers, min(n_layers, _STEPS) + 1)
    return [round(float(step)) for step in steps]


def without_first(order: Int[Tensor, "rows layer"], n_skipped: int) -> Visits:
    """Return routes that skip the first `n_skipped` layers of each prompt's order."""
    visits = torch.ones_like(order)
    return visits.scatter(1, order[:, :n_skipped], 0)


def fixed_sets(
    recording: Recording, shard: TokenBatch, rows: Rows, order: Int[Tensor, "rows layer"]
) -> Float[Tensor, "rows size score"]:
    """Return `SCORES` where the first layers of each prompt's order are skipped, by how many."""
    ordered = order.to(rows.device)
    scored = []
    for size in set_sizes(recording.n_layers):
        resid = along(recording, rows, without_first(ordered, size))
        scored.append(scores(recording, shard, rows, resid))
    return torch.stack(scored, dim=1)


def random_orders(
    prompts: Sequence[Prompt], n_layers: int, *, seed: int
) -> Int[Tensor, "rows layer"]:
    """Return an order of the layers for each prompt, drawn by its id."""
    drawn = [
        np.random.default_rng(draw_seed(prompt.id, seed=seed)).permutation(n_layers)
        for prompt in prompts
    ]
    return torch.from_numpy(np.array(drawn, np.int64).reshape(len(prompts), n_layers))


def parts_of(prompts: Sequence[Prompt], *, seed: int) -> Int[Tensor, " prompt"]:
    """Return the third of each prompt; all prompts of a group (entity, fact) are in the same.

    Groups are dealt out to training, validation and test in an order drawn by their names.
    """
    groups = {prompt.drawn for prompt in prompts}
    ordered = sorted(groups, key=lambda name: (draw_seed(name, seed=seed), name))
    third = {name: i % 3 for i, name in enumerate(ordered)}
    return torch.tensor([third[prompt.drawn] for prompt in prompts])
