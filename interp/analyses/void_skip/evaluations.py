"""Running a model without some layers at some tokens, in ways that must not be confused.

*Read-out*: every layer runs at every token, and the prediction is read from the stream after the
token's last active layer (what the code of "Void in Language Models", arXiv 2505.14467, does).
*Bypass*: a token's stream passes the layers that it skips unchanged; they write no keys and values
for it, or do. *Masked stream*: a bypass whose voids are judged on the very stream that is being
masked, so that every layer must run before it is known to be skipped.
"""

from collections.abc import Iterator, Sequence

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm

from interp.replay import Recording
from interp.sweeps.voids import Active, active_layers, norms_of

Streams = Float[Tensor, "variant batch pos d_model"]
FULL, MASKED = "full model", "masked stream"
EVALUATIONS = ("read-out", MASKED, "two-pass", "two-pass, keys kept")


def active_for(
    recording: Recording, evaluation: str, alphas: Sequence[float], *, begin: int = 0
) -> Active:
    """Return the layers that are not void by an evaluation; the variants are `alphas`.

    Voids are those of the clean pass, or of the masked stream. Positions before
    `begin` skip nothing.
    """
    if evaluation == MASKED:
        return masked_stream(recording, alphas, begin=begin)
    active = active_layers(norms_of(recording), alphas)
    active[..., :begin] = True
    return active


def streams_of(recording: Recording, evaluation: str, active: Active) -> Iterator[Streams]:
    """Yield the streams that the unembedding reads, a few variants at a time."""
    if evaluation == FULL:
        yield recording.resid(recording.n_layers)[None]
        return
    for few in torch.split(active, recording.variants_at_once()):
        if evaluation == "read-out":
            yield read_out(recording, few)
        else:
            yield bypass(recording, few, keys_kept=evaluation != "two-pass")


def last_active(active: Active) -> Tensor:
    """Return the tap [variant batch pos] after the last layer that runs; 0 if none does."""
    behind = torch.arange(1, active.shape[2] + 1, device=active.device)[:, None]
    return (active * behind).amax(2)


def read_out(recording: Recording, active: Active) -> Streams:
    """Return the stream after each token's last active layer; runs no block."""
    taps = torch.stack([recording.resid(tap) for tap in range(recording.n_layers + 1)])
    rows = torch.arange(recording.batch_size, device=active.device)[:, None]
    positions = torch.arange(recording.n_pos, device=active.device)
    chosen: Streams = taps[last_active(active), rows, positions]
    return chosen


def bypass(recording: Recording, active: Active, *, keys_kept: bool) -> Streams:
    """Return the last residuals where each token bypasses its inactive layers.

    With `keys_kept` a skipped layer still writes the token's keys and values; otherwise no other
    token attends to it there.
    """
    n = len(active)
    rows: Streams = repeat(recording.resid(0), "batch pos d -> variant batch pos d", variant=n)
    oneself = torch.eye(recording.n_pos, dtype=torch.bool, device=active.device)
    for layer in range(recording.n_layers):
        runs = active[:, :, layer]
        is_plain = keys_kept or bool(runs.all())
        hidden = None if is_plain else ~runs[:, :, None] & ~oneself
        rows = torch.where(runs[..., None], recording.run(layer, rows, hidden=hidden), rows)
    return rows


def masked_stream(recording: Recording, alphas: Sequence[float], *, begin: int = 0) -> Active:
    """Return what is active if voids are judged on the stream that earlier voids have left.

    The range of earlier changes covers all that the layers would have written, skipped or not. Keys
    are kept. Positions before `begin` skip nothing.
    """
    alpha = torch.tensor(alphas, device=recording.resid(0).device)
    rows = repeat(recording.resid(0), "batch pos d -> variant batch pos d", variant=len(alpha))
    threshold = alpha[:, None, None]
    high = low = torch.zeros(rows.shape[:3], device=rows.device)
    actives = []
    for layer in range(recording.n_layers):
        after = recording.run(layer, rows)
        change = vector_norm(after.float(), dim=-1) - vector_norm(rows.float(), dim=-1)
        runs = change >= threshold * (high - low)
        runs[..., :begin] = True
        high = torch.maximum(high, change) if layer else change
        low = torch.minimum(low, change) if layer else change
        rows = torch.where(runs[..., None], after, rows)
        actives.append(runs)
    return torch.stack(actives, dim=2)
