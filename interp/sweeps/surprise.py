"""How surprising a text is to a model: nats per token."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.replay import Recording
from interp.sweeps.lens import logits_at_once


def nats_per_token(
    recording: Recording,
    resid: Float[Tensor, "variant batch pos d_model"],
    tokens: Int[Tensor, "batch pos"],
) -> Float[Tensor, "variant batch"]:
    """Return the mean surprise at every token but the first, in nats.

    The vocabulary's logits are made for a few tokens at a time.
    """
    n_pos = tokens.shape[1]
    size = max(1, logits_at_once(recording) // len(tokens))
    surprise = torch.zeros(resid.shape[:2], device=resid.device)
    for variant, stream in enumerate(resid):
        for begin in range(0, n_pos - 1, size):
            span = slice(begin, min(begin + size, n_pos - 1))
            log_p = recording.logits(stream, positions=span).log_softmax(-1)
            surprise[variant] -= log_p.gather(-1, tokens[:, 1:][:, span, None])[..., 0].sum(-1)
    return surprise / (n_pos - 1)
