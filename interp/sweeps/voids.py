"""Which layers leave a token alone: its norm's change, against the range of earlier changes.

"Void in Language Models" (arXiv 2505.14467), after L2 adaptive computation: with n_l the norm of a
token's stream after layer l, layer l is void for that token where n_l - n_(l-1) < alpha * (largest
- smallest change by the layers before l). Norms are all that the rule needs, so one pass answers
every alpha.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.linalg import vector_norm

from interp.errors import AnalysisError
from interp.replay import Recording

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
    """Return by how much each layer lengthens the stream; negative where it shortens it."""
    return norms[:, 1:] - norms[:, :-1]


def range_before(changes: Float[Tensor, "batch layer pos"]) -> Float[Tensor, "batch layer pos"]:
    """Return the range of the changes by the layers before each layer: 0 for the first two."""
    spread = changes.cummax(dim=1).values - changes.cummin(dim=1).values
    return torch.cat([torch.zeros_like(spread[:, :1]), spread[:, :-1]], dim=1)


def range_over_batch(changes: Float[Tensor, "batch layer pos"]) -> Float[Tensor, "batch pos"]:
    """Return the range of the first layer's changes over a batch, as in the published code."""
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
