"""Maps from one model's stream to another's at every cut, fitted on the other half of the prompts.

All positions of a prompt are fitted, a token with weight 1 / (‖x‖ ‖y‖): positions of massive
activations count as much as others. Both directions come from the same sums.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor
from torch.linalg import vector_norm

from interp.models import Model
from interp.shapes import Resid, Tensors
from interp.sweeps.cosines import SMALLEST_NORM
from interp.sweeps.halves import half_of
from interp.sweeps.linear_maps import (
    Gram,
    LinearMap,
    Moments,
    orthogonal_map,
    ridge_map,
    second_moments,
)
from interp.tasks.batch import TokenBatch

MapKind = Literal["none", "orthogonal", "affine"]
RIDGE = 1e-4  # of the mean eigenvalue of what is mapped
TOKENS_PER_FEATURE = 10  # that an affine map needs


def fitted_tokens(batches: Sequence[TokenBatch], halves: Tensors) -> list[int]:
    """Return how many tokens the maps for prompts of each half are fitted on: the other half's."""
    counts = [0, 0]
    for batch in batches:
        half = half_of(batch, halves)
        for i in (0, 1):
            counts[1 - i] += int((half == i).sum()) * batch.tokens.shape[1]
    return counts


def fit_maps(
    models: tuple[Model, Model],
    batches: Sequence[TokenBatch],
    halves: Tensors,
    *,
    cuts: Sequence[int],
    kinds: Sequence[MapKind],
) -> Tensors:
    """Return "weight KIND" [half direction cut d d] and "shift KIND" [half direction cut d].

    Direction 0 maps the first model's stream to the second's, direction 1 back. Those of a half are
    fitted on the other half.
    """
    sums = _moments(models, batches, halves, cuts)
    found: Tensors = {}
    for kind in kinds:
        maps = [
            [[_fit(kind, *_towards(moments, back=back)) for moments in of_half] for back in (0, 1)]
            for of_half in (sums[1], sums[0])
        ]
        weights = [[[each.weight for each in cut] for cut in half] for half in maps]
        shifts = [
            [[each.y_mean - each.x_mean @ each.weight for each in cut] for cut in half]
            for half in maps
        ]
        found[f"weight {kind}"] = _stacked(weights)
        found[f"shift {kind}"] = _stacked(shifts)
    return found


def _stacked(of_half: Sequence[Sequence[Sequence[Tensor]]]) -> Tensor:
    by_half = [torch.stack([torch.stack([*cuts]) for cuts in half]) for half in of_half]
    return torch.stack(by_half).float()


def _moments(
    models: tuple[Model, Model], batches: Sequence[TokenBatch], halves: Tensors, cuts: Sequence[int]
) -> list[list[tuple[Tensor, Tensor, Tensor]]]:
    """Return sums xx, yy and xy of every cut, with a leading 1, for each half of the prompts."""
    d, device = models[0].d_model, models[0].device

    def zeros() -> Moments:
        return Moments.zeros((1, 1, 1), widths=(d, d), device=device)

    sums = [[(zeros(), zeros()) for _ in cuts] for _ in (0, 1)]
    flat = "batch pos d_model -> 1 (batch pos) d_model"
    for batch in batches:
        half = half_of(batch, halves)
        of_models = [model.record(batch) for model in models]
        for i, cut in enumerate(cuts):
            x, y = (recording.resid(cut) for recording in of_models)
            for h in (0, 1):
                rows = (half == h).nonzero()[:, 0].to(x.device)
                if len(rows):
                    one, other = (rearrange(each[rows].double(), flat) for each in (x, y))
                    norms = [vector_norm(v, dim=-1).clamp_min(SMALLEST_NORM) for v in (one, other)]
                    weights = 1 / (norms[0] * norms[1])
                    there, back = sums[h][i]
                    there.add(one, other, weights)
                    back.add(other, one, weights)
    return [
        [(there.xx[0, 0], back.xx[0, 0], there.xy[0, 0]) for there, back in of_half]
        for of_half in sums
    ]


def _towards(moments: tuple[Tensor, Tensor, Tensor], *, back: int) -> tuple[Tensor, Tensor]:
    """Return the sums xx and xy of a direction."""
    xx, yy, xy = moments
    if not back:
        return xx, xy
    return yy, torch.cat([xx[:1, 1:], xy[1:].T])


def _fit(kind: MapKind, xx: Tensor, xy: Tensor) -> LinearMap:
    if kind == "affine":
        return ridge_map(Gram.of(xx), xx, xy, ridge=RIDGE)
    mean = xx[0, 1:] / xx[0, 0]
    sizes = second_moments(xx, mean).diagonal()  # a rotation needs but their sum
    return orthogonal_map(Gram(mean, sizes, sizes.new_empty(0)), xx, xy)


def mapped(
    stream: Resid,
    half: Int[Tensor, " batch"],
    maps: Mapping[str, Tensor],
    *,
    kind: MapKind,
    direction: int,
    cut: int,
) -> Resid:
    """Return a stream [batch pos d_model] in the other model's frame; `cut` is its number."""
    if kind == "none":
        return stream
    out, x = torch.empty_like(stream), stream.float()
    for h in (0, 1):
        rows = (half == h).nonzero()[:, 0].to(stream.device)
        weight, shift = (
            maps[f"{what} {kind}"][h, direction, cut].to(stream.device)
            for what in ("weight", "shift")
        )
        out[rows] = (x[rows] @ weight + shift).to(stream.dtype)
    return out


def n_fitted(kind: MapKind, d: int) -> int:
    """Return how many numbers a map of d features has."""
    return {"none": 0, "orthogonal": d * (d - 1) // 2 + 1 + 2 * d, "affine": d * d + d}[kind]
