"""The norms of responses, captured during generation, and which tokens are punctuation."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.linalg import vector_norm

from interp.errors import AnalysisError
from interp.models import Model
from interp.sites import Site
from interp.sweeps.massive import massive_activations
from interp.tasks.batch import TokenBatch


@dataclass(frozen=True)
class Response:
    """Norms of the tokens that follow each prompt, captured while generating them.

    `is_read` are those that a pass has read, at the positions `span` of the text (`tokens`, prompt
    and response): neither the last, nor what ended it.
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
    """Generate greedily and return norms of the tokens read; raise AnalysisError for too few."""
    require_readable(max_new_tokens)
    sites = [Site("resid_pre", 0), *(Site("resid_post", layer) for layer in range(model.n_layers))]
    generation = model.generate(batch, max_new_tokens=max_new_tokens, capture=sites)
    span = slice(generation.response.start, generation.response.stop - 1)
    texts = [generation.activations[site] for site in sites]
    streams = [text[:, span] for text in texts]
    is_read = generation.mask[:, generation.response][:, 1:]
    rule: dict[str, Any] = {"mask": torch.cat([batch.mask, is_read], dim=1)}
    rule |= {"above": above, "ratio": ratio}
    massive = [massive_activations(text, **rule).any(-1)[:, span] for text in texts]
    return Response(
        torch.stack([vector_norm(stream.float(), dim=-1) for stream in streams], dim=1),
        torch.stack(massive).any(0),
        is_read,
        generation.tokens,
        span,
    )


def require_readable(max_new_tokens: int) -> None:
    """Raise AnalysisError for responses too short for a pass to read one of their tokens."""
    if max_new_tokens < 2:
        raise AnalysisError(
            f"max_new_tokens={max_new_tokens};"
            " 2 or more are needed, since no pass reads the last (0: no responses)"
        )
