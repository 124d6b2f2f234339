"""In which order layers lose bits, the least important first by each published or plain score."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.analyses.quantization_order.streams import Streams, ends_of
from interp.metrics import changes, distribution
from interp.models.quantizer import Rounding, matrices_of
from interp.replay import Block, Recording
from interp.shapes import Tensors
from interp.sweeps.cosines import influence
from interp.sweeps.large_weights import share_of_large_weights
from interp.sweeps.outputs import read_at_the_end
from interp.sweeps.patches import logits_at_the_end
from interp.sweeps.staircase import skipped

ScoreName = Literal["LIM", "ZD", "ZD, both tails", "block influence", "skip loss", "own loss"]
LAST_FIRST, FIRST_FIRST, RANDOM = "last first", "first first", "random"
N_RANDOM = 5


def scores(
    recording: Recording, rounding: Rounding, orders: Sequence[ScoreName]
) -> dict[str, Float[Tensor, "batch layer"]]:
    """Return per prompt what each order needs; the least is quantised first.

    LIM is -cos of the stream before a layer and after it, over all positions; block influence
    is 1 - cos over all but the first. Skip loss and own loss are KL at the last position where the
    layer is skipped, or alone is quantised.
    """
    n_layers = recording.n_layers
    taps = [recording.resid(layer) for layer in range(n_layers + 1)]
    turned = torch.stack([influence(a, b)[..., 0] for a, b in pairwise(taps)], dim=1)
    known = {"LIM": turned.mean(2) - 1}
    known["block influence"] = turned[:, :, min(1, recording.n_pos - 1) :].mean(2)
    if "skip loss" in orders:
        known["skip loss"] = kl_of(recording, _skips(recording)).T
    if "own loss" in orders:
        alone = Streams(recording, [frozenset({layer}) for layer in range(n_layers)])
        known["own loss"] = kl_of(recording, ends_of([alone], rounding)[0][:, :, 0]).T
    return {name: known[name].cpu() for name in orders if name in known}


def kl_of(
    recording: Recording, ends: Float[Tensor, "variant batch d_model"]
) -> Float[Tensor, "variant batch"]:
    """Return KL(clean ‖ changed) in nats of predictions from last residuals."""
    last = recording.resid(recording.n_layers)[:, -1]
    clean = distribution(logits_at_the_end(recording, last[None])[0])
    return read_at_the_end(recording, ends, lambda logits: {"kl": changes(logits, clean)["kl"]})[
        "kl"
    ]


def _skips(recording: Recording) -> Float[Tensor, "layer batch d_model"]:
    """Return the last residual where each layer is skipped, at all positions but the first."""
    rows: list[Tensor] = []
    for layer in range(recording.n_layers):
        own = skipped(recording, layer, "layer")
        rows = [*recording.run(layer, torch.stack(rows)), own] if rows else [own]
    return torch.stack(rows)[:, :, -1]


def orders_by(
    means: Mapping[str, Float[Tensor, " layer"]],
    blocks: Sequence[Block],
    orders: Sequence[ScoreName],
    *,
    seed: int,
) -> Int[Tensor, "order layer"]:
    """Return all orders of layers, the first to be quantised first; those of `names_of`."""
    weights = [[weight for _, weight, _ in matrices_of(block)] for block in blocks]
    by: list[Tensor] = []
    for name in orders:
        if name in means:
            by.append(means[name].double())
            continue
        both = name == "ZD, both tails"
        large = [share_of_large_weights(each, both_tails=both) for each in weights]
        by.append(-torch.tensor(large, dtype=torch.float64))
    ranked = [each.argsort(stable=True) for each in by]
    return torch.stack([*ranked, *plain_orders(len(blocks), seed=seed)])


def plain_orders(n_layers: int, *, seed: int) -> list[Int[Tensor, " layer"]]:
    """Return the orders that no data decide: last first, first first, and random ones."""
    layers = torch.arange(n_layers)
    random = [
        torch.randperm(n_layers, generator=torch.Generator().manual_seed(N_RANDOM * seed + i))
        for i in range(N_RANDOM)
    ]
    return [layers.flip(0), layers, *random]


def names_of(orders: Sequence[ScoreName]) -> list[str]:
    """Return the names of all orders, in the order of `orders_by`."""
    return [*orders, LAST_FIRST, FIRST_FIRST, *(f"random {i + 1}" for i in range(N_RANDOM))]


def half_means(values: Tensors, chosen: Tensor) -> Tensors:
    """Return means over the prompts chosen; over all if none is."""
    rows = chosen if bool(chosen.any()) else torch.ones_like(chosen)
    return {name: each[rows].double().mean(0) for name, each in values.items()}
