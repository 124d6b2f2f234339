"""What changed streams change in the prediction, without all of its logits at once.

Logits are made for a few tokens of all variants at a time, as in `interp.sweeps.lens`, and each
token's clean distribution serves all variants.
"""

from collections.abc import Iterator

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from interp.metrics import CHANGES, Change, Outcome, changes, distribution, outcomes
from interp.replay import Recording
from interp.replay.rows import Variants
from interp.shapes import Resid
from interp.sweeps.lens import LOGITS_HELD, logits_at_once
from interp.sweeps.patches import logits_at_the_end


def output_changes(
    recording: Recording, ends: Variants, clean: Resid
) -> dict[Change, Float[Tensor, "variant batch pos"]]:
    """Return how predictions from last residuals [variant batch pos d_model] differ from clean.

    `clean` are the clean last residuals at the same positions.
    """
    variants = rearrange(ends, "variant batch pos d_model -> variant (batch pos) d_model")
    tokens = rearrange(clean, "batch pos d_model -> 1 (batch pos) d_model")
    found = {name: torch.empty(variants.shape[:2], device=ends.device) for name in CHANGES}
    for some, here in _pieces(*variants.shape[:2], at_once=logits_at_once(recording)):
        before = distribution(recording.logits(tokens, positions=here))
        for name, value in changes(recording.logits(variants[some, here]), before).items():
            found[name][some, here] = value
    shape = "variant (batch pos) -> variant batch pos"
    return {name: rearrange(value, shape, batch=len(clean)) for name, value in found.items()}


def outcomes_at_the_end(
    recording: Recording,
    ends: Float[Tensor, "variant batch d_model"],
    answer: Int[Tensor, " batch"],
    wrong: Int[Tensor, " batch"] | None,
) -> dict[Outcome, Float[Tensor, "variant batch"]]:
    """Return the answer's outcomes for residuals at the last position, a few variants at a time."""
    size = max(1, logits_at_once(recording) // ends.shape[1])
    parts = [
        outcomes(logits_at_the_end(recording, some), answer, wrong)
        for some in torch.split(ends, size)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _pieces(n_variants: int, n_tokens: int, *, at_once: int) -> Iterator[tuple[slice, slice]]:
    """Yield variants and tokens whose logits are made together."""
    n_some = min(n_variants, at_once)
    n_here = max(1, at_once // n_some)
    for variant in range(0, n_variants, n_some):
        for token in range(0, n_tokens, n_here):
            yield slice(variant, variant + n_some), slice(token, token + n_here)


def held(n_variants: int, n_tokens: int, d_vocab: int) -> int:
    """Return how many numbers `output_changes` holds at once, for the cost of a shard."""
    at_once = max(d_vocab, min(n_variants * n_tokens * d_vocab, LOGITS_HELD))
    return 3 * at_once + 4 * max(1, at_once // (n_variants * d_vocab)) * d_vocab
