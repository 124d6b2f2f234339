"""What rounding explains: how far two computations of the same numbers may be apart.

A result of several steps is off by some `eps` of the type for every step, in directions that mostly
cancel: errors of a whole pass grow with the square root of its depth. Vectors are compared by their
lengths, so that one token's massive activations excuse nothing in the others. Tensors without
numbers (on the meta device, of a model without weights) are equal if their shapes are.
"""

from math import sqrt

import torch
from torch import Tensor

_STEPS = (
    8  # twice the roundings of a block that do not cancel; one to two were measured in 40 families
)
_LEAST = 1e-3  # kernels of fp32 may round their factors to ten bits (TF32)


def allowed(dtype: torch.dtype, *, depth: int = 1, least: float = _LEAST) -> float:
    """Return the relative error that rounding explains after `depth` blocks, at least `least`."""
    return max(least, _STEPS * float(torch.finfo(dtype).eps) * sqrt(max(1, depth)) / 2)


def error(actual: Tensor, expected: Tensor, *, of: Tensor | None = None) -> float:
    """Return the largest ‖actual - expected‖ / ‖expected‖ over vectors; NaN if any is not finite.

    Vectors are the last axis; those that almost vanish are compared with a thousandth of the
    longest. Where numbers are differences of larger ones, as what is added to a stream, `of` are
    those: their rounding is what the error has to be compared with.
    """
    actual, expected = actual.float(), expected.float()
    length = expected.norm(dim=-1)
    if of is not None:
        length = torch.maximum(length, of.float().norm(dim=-1).reshape(length.shape))
    length = torch.maximum(length, 1e-3 * length.max()).clamp_min(1e-6)
    return float(((actual - expected).norm(dim=-1) / length).max())


def is_near(actual: Tensor, expected: Tensor, *, depth: int = 1, least: float = _LEAST) -> bool:
    """Tell whether two tensors are equal up to rounding; non-finite values are not judged here."""
    if actual.shape != expected.shape:
        return False
    if actual.is_meta or expected.is_meta:
        return True
    return not error(actual, expected) > allowed(expected.dtype, depth=depth, least=least)


def is_sum(total: Tensor, *terms: Tensor) -> bool:
    """Tell whether every number is the sum of the others, added in its type in any order."""
    if total.is_meta:
        return True
    kind = torch.promote_types(total.dtype, torch.float32)
    wide = [term.to(kind) for term in terms]
    off = (torch.stack(wide).sum(0) - total.to(kind)).abs()
    size = torch.stack([term.abs() for term in wide]).sum(0)
    return not bool(
        (
            off > len(terms) * torch.finfo(total.dtype).eps * size + torch.finfo(total.dtype).tiny
        ).any()
    )
