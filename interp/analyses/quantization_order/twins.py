"""What the same orders cost in untrained twins, where no layer has learned anything."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.analyses.quantization_order.orders import ScoreName, kl_of, orders_by, scores
from interp.analyses.quantization_order.streams import Streams, ends_of
from interp.models import Model
from interp.models.quantizer import KEPT_BITS, Rounding, n_weights
from interp.tasks.batch import TokenBatch


def average_bits(
    orders: Tensor, bits: Tensor, weights: Tensor, sizes: Sequence[int]
) -> Float[Tensor, "*rows point"]:
    """Return the average bits of blocks' weights with the first layers of orders quantised.

    `orders` are [*rows layer], `bits` those of each layer's `weights` matrices if quantised.
    """
    saved = (KEPT_BITS * weights - bits)[orders].cumsum(-1)
    saved = torch.cat([torch.zeros_like(saved[..., :1]), saved], dim=-1)
    return KEPT_BITS - saved[..., [*sizes]] / weights.sum()


def gaps(
    twin: Model,
    batch: TokenBatch,
    order: ScoreName,
    *,
    rounding: Rounding,
    sizes: Sequence[int],
    seed: int,
) -> Float[Tensor, " rival"]:
    """Return the area of an order less that of the last layers first, and less random orders'.

    The order is chosen on the prompts that it is measured on.
    """
    recording = twin.record(batch)
    known = scores(recording, rounding, [order])
    means = {name: values.double().mean(0) for name, values in known.items()}
    orders = orders_by(means, twin.blocks, [order], seed=seed)
    sets = [frozenset(each[:size]) for each in orders.tolist() for size in sizes]
    ends = ends_of([Streams(recording, sets)], rounding)[0][:, :, 0]
    kl = kl_of(recording, ends).double().mean(1).reshape(len(orders), len(sizes)).cpu()
    bits, weights = (
        torch.tensor([of(block) for block in twin.blocks]).double()
        for of in (rounding.bits_of, n_weights)
    )
    saved = KEPT_BITS - average_bits(orders, bits, weights, sizes)
    own, last, _, *random = torch.trapezoid(kl, saved) / saved[:, -1]
    return torch.stack([own - last, own - torch.stack(random).mean()])
