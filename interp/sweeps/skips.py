"""Running a model without some layers at some tokens: three evaluations that must not be mistaken for one another.

*Read-out*: every layer runs at every token, and the prediction is read from the stream behind the token's last active
layer (what the code of "Void in Language Models", arXiv 2505.14467, does). *Bypass*: a token's stream passes the layers
that it skips unchanged; they write no keys and values for it, or do. *Masked stream*: a bypass whose voids are judged on
the very stream that is being masked, so that every layer must run before it is known to be skipped.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor
from torch.linalg import vector_norm

from interp.replay import Recording
from interp.sweeps.voids import Active, key_of
from interp.tasks import Prompt

_CHUNK_TOKENS = 2**12


def last_active(active: Active) -> Tensor:
    """Return [variant batch pos] how many layers there are up to the last that is not skipped: 0 if all are."""
    n_layers = active.shape[2]
    number = torch.arange(1, n_layers + 1, device=active.device)[:, None]
    return (active * number).amax(2)


def read_out(recording: Recording, active: Active, *, start: int = 0) -> Float[Tensor, "variant batch pos d_model"]:
    """Return the stream behind each token's last active layer, from position `start` on; runs no block."""
    taps = torch.stack([recording.resid(tap)[:, start:] for tap in range(recording.n_layers + 1)])
    at = last_active(active[..., start:])
    n_batch, n_pos = at.shape[1:]
    rows = torch.arange(n_batch, device=at.device)[:, None]
    return taps[at, rows, torch.arange(n_pos, device=at.device)]


def bypass(recording: Recording, active: Active, *, keys_kept: bool) -> Float[Tensor, "variant batch pos d_model"]:
    """Return the last residuals where each token passes its inactive layers unchanged.

    With `keys_kept` a skipped layer still writes the token's keys and values, else no other token attends to it there.
    """
    n_pos = recording.n_pos
    rows = repeat(recording.resid(0), "batch pos d -> (variant batch) pos d", variant=len(active))
    oneself = torch.eye(n_pos, dtype=torch.bool, device=active.device)
    for layer in range(recording.n_layers):
        runs = rearrange(active[:, :, layer], "variant batch pos -> (variant batch) pos")
        is_plain = keys_kept or bool(runs.all())
        hidden = None if is_plain else ~runs[:, None, :] & ~oneself
        rows = torch.where(runs[..., None], recording.block(layer, rows, hidden=hidden), rows)
    return rearrange(rows, "(variant batch) pos d -> variant batch pos d", variant=len(active))


def masked_stream(recording: Recording, alphas: Sequence[float], *, first_position: bool = True) -> Active:
    """Return what is active where every layer's change is measured on the stream that earlier voids have left.

    The range of earlier changes is that of all that the layers would have written, skipped or not. Keys are kept.
    Without `first_position`, position 0 skips nothing.
    """
    alpha = torch.tensor(alphas, device=recording.resid(0).device)
    found = [_masked(recording, part, first_position=first_position) for part in torch.split(alpha, _n_variants(recording))]
    return torch.cat(found)


def _masked(recording: Recording, alpha: Tensor, *, first_position: bool) -> Active:
    n = len(alpha)
    rows = repeat(recording.resid(0), "batch pos d -> (variant batch) pos d", variant=n)
    threshold = alpha.repeat_interleave(recording.batch_size)[:, None]
    high = low = spread = torch.zeros(rows.shape[:2], device=rows.device)
    actives = []
    for layer in range(recording.n_layers):
        after = recording.block(layer, rows)
        change = vector_norm(after.float(), dim=-1) - vector_norm(rows.float(), dim=-1)
        runs = change >= threshold * spread
        if not first_position:
            runs[:, 0] = True
        high, low = (change, change) if layer == 0 else (torch.maximum(high, change), torch.minimum(low, change))
        spread = high - low
        rows = torch.where(runs[..., None], after, rows)
        actives.append(rearrange(runs, "(variant batch) pos -> variant batch pos", variant=n))
    return torch.stack(actives, dim=2)


def chunks_of(recording: Recording, active: Active) -> Iterator[Active]:
    """Yield a few variants at a time, as many as run well together."""
    yield from torch.split(active, _n_variants(recording))


def _n_variants(recording: Recording) -> int:
    return max(1, _CHUNK_TOKENS // (recording.batch_size * recording.n_pos))


# What is skipped instead, as often


def drawn(
    prompts: Sequence[Prompt], *, n: int, n_layers: int, n_pos: int, seed: int
) -> Float[Tensor, "draw batch layer pos"]:
    """Return uniform numbers that depend on a prompt's id, the position and the seed alone: longer texts begin alike."""
    rows = [np.random.default_rng(key_of(prompt.id, seed=seed)).random((n_pos, n, n_layers)) for prompt in prompts]
    return torch.from_numpy(np.stack(rows)).float().permute(2, 0, 3, 1)


def lowest(scores: Float[Tensor, "#variant #batch layer #pos"], active: Active) -> Active:
    """Return masks that skip for every token as many layers as `active` does: those with the lowest scores."""
    n_skipped = (~active).sum(2, keepdim=True)
    rank = scores.expand(active.shape).argsort(dim=2, stable=True).argsort(dim=2, stable=True)
    return rank >= n_skipped


def at_rates(uniform: Float[Tensor, "draw batch layer pos"], rates: Float[Tensor, " layer"]) -> Active:
    """Return masks that skip every layer at tokens drawn at random, as often as its rate says."""
    is_active: Bool[Tensor, "draw batch layer pos"] = uniform >= rates[:, None]
    return is_active
