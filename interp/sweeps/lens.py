"""What residuals would predict as if they were the last, against the model's prediction.

Logits are made for a few tokens at a time: one tensor never holds more than `LOGITS_HELD` numbers
(or one token's logits), however many layers, prompts and positions there are. One token's logits
are small (1 MB at 262,144 tokens), so the vocabulary itself is never split.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from interp.replay import Recording
from interp.shapes import Resid

READINGS = (
    "kl_lens_final",
    "kl_final_lens",
    "overlap",
    "answer_probability",
    "answer_rank",
    "entropy",
    "margin",
)
LOGITS_HELD = 2**23
NO_ANSWER = -1.0


@dataclass(frozen=True)
class Prediction:
    """The prediction at every token: log-probabilities, probabilities, most probable tokens.

    `margin` is by how much the most probable token is ahead of the next, in nats.
    """

    log_p: Float[Tensor, "token d_vocab"]
    p: Float[Tensor, "token d_vocab"]
    top: Int[Tensor, "token top_k"]
    margin: Float[Tensor, " token"]

    @classmethod
    def of(cls, log_p: Float[Tensor, "token d_vocab"], *, top_k: int) -> "Prediction":
        """Prepare log-probabilities."""
        best = log_p.topk(min(max(2, top_k), log_p.shape[-1]), dim=-1)
        margin = best.values[:, 0] - best.values[:, min(1, log_p.shape[-1] - 1)]
        return cls(log_p, log_p.exp(), best.indices[:, :top_k], margin)


def compare(
    lens: Prediction, final: Prediction, *, answer: Int[Tensor, " token"] | None
) -> Float[Tensor, "token reading"]:
    """Return `READINGS` of a lens q against the final prediction p.

    KL(q‖p) and KL(p‖q) in nats; the share of the k most probable tokens that both have; q(answer),
    and how many tokens q holds more probable than the answer (0: none), both -1 without an answer;
    q's entropy and margin, in nats.
    """
    overlap = (lens.top[:, :, None] == final.top[:, None, :]).any(-1).float().mean(-1)
    difference = lens.log_p - final.log_p
    kls = (torch.linalg.vecdot(lens.p, difference), -torch.linalg.vecdot(final.p, difference))
    if answer is None:
        of_answer = [torch.full_like(overlap, NO_ANSWER)] * 2
    else:
        log_p = lens.log_p.gather(1, answer[:, None])
        of_answer = [log_p.exp()[:, 0], (lens.log_p > log_p).sum(-1).float()]
    entropy = -torch.linalg.vecdot(lens.p, lens.log_p)
    return torch.stack([*kls, overlap, *of_answer, entropy, lens.margin], dim=-1)


def readings(
    recording: Recording,
    resids: Sequence[Resid],
    *,
    top_k: int,
    answer: Int[Tensor, " batch"] | None,
) -> tuple[Float[Tensor, "batch tap pos reading"], Int[Tensor, "batch tap pos top_k"]]:
    """Return `READINGS` of residuals, each unembedded as if the last, and its best tokens."""
    final, *taps = (
        rearrange(resid, "batch pos d_model -> 1 (batch pos) d_model")
        for resid in (recording.resid(recording.n_layers), *resids)
    )
    n_pos, n_tokens = recording.n_pos, final.shape[1]
    answers = None if answer is None else repeat(answer, "batch -> (batch pos)", pos=n_pos)
    size = logits_at_once(recording)
    read = torch.empty(len(taps), n_tokens, len(READINGS), device=final.device)
    best = torch.empty(len(taps), n_tokens, top_k, dtype=torch.int32, device=final.device)
    for start in range(0, n_tokens, size):
        tokens = slice(start, min(start + size, n_tokens))

        def predicted(resid: Resid, tokens: slice = tokens) -> Prediction:
            log_p = recording.logits(resid, positions=tokens)[0].log_softmax(-1)
            return Prediction.of(log_p, top_k=top_k)

        of_model, answer_here = predicted(final), None if answers is None else answers[tokens]
        for tap, resid in enumerate(taps):
            lens = predicted(resid)
            read[tap, tokens] = compare(lens, of_model, answer=answer_here)
            best[tap, tokens] = lens.top.to(torch.int32)
    by_prompt = "tap (batch pos) last -> batch tap pos last"
    return rearrange(read, by_prompt, pos=n_pos), rearrange(best, by_prompt, pos=n_pos)


def logits_at_once(recording: Recording) -> int:
    """Return for how many tokens logits are made at once."""
    return rows_at_once(recording.runner.d_vocab)


def rows_at_once(d_vocab: int) -> int:
    """Return for how many tokens logits of so many numbers are made at once."""
    return max(1, LOGITS_HELD // d_vocab)


def held(n_tokens: int, d_vocab: int) -> int:
    """Return how many numbers `readings` holds at once, for the cost of a shard."""
    return 6 * max(d_vocab, min(n_tokens * d_vocab, LOGITS_HELD))


def first_choices(recording: Recording) -> Int[Tensor, "batch tap"]:
    """Return the lens's most probable token at the last position, for every tap of the stream."""
    taps = range(recording.n_layers + 1)
    device = recording.resid(taps[-1]).device
    streams = torch.stack([recording.resid(tap)[:, -1].to(device) for tap in taps], dim=1)
    some = torch.split(streams, max(1, logits_at_once(recording) // len(taps)))
    return torch.cat([recording.logits(rows).argmax(-1) for rows in some])
