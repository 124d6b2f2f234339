"""Which layers leave a token alone: the signed change of its norm against the range of earlier
changes.

"Void in Language Models" (arXiv 2505.14467), after L2 adaptive computation: with n_l the norm of a
token's stream behind layer l, layer l is void for that token where n_l - n_(l-1) < alpha * (largest
- smallest change by the layers before l). Norms are all that the rule needs, so that every alpha is
answered by one pass.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.linalg import vector_norm

from interp.errors import AnalysisError
from interp.models import Model
from interp.replay import Recording
from interp.shapes import Resid
from interp.sites import Site
from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch

Norms = Float[Tensor, "batch tap pos"]
Active = Bool[Tensor, "variant batch layer pos"]


def require_alphas(alphas: Sequence[float]) -> None:
    """Raise AnalysisError for a threshold that is negative or no finite number."""
    for alpha in alphas:
        if not 0 <= alpha < float("inf"):
            raise AnalysisError(f"alpha={alpha}; 0 or more is needed")


def norms_of(recording: Recording) -> Norms:
    """Return the norm of every token's stream at every tap, in fp32."""
    taps = range(recording.n_layers + 1)
    return torch.stack([vector_norm(recording.resid(tap).float(), dim=-1) for tap in taps], dim=1)


def changes_of(norms: Norms) -> Float[Tensor, "batch layer pos"]:
    """Return by how much each layer makes the stream longer; negative where it makes it shorter."""
    return norms[:, 1:] - norms[:, :-1]


def range_before(changes: Float[Tensor, "batch layer pos"]) -> Float[Tensor, "batch layer pos"]:
    """Return the range of the changes by the layers before each layer: 0 for the first two."""
    spread = changes.cummax(dim=1).values - changes.cummin(dim=1).values
    return torch.cat([torch.zeros_like(spread[:, :1]), spread[:, :-1]], dim=1)


def range_over_batch(changes: Float[Tensor, "batch layer pos"]) -> Float[Tensor, "batch pos"]:
    """Return the range of the first layer's changes over the prompts of a batch, which the
    published code compares with.
    """
    first = changes[:, 0]
    return (first.amax(0) - first.amin(0)).expand_as(first).clone()


def active_layers(
    norms: Norms, alphas: Sequence[float], *, first_range: Float[Tensor, "batch pos"] | None = None
) -> Active:
    """Return for each alpha (the variants) which layers are not void for which token.

    The first layer has nothing before it: it is void where it makes the stream shorter, or where
    its change is below alpha times `first_range`.
    """
    changes = changes_of(norms)
    spread = range_before(changes)
    if first_range is not None:
        spread[:, 0] = first_range
    return torch.stack([changes >= alpha * spread for alpha in alphas])


def is_massive(
    resid: Resid, *, above: float = 100.0, ratio: float = 1000.0
) -> Bool[Tensor, "rows pos"]:
    """Return which tokens hold a massive activation: above `above` and above `ratio` times the
    median of the token's own.
    """
    massive: Tensor = vector_norm(resid.float(), ord=torch.inf, dim=-1) > above
    large = (
        resid[massive].float().abs()
    )  # the median costs more than all else, and few tokens need it
    massive[massive.clone()] = large.amax(-1) > ratio * large.median(dim=-1).values
    return massive


@dataclass(frozen=True)
class Response:
    """Norms of the tokens that follow each prompt, captured while generating them; `tokens` [batch
    text] has both.

    `is_read` are those that a pass has read, at the positions `span` of the text: neither the last,
    nor what ended it.
    """

    norms: Float[Tensor, "batch tap new"]
    massive: Bool[Tensor, "batch new"]
    is_read: Bool[Tensor, "batch new"]
    tokens: Int[Tensor, "batch text"]
    span: slice


@torch.no_grad()
def respond(
    model: Model,
    batch: TokenBatch,
    *,
    max_new_tokens: int,
    above: float = 100.0,
    ratio: float = 1000.0,
) -> Response:
    """Generate greedily and return the norms of what was read; raise AnalysisError where no token
    could be.
    """
    require_readable(max_new_tokens)
    sites = [Site("resid_pre", 0), *(Site("resid_post", layer) for layer in range(model.n_layers))]
    generation = model.generate(batch, max_new_tokens=max_new_tokens, capture=sites)
    span = slice(generation.response.start, generation.response.stop - 1)
    streams = [generation.activations[site][:, span] for site in sites]
    return Response(
        torch.stack([vector_norm(stream.float(), dim=-1) for stream in streams], dim=1),
        torch.stack([is_massive(stream, above=above, ratio=ratio) for stream in streams]).any(0),
        generation.mask[:, generation.response][:, 1:],
        generation.tokens,
        span,
    )


def require_readable(max_new_tokens: int) -> None:
    """Raise AnalysisError for responses too short for a pass to read one of their tokens."""
    if max_new_tokens < 2:
        raise AnalysisError(
            f"max_new_tokens={max_new_tokens}; 2 or more are needed, since no pass reads the last"
            " (0: no responses)"
        )


def punctuation_of(tokenizer: Any, tokens: Iterable[int]) -> Int[Tensor, " token"]:
    """Return which of these tokens are made of punctuation and symbols alone; none without a
    tokenizer.
    """
    if tokenizer is None:
        return torch.zeros(0, dtype=torch.long)
    marks = [
        token for token in sorted(set(tokens)) if _is_punctuation(tokenizer.decode([token]).strip())
    ]
    return torch.tensor(
        [token for token in marks if token not in tokenizer.all_special_ids], dtype=torch.long
    )


def _is_punctuation(text: str) -> bool:
    return text != "" and all(unicodedata.category(character)[0] in "PS" for character in text)


def prompt_hash(prompt_id: str, *, seed: int = 0) -> int:
    """Return a number made of an id and a seed: names a prompt in tensors, and seeds its draws."""
    return int.from_bytes(blake2b(f"{seed}:{prompt_id}".encode(), digest_size=7).digest(), "little")


def prompt_hashes(prompts: Sequence[Prompt]) -> Int[Tensor, " batch"]:
    """Return the hash of every prompt's id."""
    return torch.tensor([prompt_hash(prompt.id) for prompt in prompts])


def rows_of(hashes: Int[Tensor, " prompt"], prompts: Sequence[Prompt]) -> list[int]:
    """Return the rows of some prompts among the `hashes` of all."""
    row_of = {number: row for row, number in enumerate(hashes.tolist())}
    return [row_of[number] for number in prompt_hashes(prompts).tolist()]
