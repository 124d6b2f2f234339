"""Running a model without some layers at some tokens: three evaluations that must not be mistaken
for one another.

*Read-out*: every layer runs at every token, and the prediction is read from the stream behind the
token's last active layer (what the code of "Void in Language Models", arXiv 2505.14467, does).
*Bypass*: a token's stream passes the layers that it skips unchanged; they write no keys and values
for it, or do. *Masked stream*: a bypass whose voids are judged on the very stream that is being
masked, so that every layer must run before it is known to be skipped.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.linalg import vector_norm

from interp.replay import Recording
from interp.sweeps.lens import LOGITS_HELD
from interp.sweeps.voids import Active, key_of
from interp.tasks import Prompt

Streams = Float[Tensor, "variant batch pos d_model"]
_CHUNK_TOKENS = 2**12


def last_active(active: Active) -> Tensor:
    """Return [variant batch pos] how many layers there are up to the last that is not skipped: 0 if
    all are.
    """
    n_layers = active.shape[2]
    number = torch.arange(1, n_layers + 1, device=active.device)[:, None]
    return (active * number).amax(2)


def read_out(recording: Recording, active: Active) -> Streams:
    """Return the stream behind each token's last active layer; runs no block."""
    taps = torch.stack([recording.resid(tap) for tap in range(recording.n_layers + 1)])
    rows = torch.arange(recording.batch_size, device=active.device)[:, None]
    chosen: Streams = taps[
        last_active(active), rows, torch.arange(recording.n_pos, device=active.device)
    ]
    return chosen


def bypass(recording: Recording, active: Active, *, keys_kept: bool) -> Streams:
    """Return the last residuals where each token passes its inactive layers unchanged.

    With `keys_kept` a skipped layer still writes the token's keys and values, else no other token
    attends to it there.
    """
    n_pos = recording.n_pos
    rows = repeat(recording.resid(0), "batch pos d -> (variant batch) pos d", variant=len(active))
    oneself = torch.eye(n_pos, dtype=torch.bool, device=active.device)
    for layer in range(recording.n_layers):
        runs = rearrange(active[:, :, layer], "variant batch pos -> (variant batch) pos")
        is_plain = keys_kept or bool(runs.all())
        hidden = None if is_plain else ~runs[:, None, :] & ~oneself
        rows = torch.where(runs[..., None], recording.block(layer, rows, hidden=hidden), rows)
    streams: Streams = rearrange(
        rows, "(variant batch) pos d -> variant batch pos d", variant=len(active)
    )
    return streams


def masked_stream(
    recording: Recording, alphas: Sequence[float], *, first_position: bool = True
) -> Active:
    """Return what is active where every layer's change is measured on the stream that earlier voids
    have left.

    The range of earlier changes is that of all that the layers would have written, skipped or not.
    Keys are kept. Without `first_position`, position 0 skips nothing.
    """
    alpha = torch.tensor(alphas, device=recording.resid(0).device)
    found = [
        _masked(recording, part, first_position=first_position)
        for part in torch.split(alpha, _n_variants(recording))
    ]
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
        high, low = (
            (change, change)
            if layer == 0
            else (torch.maximum(high, change), torch.minimum(low, change))
        )
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
    """Return uniform numbers that depend on a prompt's id, the position and the seed alone: longer
    texts begin alike.
    """
    rows = [
        np.random.default_rng(key_of(prompt.id, seed=seed)).random((n_pos, n, n_layers))
        for prompt in prompts
    ]
    return torch.from_numpy(np.stack(rows)).float().permute(2, 0, 3, 1)


def lowest(scores: Float[Tensor, "#variant #batch layer #pos"], active: Active) -> Active:
    """Return masks that skip for every token as many layers as `active` does: those with the lowest
    scores.
    """
    n_skipped = (~active).sum(2, keepdim=True)
    rank = scores.expand(active.shape).argsort(dim=2, stable=True).argsort(dim=2, stable=True)
    return rank >= n_skipped


def at_rates(
    uniform: Float[Tensor, "draw batch layer pos"], rates: Float[Tensor, " layer"]
) -> Active:
    """Return masks that skip every layer at tokens drawn at random, as often as its rate says."""
    is_active: Bool[Tensor, "draw batch layer pos"] = uniform >= rates[:, None]
    return is_active


KINDS = ("voids", "random layers", "random tokens", "least influence")


def n_drawn(n_random: int) -> int:
    """Return how many masks `with_controls` makes of one: itself, two kinds of random ones, and one
    by block influence.
    """
    return 2 * n_random + 2


def with_controls(
    active: Bool[Tensor, "alpha batch layer pos"],
    uniform: Float[Tensor, "draw batch layer pos"],
    *,
    rates: Float[Tensor, "alpha layer"],
    influence: Float[Tensor, " layer"],
) -> Active:
    """Return for each alpha's mask the mask itself and its controls, alpha-major, in the order of
    `KINDS`.

    "random layers" skips as many layers of every token, drawn at random; "random tokens" skips
    every layer as often (`rates`), at tokens drawn at random; "least influence" skips as many
    layers of every token, those that turn the stream least (block influence). Half of the draws
    serve each random kind.
    """
    by_count, by_rate = uniform.chunk(2)
    masks = []
    for own, rate in zip(active, rates, strict=True):
        at_random = [lowest(scores[None], own[None]) for scores in by_count]
        masks += [
            own[None],
            *at_random,
            at_rates(by_rate, rate),
            lowest(influence[None, None, :, None], own[None]),
        ]
    return torch.cat(masks)


def over_draws(
    values: Float[Tensor, "variant batch"], *, n_random: int
) -> Float[Tensor, "batch alpha kind"]:
    """Return the mean over the draws of each kind."""
    by_alpha = rearrange(
        values, "(alpha drawn) batch -> batch alpha drawn", drawn=n_drawn(n_random)
    )
    kinds = torch.split(by_alpha, [1, n_random, n_random, 1], dim=-1)
    return torch.stack([kind.mean(-1) for kind in kinds], dim=-1)


def share_of_keys(recording: Recording, layer: int) -> float:
    """Return the share of a layer's weights, matrices only, that make keys and values."""
    keys, _ = recording.kv(layer)
    made = 2 * keys.shape[1] * keys.shape[3] * recording.resid(0).shape[-1]
    return made / sum(w.numel() for w in recording.blocks[layer].module.parameters() if w.ndim > 1)


# What is read off the streams that are left


def nats_per_token(
    recording: Recording, resid: Streams, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "variant batch"]:
    """Return the mean surprise at every token but the first, in nats; the vocabulary's logits for a
    few tokens at a time.
    """
    n_pos = tokens.shape[1]
    size = max(
        1, LOGITS_HELD // (recording.logits(resid[0], positions=[0]).shape[-1] * len(tokens))
    )
    surprise = torch.zeros(resid.shape[:2], device=resid.device)
    for variant, stream in enumerate(resid):
        for begin in range(0, n_pos - 1, size):
            at = slice(begin, min(begin + size, n_pos - 1))
            log_p = recording.logits(stream, positions=at).log_softmax(-1)
            surprise[variant] -= log_p.gather(-1, tokens[:, 1:][:, at, None])[..., 0].sum(-1)
    return surprise / (n_pos - 1)


def log_likelihood(
    recording: Recording,
    resid: Streams,
    answer: Int[Tensor, "batch answer_pos"],
) -> Float[Tensor, "variant batch"]:
    """Return the log-probability, in nats, of answers that the last positions predict."""
    n = answer.shape[1]
    log_p = torch.stack([recording.logits(stream[:, -n:]).log_softmax(-1) for stream in resid])
    of_tokens: Tensor = log_p.gather(-1, answer[None, ..., None].expand(len(resid), -1, -1, 1))[
        ..., 0
    ]
    return of_tokens.sum(-1)
