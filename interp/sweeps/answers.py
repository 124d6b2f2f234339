"""Prompts together with their answers, in groups that need no padding.

An answer's first token is predicted at the prompt's last position, the others after it: with
answers of one token the recording of the prompts is all that is needed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import TaskError
from interp.replay import Recording
from interp.tasks.batch import TokenBatch


@dataclass(frozen=True)
class SameLength:
    """Prompts `rows` of a shard with answers of one length; `start` predicts the first token."""

    rows: Int[Tensor, " batch"]
    recording: Recording
    tokens: Int[Tensor, "batch pos"]
    answer: Int[Tensor, "batch answer_pos"]
    start: int

    @property
    def predicting(self) -> slice:
        """Return the positions that predict the answer's tokens."""
        return slice(self.start, self.start + self.answer.shape[1])

    def only(self, rows: Int[Tensor, " kept"]) -> "SameLength":
        """Return some of the prompts, with a recording of their own."""
        tokens = self.tokens[rows]
        return SameLength(
            self.rows[rows], self.recording.of(tokens), tokens, self.answer[rows], self.start
        )


@dataclass(frozen=True)
class LengthGroupSize:
    """How many prompts have answers of one length, their positions, and those of a new pass."""

    n_prompts: int
    n_pos: int
    passed: int


def require_answers(shard: TokenBatch) -> Int[Tensor, "batch answer_pos"]:
    """Return the answers, padded with -1; raise TaskError, naming prompts, if one is missing."""
    if shard.answer_tokens is None:
        raise TaskError(shard.missing("answer"))
    return shard.answer_tokens


def _by_length(shard: TokenBatch) -> dict[int, Int[Tensor, " batch"]]:
    """Return which prompts have an answer of how many tokens."""
    lengths = (require_answers(shard) >= 0).sum(1)
    return {n: (lengths == n).nonzero()[:, 0] for n in sorted(set(lengths.tolist()))}


def by_answer_length(
    recording: Recording, shard: TokenBatch, *, whole: bool = False
) -> Iterator[SameLength]:
    """Yield the prompts of a shard with their answers, one length of answer at a time.

    An answer's last token predicts nothing that is asked for, and is left out unless the `whole`
    answer is wanted. Where nothing has to be appended, the shard's own recording is used; otherwise
    a clean pass of the longer texts is needed.
    """
    start = shard.tokens.shape[1] - 1
    for n, rows in _by_length(shard).items():
        answer = require_answers(shard)[rows, :n]
        tokens = torch.cat([shard.tokens[rows], answer if whole else answer[:, :-1]], dim=1)
        is_own = tokens.shape == shard.tokens.shape
        yield SameLength(rows, recording if is_own else recording.of(tokens), tokens, answer, start)


def length_group_sizes(shard: TokenBatch, *, whole: bool = False) -> list[LengthGroupSize]:
    """Return the size of each group that `by_answer_length` yields."""
    sizes = []
    for n, rows in _by_length(shard).items():
        n_pos = shard.tokens.shape[1] + n - (0 if whole else 1)
        is_own = (len(rows), n_pos) == shard.tokens.shape
        sizes.append(LengthGroupSize(len(rows), n_pos, 0 if is_own else len(rows) * n_pos))
    return sizes


def probability(
    logits: Float[Tensor, "batch answer_pos d_vocab"], answer: Int[Tensor, "batch answer_pos"]
) -> Float[Tensor, " batch"]:
    """Return the sum of the probabilities of the answer's tokens, each given those before it."""
    probabilities: Tensor = logits.float().softmax(-1).gather(-1, answer[..., None])[..., 0].sum(-1)
    return probabilities
