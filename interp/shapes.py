"""The names of axes, once, and the tensor types that use them.

batch     prompts of a shard; every tensor that leaves an analysis starts with it
variant   interventions that run together; `variant*batch` is variant-major
kv_pos    positions whose keys and values are read or written
pos       token positions, 0 is the first token (often BOS)
d_model   the residual stream
d_vocab   the vocabulary
layer     decoder blocks, 0 .. n_layers - 1
tap       where the stream is read, 0 .. n_layers: before a layer, or after the last
head      attention heads; kv_head for keys and values under grouped queries
"""

from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import SiteError

Resid = Float[Tensor, "rows pos d_model"]
Logits = Float[Tensor, "rows positions d_vocab"]
KV = tuple[
    Float[Tensor, "rows kv_head kv_pos d_head"], Float[Tensor, "rows kv_head kv_pos d_value"]
]  # may differ
Prefix = tuple[
    Float[Tensor, "prefixes kv_head kv_pos d_head"],
    Float[Tensor, "prefixes kv_head kv_pos d_value"],
]
Hidden = Bool[Tensor, "rows queries keys"]
Tensors = dict[str, Tensor]


def per_query_head(
    kv: Float[Tensor, "batch pos kv_head d_head"], n_heads: int
) -> Float[Tensor, "batch pos head d_head"]:
    """Return keys or values once for each query head; consecutive query heads share them."""
    n_kv_heads = kv.shape[2]
    if n_heads % n_kv_heads:
        raise SiteError(
            f"{n_heads} query heads asked for; {n_kv_heads} K/V heads cannot be shared out evenly"
        )
    return kv.repeat_interleave(n_heads // n_kv_heads, dim=2)
