"""Residuals written over the output of a layer at some positions: only what comes behind them is run.

With causal attention, positions before the first that is written to, and layers up to the one written to, stay as they were:
one token is run where the last position is written to. Source and target may be different recordings, of any model of one
width.
"""

import hashlib
from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from interp.models import Model
from interp.replay import Recording
from interp.shapes import Resid
from interp.tasks import Task

_CHUNK_TOKENS = 2048
Positions = Int[Tensor, "batch span"]


def outputs_at(recording: Recording, positions: Positions) -> Float[Tensor, "layer batch span d_model"]:
    """Return the clean output of every layer at each prompt's positions."""
    index = positions[..., None].expand(-1, -1, recording.resid(0).shape[-1])
    return torch.stack([recording.resid(layer + 1).gather(1, index) for layer in range(recording.n_layers)])


def ends_of_patched(
    recording: Recording, values: Float[Tensor, "variant batch span d_model"], *, layer: int, positions: Positions
) -> Float[Tensor, "variant batch d_model"]:
    """Return the last residual at the last position where `layer`'s output at `positions` is each variant's value."""
    start = int(positions.min())
    size = max(1, _CHUNK_TOKENS // (values.shape[1] * (recording.n_pos - start)))
    return torch.cat([_ends(recording, chunk, layer, positions, start) for chunk in torch.split(values, size)])


def _ends(recording: Recording, values: Tensor, layer: int, positions: Tensor, start: int) -> Tensor:
    clean = recording.resid(layer + 1)[:, start:]
    rows = repeat(clean, "batch pos d_model -> variant batch pos d_model", variant=len(values)).clone()
    rows[:, torch.arange(len(positions), device=rows.device)[:, None], positions - start] = values
    rows = rearrange(rows, "variant batch pos d_model -> (variant batch) pos d_model")
    for later in range(layer + 1, recording.n_layers):
        rows = _from(recording, later, rows, start)
    ends: Tensor = rearrange(rows[:, -1], "(variant batch) d_model -> variant batch d_model", variant=len(values))
    return ends


def _from(recording: Recording, layer: int, rows: Resid, start: int) -> Resid:
    return recording.tail(layer, rows, start=start) if start else recording.block(layer, rows)


def patching_steps(n_layers: int, *, variants: Sequence[int]) -> int:
    """Return how many blocks are run where `variants[layer]` values are written over the output of each layer."""
    return sum(n * (n_layers - 1 - layer) for layer, n in enumerate(variants))


def logits_at_the_end(recording: Recording, ends: Float[Tensor, "variant batch d_model"]) -> Tensor:
    """Return fp32 logits [variant batch d_vocab]."""
    flat = rearrange(ends, "variant batch d_model -> (variant batch) 1 d_model")
    logits = recording.logits(flat)
    by_variant: Tensor = rearrange(logits, "(variant batch) 1 d_vocab -> variant batch d_vocab", variant=len(ends))
    return by_variant


def ranks(logits: Float[Tensor, "*rows batch d_vocab"], token: Int[Tensor, " batch"]) -> Int[Tensor, "*rows batch"]:
    """Return how many tokens have a higher logit than each prompt's token (0: it is the first guess)."""
    found: Tensor = (logits > of_token(logits, token)[..., None]).sum(-1)
    return found


def of_token(logits: Float[Tensor, "*rows batch d_vocab"], token: Int[Tensor, " batch"]) -> Float[Tensor, "*rows batch"]:
    """Return the logit of each prompt's token."""
    index = token.reshape(*[1] * (logits.ndim - 2), -1, 1).expand(*logits.shape[:-1], 1)
    return logits.gather(-1, index)[..., 0]


# What is known of prompts beyond a shard, by their ids: so that nothing depends on how prompts are grouped


def key_of(prompt_id: str) -> int:
    """Return a number that stands for a prompt's id in tensors; also a seed of its own."""
    return int.from_bytes(hashlib.blake2b(prompt_id.encode(), digest_size=8).digest(), "big") >> 1


@torch.no_grad()
def known_hops(model: Model, task: Task) -> Int[Tensor, " known"]:
    """Return the keys of the prompts both of whose single hops the model answers; all, where a task has no single hops."""
    unknown: set[str] = set()
    asked = {
        prompt.id: of
        for of, related in task.related.items()
        for name, prompt in related.items()
        if name in ("first_hop", "second_hop")
    }
    hops = [prompt for related in task.related.values() for prompt in related.values() if prompt.id in asked]
    for shard in model.shards(Task(f"{task.name}, single hops", tuple(hops))) if hops else ():
        batch = model.tokenize(shard)
        assert batch.answer is not None
        guesses = model.logits(batch)[torch.arange(len(shard)), batch.last].argmax(-1)
        wrong = torch.ne(guesses, batch.answer).tolist()
        unknown |= {asked[prompt.id] for prompt, is_wrong in zip(shard, wrong, strict=True) if is_wrong}
    return torch.tensor([key_of(prompt.id) for prompt in task.prompts if prompt.id not in unknown], dtype=torch.int64)
