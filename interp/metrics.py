"""One number per prompt, from the logits that predict its answer; leading axes are kept."""

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

Metric = Literal["logit_diff", "log_prob", "kl"]
WORDS: dict[Metric, str] = {
    "logit_diff": "the logit difference",
    "log_prob": "the answer's log-probability",
    "kl": "the agreement with the clean prediction",
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


def _picked(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.gather(-1, tokens[..., None].expand(*logits.shape[:-1], 1))[..., 0]
