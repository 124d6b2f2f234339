"""What patches do to the answer, read where the prompt ends."""

import torch
from jaxtyping import Float, Num
from torch import Tensor

from interp.metrics import outcomes
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sweeps.outputs import read_at_the_end
from interp.sweeps.patches import ranks
from interp.tasks.batch import TokenBatch


def effects_of(
    recording: Recording,
    end: Float[Tensor, "source batch d_model"],
    clean: Float[Tensor, "batch d_vocab"],
    shard: TokenBatch,
) -> dict[str, Num[Tensor, "source batch"]]:
    """Return the answer's rank, whether it is 0, and how much more probable the answer is.

    In nats: its log-probability, and its logit less the bridge's (0 without one), as changes.
    """
    assert shard.answer is not None
    answer, before = shard.answer, outcomes(clean, shard.answer, shard.bridge)

    def read(logits: Tensor) -> Tensors:
        after, rank = outcomes(logits, answer, shard.bridge), ranks(logits, answer).int()
        log_prob = after["log_prob"] - before["log_prob"]
        over = after.get("logit_diff", log_prob) - before.get("logit_diff", log_prob)
        is_right = (rank == 0).to(torch.int8)
        return {"rank": rank, "right": is_right, "log_prob": log_prob, "difference": over}

    return read_at_the_end(recording, end, read)
