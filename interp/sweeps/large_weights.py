"""ZD: the share of a layer's weights that stand out from the mean of all its weights."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


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
