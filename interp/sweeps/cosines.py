"""Cosines of what a layer writes with the stream it writes to, and of the stream in front of a
layer and behind it.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import cosine_similarity

from interp.replay import Recording
from interp.shapes import Resid
from interp.sites import Site

_EPS = 1e-6
MEASURES = ("BI", "BI if writes were orthogonal", "relative magnitude")


def write_cosines(recording: Recording, layer: int) -> Float[Tensor, "batch pos part"]:
    """Return the cosines of attention's, the MLP's and the layer's write with the stream each is
    added to, in fp32.

    About 0: a new direction; negative: erasing; positive: strengthening. In parallel blocks all are
    added to `resid_pre`.
    """
    pre = recording.resid(layer).float()
    attn, mlp = (recording.clean(Site(kind, layer)).float() for kind in ("attn_out", "mlp_out"))
    mid = pre if recording.blocks[layer].is_parallel else pre + attn
    pairs = ((attn, pre), (mlp, mid), (attn + mlp, pre))
    return torch.stack(
        [cosine_similarity(write, stream, dim=-1, eps=_EPS) for write, stream in pairs], dim=-1
    )


def influence(resid_pre: Resid, resid_post: Resid) -> Float[Tensor, "rows pos measure"]:
    """Return `MEASURES` of one layer for every token, in fp32."""
    pre, post = resid_pre.float(), resid_post.float()
    stream, write = vector_norm(pre, dim=-1), vector_norm(post - pre, dim=-1)
    orthogonal = 1 - stream / torch.hypot(stream, write).clamp_min(_EPS)
    magnitude = write / vector_norm(post, dim=-1).clamp_min(_EPS)
    return torch.stack(
        [1 - cosine_similarity(pre, post, dim=-1, eps=_EPS), orthogonal, magnitude], dim=-1
    )
