"""Norms with their scale frozen: linear maps, through which directions can be taken back."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Norm = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Gain:
    """What a norm multiplies and adds, and whether it takes the mean off first, in fp32.

    It is read from what the norm makes of 1, −1, 1, …, of 0 and of 1, whatever its family calls it.
    """

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    is_centring: bool

    @classmethod
    def of(cls, norm: Norm, like: Float[Tensor, "... d_model"]) -> "Gain":
        """Return the gain of a norm of residuals such as these."""
        signs = torch.ones(like.shape[-1], dtype=like.dtype, device=like.device)
        signs[1::2] = -1
        inputs = torch.stack([signs, torch.zeros_like(signs), torch.ones_like(signs)])
        of_signs, of_zero, of_ones = norm(inputs[None])[0].float()
        gain = (of_signs - of_zero) / signs.float()
        tolerance = 1e-3 * float(gain.abs().max())
        return cls(gain, of_zero, bool(torch.allclose(of_ones, of_zero, atol=tolerance)))

    def at(self, norm: Norm, resid: Float[Tensor, "batch d_model"]) -> "FrozenNorm":
        """Return the norm as it is at residuals, its scale frozen."""
        scaled = self.times(resid.float())
        normed = norm(resid[:, None])[:, 0].float() - self.bias
        scale = (scaled * normed).sum(-1) / (scaled * scaled).sum(-1).clamp(min=1e-30)
        return FrozenNorm(self, scale)

    def times(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """Return what the norm makes of a part of what it reads, but for its scale and bias."""
        return self.gain * self._centred(x)

    def _centred(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.is_centring else x


@dataclass(frozen=True)
class FrozenNorm:
    """A norm whose `scale` [batch], 1/σ, is frozen."""

    of: Gain
    scale: Float[Tensor, " batch"]

    def back(self, direction: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_model"]:
        """Return what reads before the norm as `direction` reads after it."""
        before = self.of.gain * direction * self.scale[:, None]
        return before - before.mean(-1, keepdim=True) if self.of.is_centring else before

    def offset(self, direction: Float[Tensor, "batch d_model"]) -> Float[Tensor, " batch"]:
        """Return what the norm's bias gives to a direction after it."""
        return direction @ self.of.bias
