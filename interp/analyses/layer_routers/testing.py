"""Routes of prompts that no router has met, by both rules and by the controls beside them."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from interp.analyses.layer_routers import gated, supervised
from interp.analyses.layer_routers.labels import shortest_routes
from interp.analyses.layer_routers.routes import (
    Rows,
    fixed_sets,
    random_orders,
    routed,
    scores,
)
from interp.replay import Recording
from interp.shapes import Tensors
from interp.tasks.batch import TokenBatch

if TYPE_CHECKING:
    from interp.analyses.layer_routers import LayerRouters

FULL, PATHS = "every layer", "shortest right path"
CONTROLS = ("skip loss", "influence", "random")


def by_rules(
    analysis: "LayerRouters", recording: Recording, shard: TokenBatch, rows: Rows, prepared: Tensors
) -> Tensors:
    """Return `SCORES` of the full model and of routes by both rules, and those routes.

    Also what a rule's routers cost, as a share of all layers' multiply-adds.
    """
    clean = recording.resid(recording.n_layers)[rows]
    measured = {f"scores.{FULL}": scores(recording, shard, rows, clean)}
    n_layers, d_model = recording.n_layers, clean.shape[-1]
    device = recording.tokens.device
    for rule in analysis.rules:
        kind = supervised if rule == "supervised" else gated
        read = supervised.Routers.read if rule == "supervised" else gated.Gates.read
        resid, visits = routed(recording, rows, read(prepared, device).decide)
        measured[f"scores.{rule}"] = scores(recording, shard, rows, resid)
        measured[f"visits.{rule}"] = visits
        own = kind.multiply_adds(n_layers, d_model, recording.n_pos)
        share = own / layers_multiply_adds(recording, d_model)
        measured[f"own.{rule}"] = torch.full((len(rows),), share, dtype=torch.float64)
    return measured


def by_controls(
    analysis: "LayerRouters", recording: Recording, shard: TokenBatch, rows: Rows, prepared: Tensors
) -> Float[Tensor, "rows control size score"]:
    """Return `SCORES` of `CONTROLS`: sets that the training third chose, and random ones."""
    prompts = [shard.prompts[int(row)] for row in rows]
    fixed = [
        fixed_sets(recording, shard, rows, prepared[f"order.{name}"].expand(len(rows), -1))
        for name in CONTROLS[:2]
    ]
    drawn = [
        fixed_sets(
            recording,
            shard,
            rows,
            random_orders(prompts, recording.n_layers, seed=analysis.seed * analysis.draws + i),
        )
        for i in range(analysis.draws)
    ]
    return torch.stack([*fixed, torch.stack(drawn).mean(0)], dim=1)


def by_paths(
    analysis: "LayerRouters", recording: Recording, shard: TokenBatch, rows: Rows, prepared: Tensors
) -> Tensors:
    """Return each prompt's shortest right path, its `SCORES`, and what the routers say along it.

    "is_right" is 0 for a prompt without a right path, which runs every layer.
    """
    visits, is_right = shortest_routes(
        recording, shard, rows, n_simulations=analysis.n_simulations, seed=analysis.seed
    )
    resid, windows = supervised.streams_along(recording, rows, visits)
    measured = {
        f"scores.{PATHS}": scores(recording, shard, rows, resid),
        f"visits.{PATHS}": visits,
        "is_right": is_right,
    }
    if "supervised" in analysis.rules:
        routers = supervised.Routers.read(prepared, rows.device)
        measured["said"] = routers.logits(torch.stack(windows, dim=1)).argmax(-1)
    return measured


def layers_multiply_adds(recording: Recording, d_model: int) -> float:
    """Return the multiply-adds of one prompt in all layers: matrices, and attention's T² d twice.

    All experts of a mixture count.
    """
    n_pos = recording.n_pos
    matrices = sum(
        weight.numel()
        for block in recording.blocks
        for weight in block.module.parameters()
        if weight.ndim > 1
    )
    return float(matrices * n_pos + recording.n_layers * 2 * n_pos**2 * d_model)


def scattered(values: Tensors, rows: Rows, n: int) -> Tensors:
    """Return tensors [rows ...] as [batch ...], 0 for all other prompts."""
    whole: Tensors = {}
    for name, value in values.items():
        kept = value.cpu()
        wide = torch.zeros(n, *kept.shape[1:], dtype=kept.dtype)
        wide[rows.cpu()] = kept
        whole[name] = wide
    return whole
