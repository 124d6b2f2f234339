"""Linear maps from one set of vectors to another, in closed form from streamed moments.

Everything that a ridge or an orthogonal map needs of its tokens is a sum over them, so tokens are
read once and not kept. The ridge path needs one eigendecomposition per source; with it, the squared
error on held-out tokens is a quadratic form for every ridge at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# in units of the mean eigenvalue, trace / d
RIDGES = (1e-10, 1e-8, 1e-6, *(10.0**-k for k in range(5, -1, -1)))


@dataclass
class Moments:
    """Sums over weighted tokens in float64; x has a leading 1, so the first row holds their sums.

    `xx` [weighting source 1+d1 1+d1] has one weighting if all targets share it, else one a target;
    `xy` [source target 1+d1 d2].
    """

    xx: Tensor
    xy: Tensor

    @classmethod
    def zeros(
        cls, counts: tuple[int, int, int], *, widths: tuple[int, int], device: torch.device
    ) -> "Moments":
        """Return sums over no tokens, for so many weightings, sources and targets."""
        (n_weightings, n_sources, n_targets), (d1, d2) = counts, widths
        shapes = ((n_weightings, n_sources, 1 + d1, 1 + d1), (n_sources, n_targets, 1 + d1, d2))
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def add(
        self,
        x: Float[Tensor, "source token d1"],
        y: Float[Tensor, "target token d2"],
        weights: Float[Tensor, "weighting token"],
    ) -> None:
        """Take in some tokens."""
        weighted = weights[:, :, None] * y.double()
        for source, vectors in enumerate(x):
            ones = torch.nn.functional.pad(vectors.double(), (1, 0), value=1.0)
            for i in range(len(self.xx)):
                self.xx[i, source] += (weights[i, :, None] * ones).T @ ones
            self.xy[source] += ones.T @ weighted


@dataclass(frozen=True)
class Gram:
    """Second moments of a source about `mean` [d1 d1] as eigenvalues and eigenvectors."""

    mean: Tensor
    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, xx: Float[Tensor, "ones_d1 ones_d1"]) -> "Gram":
        """Factorise the sums of one source about their own mean."""
        mean = xx[0, 1:] / xx[0, 0]
        values, vectors = torch.linalg.eigh(second_moments(xx, mean))
        return cls(mean, values.clamp_min(0), vectors)

    def shrunk(self, ridge: float) -> Tensor:
        """Return 1 / (eigenvalue + ridge · mean eigenvalue) [d1]."""
        return 1 / (
            self.values + ridge * self.values.mean().clamp_min(torch.finfo(torch.float64).tiny)
        )


@dataclass(frozen=True)
class Grams:
    """One source's sums over fitted and over held tokens, and their factorisations.

    `rotated`, R [d1 d1], are the held tokens' second moments about the fitted mean in the
    eigenbasis of the fitted ones.
    """

    xx: Tensor
    held_xx: Tensor
    fit: Gram
    both: Gram
    rotated: Tensor

    @classmethod
    def of(cls, xx: Tensor, held_xx: Tensor) -> "Grams":
        """Factorise the sums of one source."""
        fit = Gram.of(xx)
        rotated = fit.vectors.T @ second_moments(held_xx, fit.mean) @ fit.vectors
        return cls(xx, held_xx, fit, Gram.of(xx + held_xx), rotated)


@dataclass(frozen=True)
class LinearMap:
    """y ≈ y_mean + (x - x_mean) weight."""

    weight: Float[Tensor, "d1 d2"]
    x_mean: Float[Tensor, " d1"]
    y_mean: Float[Tensor, " d2"]

    def __call__(self, x: Float[Tensor, "token d1"]) -> Tensor:
        """Return what is predicted [token d2]."""
        return self.y_mean + (x.double() - self.x_mean) @ self.weight


def second_moments(xx: Tensor, mean: Tensor) -> Tensor:
    """Return the sum of (x - mean)(x - mean)ᵀ [d1 d1] from sums with a leading 1."""
    total = xx[0, 1:]
    shift = torch.outer(mean, total)
    return xx[1:, 1:] - shift - shift.T + xx[0, 0] * torch.outer(mean, mean)


def cross_moments(xx: Tensor, xy: Tensor, x_mean: Tensor, y_mean: Tensor) -> Tensor:
    """Return the sum of (x - x_mean)(y - y_mean)ᵀ [d1 d2] from sums with a leading 1."""
    x_shift = torch.outer(x_mean, xy[0] - xx[0, 0] * y_mean)
    return xy[1:] - x_shift - torch.outer(xx[0, 1:], y_mean)


def choose_ridge(grams: "Grams", xy: Tensor, held_xy: Tensor, ridges: Sequence[float]) -> float:
    """Return the ridge whose map of fitted tokens has the least squared error on held tokens.

    With the fitted cross moments C and the held ones V in the eigenbasis, and the shrinkage d of a
    ridge, that error is, up to a constant, dᵀ (R ⊙ C Cᵀ) d - 2 Σ d ⊙ (C ⊙ V).
    """
    gram = grams.fit
    y_mean = xy[0] / grams.xx[0, 0]
    sums = ((grams.xx, xy), (grams.held_xx, held_xy))
    fit, held = (gram.vectors.T @ cross_moments(xx, xy, gram.mean, y_mean) for xx, xy in sums)
    quadratic, linear = grams.rotated * (fit @ fit.T), (fit * held).sum(1)
    shrunk = torch.stack([gram.shrunk(ridge) for ridge in ridges])
    errors = torch.einsum("ri,ij,rj->r", shrunk, quadratic, shrunk) - 2 * shrunk @ linear
    return ridges[int(errors.argmin())]


def ridge_map(gram: Gram, xx: Tensor, xy: Tensor, *, ridge: float) -> LinearMap:
    """Return the map of least squared error plus ridge · trace / d · ‖weight‖²."""
    y_mean = xy[0] / xx[0, 0]
    rotated = gram.vectors.T @ cross_moments(xx, xy, gram.mean, y_mean)
    return LinearMap(gram.vectors @ (gram.shrunk(ridge)[:, None] * rotated), gram.mean, y_mean)


def orthogonal_map(gram: Gram, xx: Tensor, xy: Tensor) -> LinearMap:
    """Return the best rotation with one scale (Procrustes); with d1 < d2, into a subspace."""
    y_mean = xy[0] / xx[0, 0]
    left, sizes, right = torch.linalg.svd(
        cross_moments(xx, xy, gram.mean, y_mean), full_matrices=False
    )
    return LinearMap(sizes.sum() / gram.values.sum() * (left @ right), gram.mean, y_mean)
