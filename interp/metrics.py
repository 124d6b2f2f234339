"""Outcomes: one number per prompt, from the logits that predict its answer; leading axes are kept.

A logit alone means nothing, as adding a number to all of them changes no probability: what happens
to an answer is told by its log-probability, its logit less a wrong answer's, and whether it comes
first; what happens to the whole distribution by KL and by ‖p - p'‖.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

Metric = Literal["logit_diff", "log_prob", "kl"]
WORDS: dict[Metric, str] = {
    "logit_diff": "the logit difference",
    "log_prob": "the answer's log-probability",
    "kl": "the agreement with the clean prediction",
}
Outcome = Literal["log_prob", "logit_diff", "accuracy"]
OUTCOMES: dict[Outcome, str] = {
    "log_prob": "log-probability of the answer (nats)",
    "logit_diff": "logit of the answer less that of the wrong one",
    "accuracy": "accuracy (the answer comes first)",
}
Change = Literal["kl", "l2"]
CHANGES: dict[Change, str] = {
    "kl": "KL from the clean prediction (nats)",
    "l2": "change of the probabilities (L2)",
}
Predictions = Float[Tensor, "*variant batch answer_pos d_vocab"]
Values = Float[Tensor, "*variant batch"]


def logit_diff(
    logits: Predictions, answer: Int[Tensor, " batch"], wrong: Int[Tensor, " batch"]
) -> Values:
    """Return logit(answer) - logit(wrong) where the answer's first token is predicted."""
    return _picked(logits[..., 0, :], answer) - _picked(logits[..., 0, :], wrong)


def log_prob(logits: Predictions, answer: Int[Tensor, "batch answer_pos"]) -> Values:
    """Return the log-probability of the whole answer in nats, a sum over its tokens in turn."""
    return _picked(logits.float().log_softmax(-1), answer).sum(-1)


def kl(logits: Predictions, reference: Float[Tensor, "batch answer_pos d_vocab"]) -> Values:
    """Return -KL(reference || logits) in nats where the answer's first token is predicted."""
    expected, given = (each[..., 0, :].float().log_softmax(-1) for each in (reference, logits))
    return -(expected.exp() * (expected - given)).sum(-1)


def outcomes(
    logits: Float[Tensor, "*variant batch d_vocab"],
    answer: Int[Tensor, " batch"],
    wrong: Int[Tensor, " batch"] | None = None,
) -> dict[Outcome, Values]:
    """Return `OUTCOMES` of the answer's first token where it is predicted.

    "accuracy" is 1 where no token is more probable than the answer, else 0; "logit_diff" needs a
    wrong answer.
    """
    logits = logits.float()
    of_answer = _picked(logits, answer)
    found: dict[Outcome, Values] = {
        "log_prob": of_answer - logits.logsumexp(-1),
        "accuracy": (of_answer >= logits.amax(-1)).float(),
    }
    return found if wrong is None else found | {"logit_diff": of_answer - _picked(logits, wrong)}


class Distribution(NamedTuple):
    """Log-probabilities and probabilities of predictions, in fp32."""

    log_p: Float[Tensor, "*variant d_vocab"]
    p: Float[Tensor, "*variant d_vocab"]


def distribution(logits: Float[Tensor, "*variant d_vocab"]) -> Distribution:
    """Return the distribution that logits stand for."""
    log_p = logits.float().log_softmax(-1)
    return Distribution(log_p, log_p.exp())


@torch.no_grad()
def changes(
    logits: Float[Tensor, "*variant d_vocab"], clean: Distribution
) -> dict[Change, Float[Tensor, "*variant"]]:
    """Return KL(clean ‖ changed) in nats and ‖p - p'‖ of predictions, in fp32.

    The clean ones serve all variants: their shape may be a broadcast one. No gradient.
    """
    after = logits.float().log_softmax(-1)
    kl = (clean.log_p - after).mul_(clean.p).sum(-1)
    return {"kl": kl, "l2": torch.linalg.vector_norm(after.exp_().sub_(clean.p), dim=-1)}


def _picked(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.gather(-1, tokens[..., None].expand(*logits.shape[:-1], 1))[..., 0]
