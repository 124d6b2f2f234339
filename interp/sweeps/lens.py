"""What a residual would predict if it were the last one, against what the model predicts.

Logits are made for a few tokens at a time: never more than `LOGITS_HELD` numbers (or one token's)
in one tensor, however many layers, prompts and positions there are. A token's row of logits is
small (1 MB at 262,144 tokens), so the vocabulary itself needs no cutting.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from interp.replay import Recording
from interp.shapes import Resid

READINGS = ("kl_lens_final", "kl_final_lens", "overlap", "answer_probability", "answer_rank")
LOGITS_HELD = 2**24
NO_ANSWER = -1.0


@dataclass(frozen=True)
class Prediction:
    """What is predicted at every token: log-probabilities, probabilities, most probable tokens."""

    log_p: Float[Tensor, "token d_vocab"]
    p: Float[Tensor, "token d_vocab"]
    top: Int[Tensor, "token top_k"]

    @classmethod
    def of(cls, log_p: Float[Tensor, "token d_vocab"], *, top_k: int) -> "Prediction":
        """Prepare log-probabilities."""
        return cls(log_p, log_p.exp(), log_p.topk(top_k, dim=-1).indices)


def compared(
    lens: Prediction, final: Prediction, *, answer: Int[Tensor, " token"] | None
) -> Float[Tensor, "token reading"]:
    """Return `READINGS` of a lens q against the final p.

    KL(q‖p) and KL(p‖q) in nats; the share of the k most probable tokens that both have; q(answer),
    and how many tokens q holds more probable than it (0: none). Without an answer the last two are
    -1.
    """
    overlap = (lens.top[:, :, None] == final.top[:, None, :]).any(-1).float().mean(-1)
    difference = lens.log_p - final.log_p
    kls = (torch.linalg.vecdot(lens.p, difference), -torch.linalg.vecdot(final.p, difference))
    if answer is None:
        return torch.stack([*kls, overlap, *[torch.full_like(overlap, NO_ANSWER)] * 2], dim=-1)
    of_answer = lens.log_p.gather(1, answer[:, None])
    return torch.stack(
        [*kls, overlap, of_answer.exp()[:, 0], (lens.log_p > of_answer).sum(-1).float()], dim=-1
    )


def readings(
    recording: Recording,
    resids: Sequence[Resid],
    *,
    top_k: int,
    answer: Int[Tensor, " batch"] | None,
) -> tuple[Float[Tensor, "batch tap pos reading"], Int[Tensor, "batch tap pos top_k"]]:
    """Return `READINGS` of residuals [batch pos d_model], each unembedded as if it were the last,
    and its best tokens.
    """
    final, *taps = (
        rearrange(r, "batch pos d_model -> 1 (batch pos) d_model")
        for r in (recording.resid(recording.n_layers), *resids)
    )
    answers = (
        None if answer is None else repeat(answer, "batch -> (batch pos)", pos=recording.n_pos)
    )
    n_tokens = final.shape[1]
    size = max(1, LOGITS_HELD // recording.logits(final, positions=[0]).shape[-1])
    read = torch.empty(len(taps), n_tokens, len(READINGS), device=final.device)
    best = torch.empty(len(taps), n_tokens, top_k, dtype=torch.int32, device=final.device)
    for start in range(0, n_tokens, size):
        tokens = slice(start, min(start + size, n_tokens))
        asked = None if answers is None else answers[tokens]
        predicted = Prediction.of(
            recording.logits(final, positions=tokens)[0].log_softmax(-1), top_k=top_k
        )
        for tap, resid in enumerate(taps):
            lens = Prediction.of(
                recording.logits(resid, positions=tokens)[0].log_softmax(-1), top_k=top_k
            )
            read[tap, tokens], best[tap, tokens] = (
                compared(lens, predicted, answer=asked),
                lens.top.to(torch.int32),
            )
    by_prompt = "tap (batch pos) last -> batch tap pos last"
    return rearrange(read, by_prompt, pos=recording.n_pos), rearrange(
        best, by_prompt, pos=recording.n_pos
    )


def held(n_tokens: int, d_vocab: int) -> int:
    """Return how many numbers `readings` holds at once, for the estimate of a run."""
    return 6 * max(d_vocab, min(n_tokens * d_vocab, LOGITS_HELD))


def choices_of(recording: Recording) -> Int[Tensor, "batch tap"]:
    """Return the most probable token at the last position in front of every layer and, last, behind
    them all.
    """
    streams = [recording.resid(tap)[:, -1:] for tap in range(recording.n_layers + 1)]
    return torch.cat([recording.logits(stream).argmax(-1) for stream in streams], dim=1)
