"""Many orders of the layers run together, each as a walk that asks for one block at a time.

A walk starts where its variant leaves the clean pass, and reads from the clean pass what that has
already computed.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.analyses.layer_order.variants import Variant
from interp.metrics import changes, distribution, outcomes
from interp.replay import Recording
from interp.sweeps.outputs import read_at_the_end
from interp.sweeps.patches import logits_at_the_end
from interp.sweeps.walks import Walk, along, ends_together, on_batch


def ends_of(
    recording: Recording, variants: Sequence[Variant]
) -> Float[Tensor, "variant batch d_model"]:
    """Return the last residual at the last position of every variant.

    As many variants as a block runs at once are in memory together.
    """
    n_layers, size = recording.n_layers, max(1, recording.variants_at_once())
    order = sorted(range(len(variants)), key=lambda i: variants[i].start(n_layers))
    ends = torch.stack([recording.resid(n_layers)[:, -1]] * len(variants))
    for first in range(0, len(order), size):
        some = order[first : first + size]
        walks = [walk(recording, variants[i]) for i in some]
        streams = ends_together(walks, on_batch(recording))
        for i, stream in zip(some, streams, strict=True):
            ends[i] = stream[:, -1]
    return ends


def walk(recording: Recording, variant: Variant) -> Walk:
    """Run one variant to the end of the stream [batch pos d_model], block by block."""
    n_layers = recording.n_layers
    path, start = variant.path(n_layers), variant.start(n_layers)
    if path is not None:
        return (yield from along(path[start:], recording.resid(start)))
    match variant.operation:
        case "parallel_sum":
            stream = yield from _sum(recording, variant)
        case "damped_loop":
            stream = yield from _damped(recording, variant)
        case _:  # parallel_mean, looped_parallel
            stream = yield from _mean(recording, variant)
    return (yield from along(range(variant.layers[-1] + 1, n_layers), stream))


def _sum(recording: Recording, variant: Variant) -> Walk:
    """All layers read the same stream; what they write is added up in fp32."""
    first, *others = variant.layers
    stream, after = recording.resid(first), recording.resid(first + 1)
    total = after.float()
    for layer in others:
        output = yield layer, stream
        total = total + (output.float() - stream.float())
    return total.to(after.dtype)


def _mean(recording: Recording, variant: Variant) -> Walk:
    """All layers read the same stream, and the mean of their outputs is read in the next round."""
    first, *_ = variant.layers
    stream = recording.resid(first)
    for i in range(variant.rounds):
        total = torch.zeros_like(stream, dtype=torch.float32)
        for layer in variant.layers:
            is_known = i == 0 and layer == first
            output = recording.resid(first + 1) if is_known else (yield layer, stream)
            total = total + output.float()
        stream = (total / len(variant.layers)).to(stream.dtype)
    return stream


def _damped(recording: Recording, variant: Variant) -> Walk:
    """In every round, the stream moves a part of the way to the window's output."""
    stream, last = recording.resid(variant.layers[0]), variant.layers[-1]
    for i in range(variant.rounds):
        output = recording.resid(last + 1)
        if i:
            output = yield from along(variant.layers, stream)
        stream = torch.lerp(stream.float(), output.float(), 1 / variant.rounds).to(stream.dtype)
    return stream


def distinct(variants: Sequence[Variant], n_layers: int) -> list[Variant]:
    """Return variants without those that run the same as an earlier one."""
    by_key = {variant.key(n_layers): variant for variant in reversed(variants)}
    return [*reversed(by_key.values())]


def changes_of(
    recording: Recording, variants: Sequence[Variant], answer: Int[Tensor, " batch"] | None
) -> tuple[Float[Tensor, "batch variant measure"], Float[Tensor, "batch outcome"]]:
    """Return what variants change in the prediction, and the clean outcomes.

    The measures are KL(clean‖variant) in nats, whether the clean first token stays the first, the
    log-probability of the answer's first token in nats, and whether that is the first; the outcomes
    are the last two. NaN without answers.
    """
    n_layers = recording.n_layers
    run = distinct(variants, n_layers)
    clean = logits_at_the_end(recording, recording.resid(n_layers)[None, :, -1])[0]
    reference, first = distribution(clean), clean.argmax(-1)

    def read(logits: Float[Tensor, "variant batch d_vocab"]) -> dict[str, Tensor]:
        kept = outcomes(logits, first)["accuracy"]
        return {"kl": changes(logits, reference)["kl"], "kept": kept, **_of_answer(logits, answer)}

    each = read_at_the_end(recording, ends_of(recording, run), read)
    place = {variant.key(n_layers): i for i, variant in enumerate(run)}
    index = [place[variant.key(n_layers)] for variant in variants]
    by_prompt = torch.stack([*each.values()], dim=-1)[index].transpose(0, 1)
    of_clean = torch.stack([*_of_answer(clean[None], answer).values()], dim=-1)[0]
    return by_prompt, of_clean


def _of_answer(logits: Tensor, answer: Tensor | None) -> dict[str, Tensor]:
    if answer is None:
        nothing = torch.full(logits.shape[:-1], torch.nan, device=logits.device)
        return {"log_prob": nothing, "accuracy": nothing}
    of_answer = outcomes(logits, answer)
    return {name: of_answer[name] for name in ("log_prob", "accuracy")}
