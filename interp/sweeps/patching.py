"""Residuals written over the output of a layer at some positions: only what comes behind them is run.

With causal attention, positions before the first that is written to, and layers up to the one written to, stay as they were:
one token is run where the last position is written to. Source and target may be different recordings, of any model of one
width.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import AnalysisError, TaskError
from interp.models import Model
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sweeps.answers import require_answers
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

_CHUNK_TOKENS = 2**13  # with the keys and values that each variant reads
Positions = Int[Tensor, "batch span"]


def outputs_at(recording: Recording, positions: Positions) -> Float[Tensor, "layer batch span d_model"]:
    """Return the clean output of every layer at each prompt's positions."""
    index = positions[..., None].expand(-1, -1, recording.resid(0).shape[-1])
    return torch.stack([recording.resid(layer + 1).gather(1, index) for layer in range(recording.n_layers)])


def ends_of_patched(
    recording: Recording, values: Mapping[int, Float[Tensor, "variant batch span d_model"]], *, positions: Positions
) -> dict[int, Float[Tensor, "variant batch d_model"]]:
    """Return by layer the last residual at the last position where its output at `positions` is each variant's value.

    One sweep over the layers serves them all: a layer's variants join behind it.
    """
    start = int(positions.min())
    at = (torch.arange(len(positions), device=positions.device)[:, None], positions - start)
    rows = recording.resid(0)[None, :, start:][:0]
    for layer in range(recording.n_layers):
        rows = _behind(recording, layer, rows, start)
        if layer in values:
            clean = recording.resid(layer + 1)[:, start:]
            joining = repeat(clean, "batch pos d_model -> variant batch pos d_model", variant=len(values[layer])).clone()
            joining[:, *at] = values[layer]
            rows = torch.cat([rows, joining])
    layers = sorted(values)
    split = torch.split(rows[:, :, -1], [len(values[layer]) for layer in layers])
    return dict(zip(layers, split, strict=True))


def _behind(recording: Recording, layer: int, rows: Tensor, start: int) -> Tensor:
    """Run a block on rows [variant batch pos-start d_model], a few variants at a time."""
    if not len(rows):
        return rows
    size = max(1, _CHUNK_TOKENS // (rows.shape[1] * recording.n_pos))
    done = []
    for chunk in torch.split(rows, size):
        flat = rearrange(chunk, "variant batch pos d_model -> (variant batch) pos d_model")
        flat = recording.tail(layer, flat, start=start) if start else recording.block(layer, flat)
        done.append(rearrange(flat, "(variant batch) pos d_model -> variant batch pos d_model", variant=len(chunk)))
    return torch.cat(done)


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


Where = Literal["subject", "last"]


def span_of(shard: TokenBatch, position: Where, *, width: int = 1) -> Positions:
    """Return the positions of each prompt that end at its subject's last token, or at its last; `width` of them."""
    if position == "subject" and shard.subject is None:
        which = next(prompt.id for prompt in shard.prompts if prompt.subject is None)
        raise TaskError(f"prompt {which!r} has no subject; position='last' needs none")
    end = shard.last if position == "last" or shard.subject is None else shard.subject
    span: Tensor = end[:, None] - torch.arange(width - 1, -1, -1, device=end.device)
    return span


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


@torch.no_grad()
def donors(model: Model, task: Task, *, n: int, positions: Callable[[TokenBatch], Positions]) -> Tensors:
    """Return the vectors [prompt layer span d_model] of a task's first prompts, and what they may stand for.

    Raises AnalysisError if there is but one prompt.
    """
    if len(task.prompts) < 2:
        raise AnalysisError("1 prompt given; the control 'example' needs at least 2")
    vectors, tokens, keys = [], [], []
    for prompts in model.shards(Task(task.name, task.prompts[:n])):
        shard = model.tokenize(prompts)
        vectors.append(outputs_at(model.record(shard), positions(shard)).transpose(0, 1))
        tokens.append(_stands_for(shard))
        keys += [key_of(prompt.id) for prompt in prompts]
    return {"donor": torch.cat(vectors), "donor_tokens": torch.cat(tokens), "donor_keys": torch.tensor(keys)}


def of_another(shard: TokenBatch, prepared: Tensors) -> Float[Tensor, "layer batch span d_model"]:
    """Return a donor's vectors for each prompt: another prompt, of another bridge and answer where there is one."""
    chosen = []
    for prompt, tokens in zip(shard.prompts, _stands_for(shard).tolist(), strict=True):
        is_other = prepared["donor_keys"] != key_of(prompt.id)
        differs = is_other & ~torch.isin(prepared["donor_tokens"].cpu(), torch.tensor(tokens)).any(1)
        candidates = (differs if bool(differs.any()) else is_other).nonzero()[:, 0]
        chosen.append(int(candidates[key_of(prompt.id) % len(candidates)]))
    return prepared["donor"][chosen].transpose(0, 1)


def _stands_for(shard: TokenBatch) -> Int[Tensor, "batch token"]:
    """Return what a donor's vector may say: its answer, and its bridge where there is one."""
    answer = require_answers(shard)[:, 0]
    return torch.stack([answer, answer if shard.bridge is None else shard.bridge], dim=1)
