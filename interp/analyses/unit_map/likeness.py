"""How alike matched units are, layer by layer, on prompts that did not choose the match."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.analyses.unit_map.matching import (
    best_pairs,
    correlations,
    likeness_of_heads,
    matched,
    standardised,
)
from interp.analyses.unit_map.reading import FROM, Units, tokens_of
from interp.shapes import Tensors
from interp.tasks.batch import TokenBatch


@dataclass(frozen=True)
class Likeness:
    """The mean correlation of matched neurons, of every kind of partner.

    `of_prompts` [layer kind] by the id of a held-out prompt: its tokens' part of the correlation;
    `fitted` [layer kind] on the prompts that chose the match; `heads` [layer kind], the linear CKA
    of matched heads on held-out prompts; `stable` [layer], the share of units that have the same
    partner by either half; `orders` [unit] of each layer, every unit's partner in the target.
    """

    of_prompts: Tensors
    fitted: Float[Tensor, "layer kind"]
    heads: Float[Tensor, "layer kind"]
    stable: Float[Tensor, " layer"]
    orders: list[Int[Tensor, " unit"]]


@dataclass(frozen=True)
class _Match:
    """One layer's match: each held-out token's likeness, and what `Likeness` has of one layer."""

    of_tokens: Float[Tensor, " held_token"]
    fitted: float
    heads: float
    stable: float
    order: Int[Tensor, " unit"]


def likeness_by_layer(
    one: Sequence[Units],
    others: Mapping[str, Sequence[Units]],
    batches: Sequence[TokenBatch],
    held: dict[str, bool],
) -> Likeness:
    """Match the units of every layer to those of every kind of partner."""
    is_held = tokens_of(batches, held).to(one[0].neurons.device)
    matches = [
        [_match(own, other, is_held, is_first=not i) for i, other in enumerate(partners)]
        for own, *partners in zip(one, *others.values(), strict=True)
    ]
    of_tokens = torch.stack(
        [torch.stack([each.of_tokens for each in kinds], dim=-1) for kinds in matches], dim=1
    )
    return Likeness(
        _by_prompt(of_tokens.cpu(), batches, held),
        torch.tensor([[each.fitted for each in kinds] for kinds in matches]),
        torch.tensor([[each.heads for each in kinds] for kinds in matches]),
        torch.tensor([kinds[0].stable for kinds in matches]),
        [kinds[0].order for kinds in matches],
    )


def _match(own: Units, other: Units, is_held: Bool[Tensor, " token"], *, is_first: bool) -> _Match:
    halves = [(own.at(half), other.at(half)) for half in (~is_held, is_held)]
    (fit_own, fit_other), (held_own, held_other) = (
        [standardised(units.neurons) for units in half] for half in halves
    )
    alike = correlations(fit_own, fit_other)
    partner = matched(alike)
    order, stable = partner.argmax(1), float("nan")
    if is_first:
        again = matched(correlations(held_own, held_other)).argmax(1)
        stable = float((order == again).float().mean())
    of_tokens = _influences(held_own, held_other, partner)
    fit_heads, held_heads = (likeness_of_heads(a.heads, b.heads) for a, b in halves)
    heads = held_heads.cpu()[best_pairs(fit_heads)].mean()
    return _Match(of_tokens, float((alike * partner).sum(1).mean()), float(heads), stable, order)


def _influences(
    own: Float[Tensor, "token unit"],
    other: Float[Tensor, "token other_unit"],
    partner: Float[Tensor, "unit other_unit"],
) -> Float[Tensor, " token"]:
    """Return each token's part of the mean correlation of matched units, which are standardised.

    A token moves the units' variances too: of units that are the same, every token's part is 1.
    """
    alike, n = correlations(own, other) * partner, own.shape[1]
    products = (own * (other @ partner.T)).sum(1)
    variances = (own.square() @ alike.sum(1) + other.square() @ alike.sum(0)) / 2
    return (products - variances + alike.sum()) / n


def _by_prompt(
    of_tokens: Float[Tensor, "held_token layer kind"],
    batches: Sequence[TokenBatch],
    held: dict[str, bool],
) -> Tensors:
    by_prompt, start = Tensors(), 0
    for batch in batches:
        n_pos = batch.tokens.shape[1] - FROM
        for prompt in batch.prompts:
            if held[prompt.id]:
                by_prompt[prompt.id] = of_tokens[start : start + n_pos].mean(0)
                start += n_pos
    return by_prompt
