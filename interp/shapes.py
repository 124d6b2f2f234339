"""The names of axes, once, and the tensor types that use them.

batch     prompts of a shard; every tensor that leaves an analysis starts with it
variant   interventions that run together; `variant*batch` is variant-major
kv_pos    positions whose keys and values are read or written
pos       token positions, 0 is the first token (often BOS)
d_model   the residual stream
d_vocab   the vocabulary
layer     decoder blocks, 0 .. n_layers - 1
head      attention heads; kv_head for keys and values under grouped queries
"""

from jaxtyping import Bool, Float
from torch import Tensor

Resid = Float[Tensor, "rows pos d_model"]
Logits = Float[Tensor, "rows positions d_vocab"]
KV = tuple[Float[Tensor, "rows kv_head kv_pos d_head"], Float[Tensor, "rows kv_head kv_pos d_head"]]
Prefix = tuple[Float[Tensor, "prefixes kv_head kv_pos d_head"], Float[Tensor, "prefixes kv_head kv_pos d_head"]]
Hidden = Bool[Tensor, "rows queries keys"]
Tensors = dict[str, Tensor]
