"""Cosines of a layer's writes with the stream, and of the stream in front and behind."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import cosine_similarity

from interp.replay import Recording
from interp.shapes import Resid
from interp.sites import Site

SMALLEST_NORM = 1e-6  # a shorter vector counts as this long, so that nothing is divided by 0
MEASURES = ("BI", "BI if writes were orthogonal", "relative magnitude")

Part = Literal["layer", "attention", "mlp"]
Write = tuple[Float[Tensor, "*tokens d_model"], Float[Tensor, "*tokens d_model"]]


def writes_of(recording: Recording, layer: int) -> list[Write]:
    """Return what attention, the MLP and the layer write [batch pos d_model], in fp32.

    Each comes with the stream that it is added to; in parallel blocks that is always `resid_pre`.
    Where a block runs only as a whole, what attention and MLP write is NaN.
    """
    pre = recording.resid(layer).float()
    if recording.blocks[layer].why_whole:
        unknown = torch.full_like(pre, torch.nan)
        return [(unknown, pre), (unknown, pre), (write_of(recording, layer), pre)]
    attn, mlp = (write_of(recording, layer, part) for part in ("attention", "mlp"))
    return [(attn, pre), (mlp, recording.mlp_reads(layer, pre, attn)), (attn + mlp, pre)]


def write_of(
    recording: Recording, layer: int, part: Part = "layer"
) -> Float[Tensor, "*tokens d_model"]:
    """Return what a layer, or its part, adds to the stream [batch pos d_model], in fp32."""
    if part == "layer" and recording.blocks[layer].why_whole:
        return recording.resid(layer + 1).float() - recording.resid(layer).float()
    if part == "layer":
        return write_of(recording, layer, "attention") + write_of(recording, layer, "mlp")
    return recording.clean(Site("attn_out" if part == "attention" else "mlp_out", layer)).float()


def cosines_of(writes: Sequence[Write]) -> Float[Tensor, "*tokens part"]:
    """Return the cosine of each write with the stream that it is added to.

    About 0: a new direction; negative: erasing; positive: strengthening.
    """
    cosines = [
        cosine_similarity(write, stream, dim=-1, eps=SMALLEST_NORM) for write, stream in writes
    ]
    return torch.stack(cosines, dim=-1)


def write_cosines(recording: Recording, layer: int) -> Float[Tensor, "batch pos part"]:
    """Return the cosines of attention's, the MLP's and the layer's writes, in fp32."""
    return cosines_of(writes_of(recording, layer))


def influence(resid_pre: Resid, resid_post: Resid) -> Float[Tensor, "rows pos measure"]:
    """Return `MEASURES` of one layer for every token, in fp32."""
    pre, post = resid_pre.float(), resid_post.float()
    stream, write = vector_norm(pre, dim=-1), vector_norm(post - pre, dim=-1)
    orthogonal = 1 - stream / torch.hypot(stream, write).clamp_min(SMALLEST_NORM)
    magnitude = write / vector_norm(post, dim=-1).clamp_min(SMALLEST_NORM)
    return torch.stack(
        [1 - cosine_similarity(pre, post, dim=-1, eps=SMALLEST_NORM), orthogonal, magnitude], dim=-1
    )
