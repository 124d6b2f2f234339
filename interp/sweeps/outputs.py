"""What changed streams change in the prediction, without all of its logits at once.

Logits are made for a few tokens of all variants at a time, as in `interp.sweeps.lens`. The clean
stream is a row among them, so that rounding is the same; its distribution serves all variants.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor

from interp.metrics import CHANGES, Change, changes, distribution
from interp.replay import Recording
from interp.replay.rows import Variants
from interp.shapes import Resid
from interp.sweeps.lens import LOGITS_HELD, logits_at_once
from interp.sweeps.patches import logits_at_the_end

K = TypeVar("K", bound=str)


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
        rows = torch.cat([tokens[:, here], variants[some, here]])
        logits = recording.logits(rows)
        for name, value in changes(logits[1:], distribution(logits[0])).items():
            found[name][some, here] = value
    shape = "variant (batch pos) -> variant batch pos"
    return {name: rearrange(value, shape, batch=len(clean)) for name, value in found.items()}


def read_at_the_end(
    recording: Recording,
    ends: Float[Tensor, "variant batch d_model"],
    read: Callable[[Float[Tensor, "variant batch d_vocab"]], Mapping[K, Tensor]],
) -> dict[K, Shaped[Tensor, "variant batch"]]:
    """Return what is read from logits of residuals at the last position, a few variants at a time.

    `read` returns tensors [variant batch] by name.
    """
    size = max(1, logits_at_once(recording) // ends.shape[1])
    parts = [read(logits_at_the_end(recording, some)) for some in torch.split(ends, size)]
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
    clean = max(1, at_once // (n_variants * d_vocab)) * d_vocab
    return 3 * (at_once + clean)


def held_at_the_end(n_variants: int, batch: int, d_vocab: int) -> int:
    """Return how many numbers `read_at_the_end` holds at once, of logits and softmax."""
    return 3 * max(batch * d_vocab, min(n_variants * batch * d_vocab, LOGITS_HELD))
