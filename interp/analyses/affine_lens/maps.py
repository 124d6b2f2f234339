"""The affine map from every layer's input to the end of the stream, fitted by ridge regression."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import AnalysisError
from interp.models import Model
from interp.shapes import Resid, Tensors
from interp.sweeps.linear_maps import (
    RIDGES,
    Grams,
    LinearMap,
    Moments,
    choose_ridge,
    ridge_map,
)
from interp.tasks.batch import TokenBatch

Towards = Literal["end", "next"]
_VALIDATES = 5  # of so many texts, one chooses the ridge


@dataclass(frozen=True)
class Translators:
    """Maps in fp32: `mean` + (x - `x_mean`[layer]) `weight`[layer].

    `ridge` [layer] is in units of the mean eigenvalue. `mean` is that of the stream after the last
    layer.
    """

    weight: Float[Tensor, "layer d_model d_model"]
    x_mean: Float[Tensor, "layer d_model"]
    mean: Float[Tensor, " d_model"]
    ridge: Float[Tensor, " layer"]

    @classmethod
    def of(cls, prepared: Tensors) -> "Translators":
        """Return what `tensors` has become."""
        return cls(*(prepared[name] for name in ("weight", "x_mean", "mean", "ridge")))

    def tensors(self) -> Tensors:
        """Return the maps by name."""
        return dict(vars(self))

    def __call__(self, layer: int, resid: Resid) -> Resid:
        """Return the end of the stream as predicted from the input of a layer, in its dtype."""
        shift, weight = (each.to(resid.device) for each in (self.x_mean[layer], self.weight[layer]))
        return self.constant(resid) + ((resid.float() - shift) @ weight).to(resid.dtype)

    def constant(self, resid: Resid) -> Resid:
        """Return the mean end of the stream in place of every vector."""
        return self.mean.to(resid).expand_as(resid)


@torch.no_grad()
def fitted(
    model: Model, texts: Sequence[TokenBatch], *, towards: Towards, begin: int
) -> Translators:
    """Fit the lens on texts, from position `begin` on; one in five chooses the ridges.

    Raises AnalysisError for residuals that are not finite.
    """
    n_layers, device, number = model.n_layers, model.device, 0
    widths = (model.d_model, model.d_model)
    roles = [
        [Moments.zeros((1, 1, 1), widths=widths, device=device) for _ in range(n_layers)]
        for _ in range(2)
    ]
    for batch in texts:
        recording, is_read = model.record(batch), batch.mask.clone()
        is_read[:, :begin] = False
        validates = (torch.arange(len(is_read), device=device) + number) % _VALIDATES == 0
        rows = [is_read & ~validates[:, None], is_read & validates[:, None]]
        number += len(is_read)
        for layer in range(n_layers):
            x, y = (
                recording.resid(tap).to(device)
                for tap in (layer, n_layers if towards == "end" else layer + 1)
            )
            for moments, chosen in zip(roles, rows, strict=True):
                ones = torch.ones(1, int(chosen.sum()), dtype=torch.float64, device=device)
                moments[layer].add(x[chosen][None], y[chosen][None], ones)
    maps, ridges = zip(*map(_solved, *roles), strict=True)
    return _lens(maps, ridges, towards=towards)


def _solved(fit: Moments, held: Moments) -> tuple[LinearMap, float]:
    """Return the map of fitted and held tokens with the ridge that is best on held ones.

    What is regressed is y - x, so that a large ridge leaves the stream as it is, but for its mean.
    """
    (xx, xy), (held_xx, held_xy) = (
        (sums.xx[0, 0], sums.xy[0, 0] - sums.xx[0, 0][:, 1:]) for sums in (fit, held)
    )
    if not bool((xx + held_xx).isfinite().all() and (xy + held_xy).isfinite().all()):
        raise AnalysisError("the stream of sampled texts has residuals that are not finite")
    grams = Grams.of(xx, held_xx)
    ridge = choose_ridge(grams, xy, held_xy, RIDGES)
    added = ridge_map(grams.both, xx + held_xx, xy + held_xy, ridge=ridge)
    same = torch.eye(len(added.x_mean), dtype=added.weight.dtype, device=added.weight.device)
    return LinearMap(same + added.weight, added.x_mean, added.x_mean + added.y_mean), ridge


def _lens(maps: Sequence[LinearMap], ridges: Sequence[float], *, towards: Towards) -> Translators:
    """Return the maps to the end; those to the next layer are multiplied from the end on.

    The mean that one map gives is the mean from which the next one counts: both are of all tokens.
    """
    weights = [fit.weight.cpu() for fit in maps]
    if towards == "next":
        for layer in reversed(range(len(weights) - 1)):
            weights[layer] = weights[layer] @ weights[layer + 1]
    x_mean = torch.stack([fit.x_mean.cpu() for fit in maps])
    mean = maps[-1].y_mean.cpu()
    return Translators(
        torch.stack(weights).float(), x_mean.float(), mean.float(), torch.tensor(ridges)
    )
