"""How similarly two sets of vectors see the same examples, without a map between them."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


def example_similarity(
    x: Float[Tensor, "source example d1"],
    y: Float[Tensor, "target example d2"],
    masks: Float[Tensor, "subset example"],
    *,
    kind: Literal["cka", "rsa"],
) -> Float[Tensor, "subset source target"]:
    """Return how similarly two taps see the examples of each subset (masks of 0 and 1).

    "cka": debiased linear CKA, from off-diagonal Gram matrices (Song et al. 2012; arXiv
    2010.15327). "rsa": the Pearson correlation of off-diagonal cosines. Both are cosines of centred
    matrices, and need only sums over entries.
    """
    n, masks = masks.double().sum(1), masks.double()
    row_share, total_share = 0 * n, -1 / (n * (n - 1))
    if kind == "cka":
        row_share, total_share = 2 / (n - 2), 1 / ((n - 1) * (n - 2))

    def sums(gram: Tensor) -> tuple[Tensor, Tensor]:
        rows = (masks @ gram) * masks
        return rows, rows.sum(1)

    def product(one: Tensor, other: Tensor) -> Tensor:
        (rows, total), (other_rows, other_total) = sums(one), sums(other)
        entries = ((masks @ (one * other)) * masks).sum(1)
        return entries - row_share * (rows * other_rows).sum(1) + total_share * total * other_total

    theirs = [_gram(tap, kind=kind) for tap in y]
    sizes = torch.stack([product(gram, gram) for gram in theirs], dim=1)
    similarities = []
    for tap in x:
        ours = _gram(tap, kind=kind)
        products = torch.stack([product(ours, gram) for gram in theirs], dim=1)
        similarities.append(products / (product(ours, ours)[:, None] * sizes).sqrt())
    return torch.stack(similarities, dim=1)


def _gram(x: Float[Tensor, "example d"], *, kind: str) -> Float[Tensor, "example example"]:
    """Return the products of examples with each other, not with themselves."""
    x = x.double()
    # a common shift changes no debiased product, but costs digits
    x = x - x.mean(0) if kind == "cka" else torch.nn.functional.normalize(x, dim=-1)
    return (x @ x.T).fill_diagonal_(0)
