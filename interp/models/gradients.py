"""Graphs and derivatives: recorded in any mode of the caller, in fp32 without underflow."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from interp.errors import ModelError

_FP16_SCALES = (2.0**12, 2.0**8, 2.0**4, 1.0)  # powers of two, which change no digit

NUMBERS_OF_A_TOKEN = 16  # times layers and d_model: what a graph keeps of one token
_GRAPH_NUMBERS = 1 << 27
_GRAPH_TOKENS = 2048


@contextmanager
def graph(is_kept: bool = True) -> Iterator[None]:
    """Record a graph, or none, inside the `with` block, even under `torch.inference_mode()`."""
    with torch.inference_mode(mode=False), torch.set_grad_enabled(is_kept):
        yield


def ordinary(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy that a graph may hold if it is an inference tensor."""
    return (
        tensor.clone()
        if tensor.is_inference() and not torch.is_inference_mode_enabled()
        else tensor
    )


def slopes(value: Tensor, of: Sequence[Tensor]) -> list[Tensor]:
    """Return the derivatives of the sum of `value` in fp32.

    In fp16 small derivatives would be rounded to 0 on their way back. So `value` is multiplied by
    the largest of a few powers of two with which nothing overflows, and the derivatives are divided
    by it. Raises ModelError if they overflow even so.
    """
    scales = _FP16_SCALES if any(tensor.dtype == torch.float16 for tensor in of) else (1.0,)
    with graph():
        total = value.sum()
        for scale in scales:
            derivatives = torch.autograd.grad(total * scale, of, retain_graph=scale != scales[-1])
            if scale == scales[-1] or all(bool(slope.isfinite().all()) for slope in derivatives):
                break
    if len(scales) > 1 and not all(bool(slope.isfinite().all()) for slope in derivatives):
        raise ModelError("gradients overflow in float16; load the model in bfloat16 or float32")
    return [slope.float() / scale for slope in derivatives]


def tokens_in_a_graph(n_layers: int, d_model: int) -> int:
    """Return how many tokens carry a graph through all blocks at once: few of a large model."""
    return min(_GRAPH_TOKENS, max(1, _GRAPH_NUMBERS // (NUMBERS_OF_A_TOKEN * n_layers * d_model)))
