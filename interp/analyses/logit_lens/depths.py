"""Effective depths: one layer made of a curve over depth, by three published definitions.

They are those of arXiv 2512.14064, and answer three questions: when the prediction comes near, when
its first tokens are known, and when layers stop erasing. Curves have one value a layer, read
before it. The last layer never counts, as published.
"""

from typing import Annotated, Literal

import numpy as np

from interp.parameters import Formerly

KLFrom = Annotated[
    Literal["after the first layer", "as published"],
    Formerly({"behind the first layer": "after the first layer"}),
]
DEPTHS = ("KL", "overlap", "cosine")


def depth_by_kl(kl: np.ndarray, *, share: float, since: KLFrom) -> int | None:
    """Return the first layer with a KL(lens‖final) below a share of its maximum.

    The lens of the embedding is often far from any prediction, and then decides the maximum: it
    counts only "as published".
    """
    first = 0 if since == "as published" else 1
    layers = range(first, len(kl) - 1)
    return next((layer for layer in layers if kl[layer] < share * kl[first:].max()), None)


def depth_by_overlap(overlap: np.ndarray, *, above: float) -> int | None:
    """Return the first layer with an overlap of the most probable tokens above a share."""
    return next((layer for layer in range(len(overlap) - 1) if overlap[layer] > above), None)


def depth_by_cosine(cosine: np.ndarray) -> int | None:
    """Return the last layer that erases and is followed by one that does not.

    `cosine` is the mean cosine of attention's, the MLP's and the layer's write with the stream.
    """
    layers = reversed(range(len(cosine) - 1))
    return next((layer for layer in layers if cosine[layer] < 0 <= cosine[layer + 1]), None)
