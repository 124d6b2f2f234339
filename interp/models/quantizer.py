"""Simulated quantisation: weights rounded to nearest per group, and the bits that they would take.

The weights stay numbers of the model's own type, so this says what is lost, and nothing of speed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.pytorch_utils import Conv1D

from interp.errors import UnsuitedError
from interp.replay import Block
from interp.shapes import Tensors

Scheme = Literal["symmetric", "asymmetric", "min-anchored"]
KEPT_BITS = 16  # of a weight that is not quantised, and of a scale or a group's minimum


@dataclass(frozen=True)
class Rounding:
    """Rounds groups of `group` neighbouring inputs of each output to 2^`bits` levels.

    "symmetric": s = max|w| / (2^(b-1) - 1), w' = s round(w/s). "asymmetric": s = (max - min) /
    (2^b - 1) of the weights and 0, with a whole number z of b bits, w' = s (clamp(round(w/s) + z)
    - z). "min-anchored": the group's minimum is kept instead of z. The last group may be shorter.
    """

    bits: int
    group: int
    scheme: Scheme

    def matrix(self, weights: Float[Tensor, "output input"]) -> Float[Tensor, "output input"]:
        """Return rounded weights, computed in fp32, in the type given."""
        n_outputs, n = weights.shape
        size = min(self.group, n)
        filled = pad(weights.float()[None], (0, -n % size), mode="replicate")[0]
        groups = filled.reshape(n_outputs, -1, size)
        rounded: Tensor = self._groups(groups).reshape(n_outputs, -1)[:, :n].to(weights.dtype)
        return rounded

    def _groups(self, w: Float[Tensor, "output part input"]) -> Float[Tensor, "output part input"]:
        low, high = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
        if self.scheme == "symmetric":
            most = 2 ** (self.bits - 1) - 1
            scale = _step(torch.maximum(high, -low) / most)
            return (w / scale).round().clamp(-most, most) * scale
        top = 2**self.bits - 1
        if self.scheme == "min-anchored":
            scale = _step((high - low) / top)
            return ((w - low) / scale).round().clamp(0, top) * scale + low
        low, high = low.clamp_max(0.0), high.clamp_min(0.0)
        scale = _step((high - low) / top)
        zero = (-low / scale).round()
        return (((w / scale).round() + zero).clamp(0, top) - zero) * scale

    def block(self, block: Block) -> Tensors:
        """Return a block's matrices, rounded, by their names in the model."""
        return {
            name: self.matrix(weight.T).T.contiguous() if is_turned else self.matrix(weight)
            for name, weight, is_turned in matrices_of(block)
        }

    def bits_of(self, block: Block) -> float:
        """Return the bits of a block's matrices, with scales and zeros, and with whole groups."""
        extra = {"symmetric": 0, "asymmetric": self.bits, "min-anchored": KEPT_BITS}[self.scheme]
        total = 0.0
        for _, weight, is_turned in matrices_of(block):
            n_outputs, n = weight.T.shape if is_turned else weight.shape
            n_groups = -(-n // min(self.group, n)) * n_outputs
            total += self.bits * n_outputs * n + (KEPT_BITS + extra) * n_groups
        return total


def matrices_of(block: Block) -> Iterator[tuple[str, Tensor, bool]]:
    """Yield a block's matrices by name, and whether their rows are inputs (GPT-2's are)."""
    for name, module in block.module.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            weight = module.get_parameter("weight")
            yield f"{block.name}.{name}.weight", weight, isinstance(module, Conv1D)


def n_weights(block: Block) -> int:
    """Return how many weights a block's matrices have."""
    return sum(weight.numel() for _, weight, _ in matrices_of(block))


def refuse_others(block: Block) -> None:
    """Raise UnsuitedError for matrices of other kinds, such as experts held in one tensor."""
    known = {name for name, _, _ in matrices_of(block)}
    for name, parameter in block.module.named_parameters():
        if parameter.ndim > 1 and f"{block.name}.{name}" not in known:
            raise UnsuitedError(
                f"{block.name}.{name} is no matrix of a linear layer (experts, a router or another"
                " kind); only models whose blocks have nothing else can be quantised here"
            )


def _step(scale: Tensor) -> Tensor:
    """Return the distance between levels; 1 where all weights of a group are equal."""
    return torch.where(scale > 0, scale, 1.0)
