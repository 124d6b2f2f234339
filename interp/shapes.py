"""The names of axes, once, and the tensor types that use them.

batch     prompts of a shard; every tensor that leaves an analysis starts with it
variant   interventions that run together; `variant*batch` is variant-major
pos       token positions, 0 is the first token (often BOS)
d_model   the residual stream
d_vocab   the vocabulary
layer     decoder blocks, 0 .. n_layers - 1
head      attention heads; kv_head for keys and values under grouped queries
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Resid = Float[Tensor, "rows pos d_model"]
Logits = Float[Tensor, "rows pos d_vocab"]
Tokens = Int[Tensor, "batch pos"]
Mask = Bool[Tensor, "batch pos"]
PerPrompt = Int[Tensor, " batch"]
KV = tuple[Float[Tensor, "rows kv_head pos d_head"], Float[Tensor, "rows kv_head pos d_head"]]
Tensors = dict[str, Tensor]
