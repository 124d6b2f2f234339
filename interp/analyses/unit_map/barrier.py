"""The loss between one model's MLP and the other's, with its neurons in the first one's order."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.models import Model
from interp.replay import Block, Recording
from interp.sweeps.answers import SameLength
from interp.sweeps.losses import loss, scored
from interp.sweeps.surprise import nats_per_token
from interp.tasks.batch import TokenBatch

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the other model's MLP
Weights = dict[str, Tensor]


def mlp_weights(block: Block, n_units: int) -> Weights | None:
    """Return an MLP's parameters by their names in the block; None where they cannot be permuted.

    They are those of the modules that have an axis of neurons.
    """
    named = dict(block.module.named_parameters())
    of_attention = {id(parameter) for parameter in block.attn.parameters()}
    reader = next(
        name for name, module in block.module.named_modules() if module is block.mlp_post_reader
    )
    around = reader.rpartition(".")[0]
    near = {
        name: parameter
        for name, parameter in named.items()
        if name.startswith(f"{around}." if around else "") and id(parameter) not in of_attention
    }
    owners = {name.rpartition(".")[0] for name, p in near.items() if n_units in p.shape}
    chosen: Weights = {name: p for name, p in near.items() if name.rpartition(".")[0] in owners}
    missed = [name for name, p in near.items() if p.ndim > 1 and name not in chosen]
    is_clear = all(p.shape.count(n_units) <= 1 for p in chosen.values())
    return chosen if len(owners) > 1 and not missed and is_clear else None


def can_interpolate(model: Model, target: Model, n_units: int) -> bool:
    """Tell whether all MLPs of both models have the same parameters, whose neurons can be told."""
    if model.n_layers != target.n_layers:
        return False
    for own, other in zip(model.blocks, target.blocks, strict=True):
        one, two = mlp_weights(own, n_units), mlp_weights(other, n_units)
        if one is None or two is None:
            return False
        if {k: v.shape for k, v in one.items()} != {k: v.shape for k, v in two.items()}:
            return False
    return True


def in_order(weights: Mapping[str, Tensor], order: Int[Tensor, " unit"]) -> Weights:
    """Return an MLP's parameters with its neurons in another order."""
    n = len(order)
    permuted = {}
    for name, weight in weights.items():
        axes = [axis for axis, size in enumerate(weight.shape) if size == n]
        permuted[name] = weight.index_select(axes[0], order.to(weight.device)) if axes else weight
    return permuted


def losses_between(
    model: Model,
    target: Model,
    batch: TokenBatch,
    orders: Mapping[int, Int[Tensor, " unit"]],
) -> Float[Tensor, "batch layer share 2"]:
    """Return losses in nats with each layer's MLP moved towards the target's, by `SHARES`.

    The last axis: neurons in this model's order, and as they are in the target.
    """
    is_text = batch.answer_tokens is None
    rows, losses = [], []
    for group in scored(model.record(batch), batch):
        streams = {layer: group.recording.resid(layer) for layer in orders}
        clean = _loss(group, group.recording, group.recording.resid(model.n_layers), is_text)
        of_layers = []
        for layer, order in orders.items():
            own, other = (_weights(each, layer, len(order)) for each in (model, target))
            of_shares = [clean[:, None].expand(-1, 2)]
            for share in SHARES[1:]:
                both = []
                for given in (in_order(other, order), other)[: 1 if share == 1 else 2]:
                    mixed = {
                        f"{model.blocks[layer].name}.{name}": weight.lerp(
                            given[name].to(weight.device, weight.dtype), share
                        )
                        for name, weight in own.items()
                    }
                    both.append(_with(group, mixed, layer, streams[layer], is_text))
                of_shares.append(torch.stack([both[0], both[-1]], dim=-1))
            of_layers.append(torch.stack(of_shares, dim=1))
        losses.append(torch.stack(of_layers, dim=1).cpu())
        rows.append(group.rows.cpu())
    return torch.cat(losses)[torch.cat(rows).argsort()]


def _weights(model: Model, layer: int, n_units: int) -> Weights:
    weights = mlp_weights(model.blocks[layer], n_units)
    assert weights is not None  # `can_interpolate`
    return weights


def _with(
    group: SameLength, weights: Weights, layer: int, stream: Tensor, is_text: bool
) -> Float[Tensor, " batch"]:
    with group.recording.with_weights(weights) as recording:
        behind = recording.chain(range(layer, recording.n_layers), stream)
        return _loss(group, recording, behind, is_text)


def _loss(
    group: SameLength, recording: Recording, resid: Tensor, is_text: bool
) -> Float[Tensor, " batch"]:
    if is_text:
        return nats_per_token(recording, resid[None], group.tokens)[0]
    logits = recording.logits(resid, positions=group.predicting)
    return loss(logits, group, is_text=False)


def n_tails(layers: Sequence[int], n_layers: int) -> float:
    """Return how many passes `losses_between` makes, but for the clean one."""
    each = 2 * (len(SHARES) - 2) + 1
    return each * sum((n_layers - layer) / n_layers for layer in layers)
