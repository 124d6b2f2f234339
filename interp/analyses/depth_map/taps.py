"""Taps: residuals before every layer and after the last, or what each layer adds."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.models import Model
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sweeps.cosines import write_of
from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch

What = Literal["residual", "contribution"]


def n_taps(model: Model, what: What) -> int:
    """Return how many taps a model has."""
    return model.n_layers + int(what == "residual")


def taps(recording: Recording, what: What) -> Float[Tensor, "tap batch pos d_model"]:
    """Return a clean pass's residuals, or its layers' contributions in fp32."""
    layers = range(recording.n_layers)
    if what == "residual":
        return torch.stack([recording.resid(layer) for layer in (*layers, recording.n_layers)])
    return torch.stack([write_of(recording, layer) for layer in layers])


def pooled(
    recording: Recording, batch: TokenBatch, what: What, *, begin: int
) -> Float[Tensor, "batch tap d_model"]:
    """Return each tap's mean over a prompt's positions from `begin` on, without padding."""
    mask = batch.mask.clone()
    mask[:, :begin] = False
    total = torch.einsum("sbpd,bp->bsd", taps(recording, what).float(), mask.float())
    return (total / mask.sum(1)[:, None, None]).cpu()


def pooled_by_prompt(
    model: Model, shards: Sequence[Sequence[Prompt]], what: What, begin: int
) -> Tensors:
    """Return "prompt ID" and that prompt's pooled taps [tap d_model]."""
    by_prompt: Tensors = {}
    for shard in shards:
        batch = model.tokenize(shard)
        vectors = pooled(model.record(batch), batch, what, begin=begin)
        by_prompt |= {f"prompt {p.id}": row for p, row in zip(shard, vectors, strict=True)}
    return by_prompt
