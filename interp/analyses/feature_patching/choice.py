"""Which features are patched: the largest by score, and random ones that are as active.

Each half of the prompts is measured with features that were chosen on the other half. A random
feature is of the same dictionary as the one that it stands for, active on about as many tokens, and
moves its site about as far between the two runs, by the same prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.analyses.feature_patching.nodes import dictionary_of, is_error, n_nodes
from interp.features import Dictionary

_NEAREST = 10  # features that a random one is drawn from


@dataclass(frozen=True)
class Seen:
    """Means over the prompts of each half: scores [half method node], rates, distances."""

    scores: Float[Tensor, "half method node"]
    rates: Float[Tensor, "half node"]
    distances: Float[Tensor, "half node"]


def largest(
    scores: Float[Tensor, " node"], dictionaries: Sequence[Dictionary], *, n: int
) -> Int[Tensor, " chosen"]:
    """Return the features with the largest absolute scores, the largest first."""
    size = scores.abs().masked_fill(is_error(dictionaries), -1.0)
    return size.argsort(descending=True, stable=True)[:n]


def random_like(
    chosen: Int[Tensor, " chosen"],
    dictionaries: Sequence[Dictionary],
    seen: tuple[Float[Tensor, " node"], Float[Tensor, " node"]],
    *,
    rng: np.random.Generator,
) -> Int[Tensor, " chosen"]:
    """Return as many other features, each alike in the rate and distance that were `seen`."""
    place = torch.stack([values.clamp(min=1e-6).log() for values in seen], dim=1)
    of, is_free = dictionary_of(dictionaries), ~is_error(dictionaries)
    is_free[chosen] = False
    found: list[int] = []
    for node in chosen.tolist():
        away = (place - place[node]).norm(dim=1)
        free = is_free & (of == of[node])
        near = away.masked_fill(~free, torch.inf).argsort(stable=True)
        found.append(int(near[rng.integers(min(_NEAREST, int(free.sum())))]))
        is_free[found[-1]] = False
    return torch.tensor(found)


def candidates(
    seen: Seen,
    random: Int[Tensor, "half draw chosen"],
    dictionaries: Sequence[Dictionary],
    *,
    top_k: int,
) -> tuple[Int[Tensor, " candidate"], Int[Tensor, " candidate"]]:
    """Return the nodes that are patched alone, and their kinds: 0 largest, 1 random, 2 error.

    They are the `top_k` of every method and half, the first random features drawn for the first
    method's, and every error.
    """
    best = [
        largest(scores, dictionaries, n=top_k) for half in seen.scores for scores in half.unbind()
    ]
    kinds = torch.full((n_nodes(dictionaries),), -1)
    kinds[random[:, 0, :top_k].flatten()] = 1
    kinds[torch.cat(best)] = 0
    kinds[is_error(dictionaries)] = 2
    nodes = (kinds >= 0).nonzero()[:, 0]
    return nodes, kinds[nodes]


def joint_sets(
    top: Int[Tensor, " chosen"],
    random: Int[Tensor, "draw chosen"],
    dictionaries: Sequence[Dictionary],
    sizes: Sequence[int],
) -> Bool[Tensor, "variant node"]:
    """Return the nodes that are patched together.

    For every size n: the n largest; all nodes but those; n random ones, by draw. Then all features,
    all errors, and all nodes.
    """
    errors = is_error(dictionaries)

    def only(nodes: Tensor) -> Tensor:
        return torch.zeros(len(errors), dtype=torch.bool).index_fill(0, nodes, True)

    best = [only(top[:n]) for n in sizes]
    drawn = [only(draw[:n]) for n in sizes for draw in random]
    whole = [~errors, errors, torch.ones_like(errors)]
    return torch.stack([*best, *(~each for each in best), *drawn, *whole])
