"""What a head may attend to, as weights over queries and keys."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.tasks.batch import TokenBatch

FIRST = "first token"
PREVIOUS = "previous token"
SAME = "same token earlier"
BEHIND = "token after the same token"
SUBJECT = "subject, from the last token"
SOURCE = "answer, from the last token"
TARGETS = (FIRST, PREVIOUS, "itself", SAME, BEHIND, "punctuation", SUBJECT, SOURCE)
ENTROPY, DISTANCE = "entropy, nats", "distance, tokens"
READINGS = (*TARGETS, ENTROPY, DISTANCE)
COPIES = (PREVIOUS, SAME, BEHIND)  # targets on random tokens said twice

Weights = Float[Tensor, "batch target query key"]


def targets_of(shard: TokenBatch, punctuation: Int[Tensor, " token"]) -> Weights:
    """Return the weights of `TARGETS`, whose sum with a pattern is the mean attention to them.

    The mean is over queries after the first position that have such a key. Keys at position 0,
    often a sink, count as "first token" only. NaN: a prompt has no such query.
    """
    tokens = shard.tokens
    n_pos = tokens.shape[1]
    query, key = (torch.arange(n_pos, device=tokens.device)[at] for at in ((..., None), (None,)))
    is_later, is_key = query >= 1, key >= 1
    same = (tokens[:, :, None] == tokens[:, None, :]) & (key < query) & is_key
    behind = torch.zeros_like(same)
    behind[:, :, 1:] = same[:, :, :-1]
    is_last = query == shard.last[:, None, None]
    everywhere = torch.ones_like(same)
    marks = torch.isin(tokens, punctuation.to(tokens.device))[:, None, :]
    masks = {
        FIRST: everywhere & (key == 0),
        PREVIOUS: everywhere & (key == query - 1) & is_key,
        "itself": everywhere & (key == query),
        SAME: same,
        BEHIND: behind & (key < query),
        "punctuation": marks & (key <= query) & is_key,
        SUBJECT: is_last & _subject(shard, key),
        SOURCE: is_last & _source(shard, key),
    }
    return torch.stack([_mean(masks[name] & is_later) for name in TARGETS], dim=1)


def copies_of(tokens: Int[Tensor, "batch pos"], *, n: int) -> Weights:
    """Return the weights of `COPIES` for queries in the second of two halves of `n` tokens.

    Before both stands one token. Keys are at the same distances whether or not the second half
    repeats the first.
    """
    n_pos = tokens.shape[1]
    query, key = (torch.arange(n_pos, device=tokens.device)[at] for at in ((..., None), (None,)))
    distance = {PREVIOUS: 1, SAME: n, BEHIND: n - 1}
    is_second = query > n
    masks = [is_second & (key == query - distance[name]) for name in COPIES]
    return torch.stack([_mean(mask[None].expand(len(tokens), -1, -1)) for mask in masks], dim=1)


def uniform(weights: Weights) -> Float[Tensor, "batch target"]:
    """Return the attention to targets of a head that attends to all it can see alike."""
    n_pos = weights.shape[-1]
    seen = torch.ones(n_pos, n_pos, device=weights.device).tril()
    return torch.einsum("btqk,qk->bt", weights, seen / seen.sum(-1, keepdim=True))


def readings(
    pattern: Float[Tensor, "batch head query key"], weights: Weights
) -> Float[Tensor, "batch reading head"]:
    """Return the attention to targets, the mean entropy and the mean distance, of every head."""
    to_targets = torch.einsum("bhqk,btqk->bth", pattern, weights)
    later = pattern[:, :, 1:]
    entropy = -torch.xlogy(later, later).sum(-1).mean(-1)
    position = torch.arange(pattern.shape[-1], device=pattern.device, dtype=pattern.dtype)
    distance = position[1:] - later @ position
    return torch.cat([to_targets, entropy[:, None], distance.mean(-1)[:, None]], dim=1)


def of_uniform(shape: Sequence[int]) -> tuple[float, float]:
    """Return entropy and distance of a head that attends to all it can see alike."""
    seen = torch.arange(2, shape[1] + 1, dtype=torch.float32)
    return float(seen.log().mean()), float(((seen - 1) / 2).mean())


def _subject(shard: TokenBatch, key: Int[Tensor, "1 key"]) -> Bool[Tensor, "batch 1 key"]:
    if shard.subject is None:
        return torch.zeros(len(shard.tokens), 1, key.shape[1], dtype=torch.bool, device=key.device)
    start = shard.subject if shard.subject_start is None else shard.subject_start
    # a subject at the very first token is a sink's place too, and does not count there
    is_inside = (key >= start[:, None].clamp(min=1)) & (key <= shard.subject[:, None])
    return is_inside[:, None]


def _source(shard: TokenBatch, key: Int[Tensor, "1 key"]) -> Bool[Tensor, "batch 1 key"]:
    """Return the keys that hold the answer's first token."""
    if shard.answer is None:
        return torch.zeros(len(shard.tokens), 1, key.shape[1], dtype=torch.bool, device=key.device)
    return ((shard.tokens == shard.answer[:, None]) & (key >= 1))[:, None]


def _mean(mask: Bool[Tensor, "batch query key"]) -> Float[Tensor, "batch query key"]:
    """Return a mask as weights: each query with a key counts the same; NaN without any."""
    n_queries = mask.any(-1).sum(-1)
    return mask.float() / n_queries.where(n_queries > 0, torch.nan)[:, None, None]
