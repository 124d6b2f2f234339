"""Massive activations: a few numbers of a hidden state that are far above all others."""

from jaxtyping import Bool, Float
from torch import Tensor

from interp.shapes import Resid


def massive_activations(
    resid: Resid,
    *,
    above: float = 100.0,
    ratio: float = 1000.0,
    mask: Bool[Tensor, "rows pos"] | None = None,
) -> Bool[Tensor, "rows pos d_model"]:
    """Return which activations are massive: above `above` and at least `ratio` times the median.

    Magnitudes are compared with the median magnitude of the hidden state, that is of a prompt's
    stream at one tap, over all its positions (those of `mask`) and dimensions. The definition is
    that of "Massive Activations in Large Language Models" (arXiv 2402.17762), with its 100 and
    1,000. A small model often has none; nothing is scaled to make it have some.
    """
    size = resid.float().abs()
    massive: Bool[Tensor, "rows pos d_model"] = size > above
    if mask is not None:
        massive &= mask[..., None]
    # the median is what costs, and few prompts need it
    for row in massive.flatten(1).any(1).nonzero().flatten().tolist():
        state = size[row] if mask is None else size[row, mask[row]]
        massive[row] &= size[row] >= ratio * median_size(state[None])[0]
    return massive


def median_size(resid: Resid) -> Float[Tensor, " rows"]:
    """Return the median magnitude of each prompt's hidden state (the lower of two), in fp32."""
    median: Tensor = resid.float().abs().flatten(1).median(dim=1).values
    return median
