"""ZD: how many of a layer's weights are large (Layer-Wise Quantization, arXiv 2406.17415)."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.models.streaming import parameters_of
from interp.replay import Block


def large_weights(blocks: Sequence[Block]) -> Float[Tensor, " layer"]:
    """Return every layer's ZD over its matrices: a norm's gains, near 1, would decide it."""
    weights = (parameters_of(block.module) for block in blocks)  # one block's at a time
    matrices = ([weight for weight in each if weight.ndim > 1] for each in weights)
    return torch.tensor([share_of_large_weights(each) for each in matrices])


def share_of_large_weights(weights: Sequence[Tensor], *, both_tails: bool = False) -> float:
    """Return ZD: the share of weights more than one standard deviation above the mean of all.

    With `both_tails`, also of those below it: about 0.317 instead of 0.159 for Gaussian weights.
    """
    sizes = np.array([tensor.numel() for tensor in weights], dtype=np.float64)
    moments = np.array(
        [[float(m) for m in torch.var_mean(tensor.float(), correction=0)] for tensor in weights]
    )
    mean = np.average(moments[:, 1], weights=sizes)
    variance = np.average(moments[:, 0] + (moments[:, 1] - mean) ** 2, weights=sizes)
    low, high = float(mean - variance**0.5), float(mean + variance**0.5)
    n = sum(int((tensor > high).sum()) for tensor in weights)
    if both_tails:
        n += sum(int((tensor < low).sum()) for tensor in weights)
    return float(n / sizes.sum())
