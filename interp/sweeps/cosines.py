"""Cosines of what a layer writes with the stream it writes to."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from interp.replay import Recording
from interp.sites import Site

_EPS = 1e-6


def write_cosines(recording: Recording, layer: int) -> Float[Tensor, "batch pos part"]:
    """Return the cosines of attention's, the MLP's and the layer's write with the stream each is added to, in fp32.

    About 0: a new direction; negative: erasing; positive: strengthening. In parallel blocks all are added to `resid_pre`.
    """
    pre = recording.resid(layer).float()
    attn, mlp = (recording.clean(Site(kind, layer)).float() for kind in ("attn_out", "mlp_out"))
    mid = pre if recording.blocks[layer].is_parallel else pre + attn
    pairs = ((attn, pre), (mlp, mid), (attn + mlp, pre))
    return torch.stack([cosine_similarity(write, stream, dim=-1, eps=_EPS) for write, stream in pairs], dim=-1)
