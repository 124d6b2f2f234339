"""What a model's loss is on a prompt: that of its answer, or else of the prompt itself."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import AnalysisError
from interp.metrics import log_prob
from interp.replay import Recording
from interp.sweeps.answers import SameLength, by_answer_length
from interp.tasks.batch import TokenBatch


def require_predicted(shard: TokenBatch) -> None:
    """Raise AnalysisError, naming a prompt, if nothing is predicted."""
    if shard.answer_tokens is None and shard.tokens.shape[1] < 2:
        raise AnalysisError(
            f"prompt {shard.prompts[0].id!r} has 1 token and no answer; nothing is predicted"
        )


def scored(recording: Recording, shard: TokenBatch) -> Iterator[SameLength]:
    """Yield the prompts with what is predicted: their answers, or else the prompts themselves."""
    if shard.answer_tokens is not None:
        yield from by_answer_length(recording, shard)
        return
    rows = torch.arange(len(shard.tokens), device=shard.tokens.device)
    yield SameLength(rows, recording, shard.tokens, shard.tokens[:, 1:], 0)


def loss(
    logits: Float[Tensor, "*variant batch predicted d_vocab"], group: SameLength, *, is_text: bool
) -> Float[Tensor, "*variant batch"]:
    """Return minus the answer's log-probability, or that of the text's mean token, in nats."""
    total = -log_prob(logits, group.answer)
    return total / group.answer.shape[1] if is_text else total
