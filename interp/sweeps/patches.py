"""Residuals written over a layer's output at some positions; only what comes after is run.

With causal attention, positions before the first that is written to, and layers up to the one
written to, stay as they were: one token is run where the last position is written to. Source and
target may be different recordings, of any models of one width.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import AnalysisError, TaskError
from interp.replay import Recording
from interp.tasks.batch import TokenBatch

Spans = Int[Tensor, "batch span"]


def outputs_at(recording: Recording, positions: Spans) -> Float[Tensor, "layer batch span d_model"]:
    """Return the clean output of every layer at each prompt's positions."""
    index = positions[..., None].expand(-1, -1, recording.resid(0).shape[-1])
    return torch.stack(
        [recording.resid(layer + 1).gather(1, index) for layer in range(recording.n_layers)]
    )


def ends_of_patched(
    recording: Recording,
    values: Mapping[int, Float[Tensor, "variant batch span d_model"]],
    *,
    positions: Spans,
) -> dict[int, Float[Tensor, "variant batch d_model"]]:
    """Return by layer the last residual at the last position, for each variant's value there.

    A variant's value replaces the layer's output at `positions`.

    One sweep over the layers serves them all: a layer's variants join after it. Raises
    AnalysisError for vectors of another width and for positions that do not exist.
    """
    _refuse_misfits(recording, values, positions)
    start = int(positions.min())
    at = (torch.arange(len(positions), device=positions.device)[:, None], positions - start)
    rows = recording.resid(0)[None, :, start:][:0]
    for layer in range(recording.n_layers):
        rows = recording.run(layer, rows, start=start)
        if layer in values:
            clean = recording.resid(layer + 1)[:, start:]
            joining = repeat(
                clean, "batch pos d_model -> variant batch pos d_model", variant=len(values[layer])
            ).clone()
            joining[:, *at] = values[layer]
            rows = torch.cat([rows, joining])
    layers = sorted(values)
    split = torch.split(rows[:, :, -1], [len(values[layer]) for layer in layers])
    return dict(zip(layers, split, strict=True))


def _refuse_misfits(recording: Recording, values: Mapping[int, Tensor], positions: Spans) -> None:
    width = recording.resid(0).shape[-1]
    if wrong := [value.shape[-1] for value in values.values() if value.shape[-1] != width]:
        raise AnalysisError(
            f"vectors of width {wrong[0]} given; the residuals here have width {width}"
        )
    if bad := [pos for pos in positions.flatten().tolist() if not 0 <= pos < recording.n_pos]:
        raise AnalysisError(f"position {bad[0]} given; the last position is {recording.n_pos - 1}")


def patching_steps(n_layers: int, *, variants: Sequence[int]) -> int:
    """Return how many blocks are run where each layer's output has `variants[layer]` values."""
    return sum(n * (n_layers - 1 - layer) for layer, n in enumerate(variants))


def logits_at_the_end(recording: Recording, ends: Float[Tensor, "variant batch d_model"]) -> Tensor:
    """Return fp32 logits [variant batch d_vocab] of residuals at the last position."""
    flat = rearrange(ends, "variant batch d_model -> (variant batch) 1 d_model")
    logits = recording.logits(flat)
    by_variant: Tensor = rearrange(
        logits, "(variant batch) 1 d_vocab -> variant batch d_vocab", variant=len(ends)
    )
    return by_variant


def ranks(
    logits: Float[Tensor, "*rows batch d_vocab"], token: Int[Tensor, " batch"]
) -> Int[Tensor, "*rows batch"]:
    """Return how many tokens have a higher logit than each prompt's token; 0: the first guess."""
    n_above: Tensor = (logits > of_token(logits, token)[..., None]).sum(-1)
    return n_above


def of_token(
    logits: Float[Tensor, "*rows batch d_vocab"], token: Int[Tensor, " batch"]
) -> Float[Tensor, "*rows batch"]:
    """Return the logit of each prompt's token."""
    index = token.reshape(*[1] * (logits.ndim - 2), -1, 1).expand(*logits.shape[:-1], 1)
    return logits.gather(-1, index)[..., 0]


Where = Literal["subject", "last"]


def span_of(shard: TokenBatch, position: Where, *, width: int = 1) -> Spans:
    """Return `width` positions of each prompt that end with its subject or with the prompt."""
    if position == "subject" and shard.subject is None:
        raise TaskError(
            f"{shard.why.get('subject') or shard.first_without('subject')};"
            " position='last' needs none"
        )
    end = shard.last if position == "last" or shard.subject is None else shard.subject
    span: Tensor = end[:, None] - torch.arange(width - 1, -1, -1, device=end.device)
    return span
