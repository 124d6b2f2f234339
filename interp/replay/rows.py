"""Variants [variant batch ...] as rows [variant*batch ...], and how many a block runs at once."""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

Variants = Float[Tensor, "variant batch pos d_model"]
CPU_TOKENS = 1024
_NUMBERS_HELD = 32  # per token and d_model: an MLP of 4 d_model with gates, queries, keys, ...
_READ_WEIGHT = 8  # keys and values of so many earlier positions weigh as much as one token run


def tokens_at_once(device: torch.device, *, d_model: int, dtype: torch.dtype) -> int:
    """Return how many tokens a block of this width runs at once.

    On a CPU as many as keep its caches warm; on a GPU what a quarter of the free memory holds, as a
    power of two, so that it seldom depends on what else is there.
    """
    if device.type != "cuda":
        return CPU_TOKENS
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return tokens_held(free, d_model=d_model, dtype=dtype)


def tokens_held(free: float, *, d_model: int, dtype: torch.dtype) -> int:
    """Return how many tokens a block of this width runs at once on a GPU with so many bytes free.

    What a quarter of them holds, as a power of two.
    """
    bytes_held = _NUMBERS_HELD * d_model * dtype.itemsize
    return max(CPU_TOKENS, 1 << int(math.log2(max(free / 4 / bytes_held, 1))))


def variants_at_once(tokens: int, *, batch: int, n_pos: int, start: int) -> int:
    """Return how many variants run together over positions from `start` to `n_pos`."""
    return max(1, tokens // (batch * max(n_pos - start, n_pos // _READ_WEIGHT, 1)))


def flat(variants: Tensor) -> Tensor:
    """Return variants [variant batch ...] as rows [variant*batch ...], variant-major."""
    rows: Tensor = rearrange(variants, "variant batch ... -> (variant batch) ...")
    return rows


def unflat(rows: Tensor, batch: int) -> Tensor:
    """Return rows [variant*batch ...] of `batch` prompts as variants [variant batch ...]."""
    variants: Tensor = rearrange(rows, "(variant batch) ... -> variant batch ...", batch=batch)
    return variants
