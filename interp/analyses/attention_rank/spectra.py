"""Ranks of attention patterns from their singular values, and patterns to compare with."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.sweeps.tags import draw_seed
from interp.tasks import Prompt

MEASURES = ("effective rank", "stable rank", "rank at 1 %", "rank at 0.1 %")
VIEWS = ("all keys", "without the first")
_TOLERANCES = (1e-2, 1e-3)  # of the largest singular value
_LEAST_MASS = 1e-3  # of a row after the first key, to which it is scaled up to 1
Patterns = Float[Tensor, "*rows query key"]


def ranks(patterns: Patterns) -> Float[Tensor, "*rows measure"]:
    """Return `MEASURES` of patterns, in fp64.

    With singular values s: exp(entropy of s / Σs); Σs² / max s²; how many exceed 1 % and 0.1 % of
    the largest. A pattern of zeros has rank 0.
    """
    values = torch.linalg.svdvals(patterns.double())
    largest = values[..., :1].clamp_min(1e-30)
    share = values / values.sum(-1, keepdim=True).clamp_min(1e-30)
    is_some = (values[..., 0] > 0).double()
    effective = (-torch.xlogy(share, share).sum(-1)).exp() * is_some
    stable = ((values / largest) ** 2).sum(-1)
    above = [(values > tolerance * largest).double().sum(-1) for tolerance in _TOLERANCES]
    return torch.stack([effective, stable, *above], dim=-1)


def published(patterns: Patterns) -> Float[Tensor, "*rows"]:
    """Return the rank as γ-MoD's code computes it: diagonal 0, fp32's rounding as the tolerance.

    Such a pattern is strictly triangular: with every other weight above 0, its rank is T - 1, and
    less can only come from weights that round to nothing.
    """
    n = patterns.shape[-1]
    values = torch.linalg.svdvals(patterns.double().tril(-1))
    tolerance = n * torch.finfo(torch.float32).eps * values[..., :1]
    counts: Tensor = (values > tolerance).double().sum(-1)
    return counts


def without_first(patterns: Patterns) -> Float[Tensor, "*rows rest rest"]:
    """Return patterns without the first key and query, rows adding up to 1 again.

    Rows that give nearly everything to the first key (but 0.1 %) stay as small as they are then.
    """
    rest = patterns[..., 1:, 1:]
    scaled: Tensor = rest / rest.sum(-1, keepdim=True).clamp_min(_LEAST_MASS)
    return scaled


def uniform(n_tokens: int) -> Float[Tensor, "query key"]:
    """Return the pattern that attends to all keys up to the query alike."""
    ones = torch.ones(n_tokens, n_tokens, dtype=torch.float64).tril()
    return ones / ones.sum(-1, keepdim=True)


def shuffles(
    prompts: Sequence[Prompt], n_tokens: int, *, seed: int
) -> Int[Tensor, "batch query key"]:
    """Return each prompt's order of keys for every query, among those that it may read."""
    order = np.tile(np.arange(n_tokens), (len(prompts), n_tokens, 1))
    for row, prompt in enumerate(prompts):
        rng = np.random.default_rng(draw_seed(prompt.id, seed=seed))
        for query in range(n_tokens):
            order[row, query, : query + 1] = rng.permutation(query + 1)
    return torch.from_numpy(order)


def shuffled(
    patterns: Float[Tensor, "batch head query key"], order: Int[Tensor, "batch query key"]
) -> Float[Tensor, "batch head query key"]:
    """Return patterns whose rows have the same weights on other keys."""
    return patterns.gather(-1, order[:, None].expand(patterns.shape))
