"""One-to-one matches of units by their correlation, and optimal transport for unequal numbers."""

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

_SMOOTHING = 0.02  # of a correlation, over which transport spreads
_STEPS = 300
_LEAST = 1e-6  # a unit that varies less is 0 everywhere


def standardised(units: Float[Tensor, "token unit"]) -> Float[Tensor, "token unit"]:
    """Return units with mean 0 and variance 1 over tokens; 0 where one never changes."""
    centred = units - units.mean(0)
    spread = centred.square().mean(0).sqrt()
    return torch.where(spread > _LEAST, centred / spread.clamp_min(_LEAST), 0.0)


def correlations(
    one: Float[Tensor, "token unit"], other: Float[Tensor, "token other_unit"]
) -> Float[Tensor, "unit other_unit"]:
    """Return the correlation over tokens of every two units, which are standardised."""
    return one.T @ other / len(one)


def matched(alike: Float[Tensor, "unit other_unit"]) -> Float[Tensor, "unit other_unit"]:
    """Return of what each unit's partner is made: one unit, or shares of units that add up to 1.

    As many units as partners are assigned one to one, so that the sum of `alike` is largest; else
    each unit is transported (Sinkhorn).
    """
    if alike.shape[0] != alike.shape[1]:
        return transported(alike)
    _, columns = linear_sum_assignment(alike.double().cpu().numpy(), maximize=True)
    return torch.eye(len(columns), device=alike.device)[torch.as_tensor(columns)]


def transported(alike: Float[Tensor, "unit other_unit"]) -> Float[Tensor, "unit other_unit"]:
    """Return the entropic plan between uniform weights, each row scaled to a sum of 1."""
    scores = alike.double() / _SMOOTHING
    n, m = scores.shape
    rows, columns = scores.new_zeros(n), scores.new_zeros(m)
    for _ in range(_STEPS):
        columns = -(scores + rows[:, None]).logsumexp(0) - torch.log(torch.tensor(float(m)))
        rows = -(scores + columns).logsumexp(1) - torch.log(torch.tensor(float(n)))
    return ((scores + rows[:, None] + columns).exp() * n).to(alike.dtype)


def likeness_of_heads(
    one: Float[Tensor, "token head d_head"], other: Float[Tensor, "token other_head other_d"]
) -> Float[Tensor, "head other_head"]:
    """Return the linear CKA of every two heads' outputs, which no rotation changes."""
    one, other = one - one.mean(0), other - other.mean(0)
    crossed = torch.einsum("thi,tgj->hgij", one, other).square().sum((2, 3))
    within = [
        torch.einsum("thi,thj->hij", each, each).flatten(1).norm(dim=1) for each in (one, other)
    ]
    alike: Tensor = crossed / (within[0][:, None] * within[1]).clamp_min(_LEAST)
    return alike


def best_pairs(alike: Float[Tensor, "head other_head"]) -> tuple[Tensor, Tensor]:
    """Return the pairs of heads, as many as the smaller number, whose sum is largest."""
    rows, columns = linear_sum_assignment(alike.double().cpu().numpy(), maximize=True)
    return torch.as_tensor(rows), torch.as_tensor(columns)
