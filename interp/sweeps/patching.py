"""Residuals written over the output of a layer at some positions: only what comes behind them is
run.

With causal attention, positions before the first that is written to, and layers up to the one
written to, stay as they were: one token is run where the last position is written to. Source and
target may be different recordings, of any model of one width.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import AnalysisError, TaskError
from interp.models import Model
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sweeps.answers import require_answers
from interp.sweeps.tags import key_of
from interp.sweeps.texts import all_say
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

_CHUNK_TOKENS = 2**13  # with the keys and values that each variant reads
Positions = Int[Tensor, "batch span"]


def outputs_at(
    recording: Recording, positions: Positions
) -> Float[Tensor, "layer batch span d_model"]:
    """Return the clean output of every layer at each prompt's positions."""
    index = positions[..., None].expand(-1, -1, recording.resid(0).shape[-1])
    return torch.stack(
        [recording.resid(layer + 1).gather(1, index) for layer in range(recording.n_layers)]
    )


def ends_of_patched(
    recording: Recording,
    values: Mapping[int, Float[Tensor, "variant batch span d_model"]],
    *,
    positions: Positions,
) -> dict[int, Float[Tensor, "variant batch d_model"]]:
    """Return by layer the last residual at the last position where its output at `positions` is
    each variant's value.

    One sweep over the layers serves them all: a layer's variants join behind it. Raises
    AnalysisError for vectors of another width and for positions that do not exist.
    """
    _refuse_misfits(recording, values, positions)
    start = int(positions.min())
    at = (torch.arange(len(positions), device=positions.device)[:, None], positions - start)
    rows = recording.resid(0)[None, :, start:][:0]
    for layer in range(recording.n_layers):
        rows = _behind(recording, layer, rows, start)
        if layer in values:
            clean = recording.resid(layer + 1)[:, start:]
            joining = repeat(
                clean, "batch pos d_model -> variant batch pos d_model", variant=len(values[layer])
            ).clone()
            joining[:, *at] = values[layer]
            rows = torch.cat([rows, joining])
    layers = sorted(values)
    split = torch.split(rows[:, :, -1], [len(values[layer]) for layer in layers])
    return dict(zip(layers, split, strict=True))


def _refuse_misfits(
    recording: Recording, values: Mapping[int, Tensor], positions: Positions
) -> None:
    width = recording.resid(0).shape[-1]
    if wrong := [value.shape[-1] for value in values.values() if value.shape[-1] != width]:
        raise AnalysisError(
            f"vectors of width {wrong[0]} given; the residuals here have width {width}"
        )
    if bad := [pos for pos in positions.flatten().tolist() if not 0 <= pos < recording.n_pos]:
        raise AnalysisError(f"position {bad[0]} given; the last position is {recording.n_pos - 1}")


def _behind(recording: Recording, layer: int, rows: Tensor, start: int) -> Tensor:
    """Run a block on rows [variant batch pos-start d_model], a few variants at a time."""
    if not len(rows):
        return rows
    size = max(1, _CHUNK_TOKENS // (rows.shape[1] * recording.n_pos))
    done = []
    for chunk in torch.split(rows, size):
        flat = rearrange(chunk, "variant batch pos d_model -> (variant batch) pos d_model")
        flat = recording.tail(layer, flat, start=start) if start else recording.block(layer, flat)
        done.append(
            rearrange(
                flat, "(variant batch) pos d_model -> variant batch pos d_model", variant=len(chunk)
            )
        )
    return torch.cat(done)


def patching_steps(n_layers: int, *, variants: Sequence[int]) -> int:
    """Return how many blocks are run where `variants[layer]` values are written over the output of
    each layer.
    """
    return sum(n * (n_layers - 1 - layer) for layer, n in enumerate(variants))


def logits_at_the_end(recording: Recording, ends: Float[Tensor, "variant batch d_model"]) -> Tensor:
    """Return fp32 logits [variant batch d_vocab]."""
    flat = rearrange(ends, "variant batch d_model -> (variant batch) 1 d_model")
    logits = recording.logits(flat)
    by_variant: Tensor = rearrange(
        logits, "(variant batch) 1 d_vocab -> variant batch d_vocab", variant=len(ends)
    )
    return by_variant


def ranks(
    logits: Float[Tensor, "*rows batch d_vocab"], token: Int[Tensor, " batch"]
) -> Int[Tensor, "*rows batch"]:
    """Return how many tokens have a higher logit than each prompt's token (0: it is the first
    guess).
    """
    found: Tensor = (logits > of_token(logits, token)[..., None]).sum(-1)
    return found


def of_token(
    logits: Float[Tensor, "*rows batch d_vocab"], token: Int[Tensor, " batch"]
) -> Float[Tensor, "*rows batch"]:
    """Return the logit of each prompt's token."""
    index = token.reshape(*[1] * (logits.ndim - 2), -1, 1).expand(*logits.shape[:-1], 1)
    return logits.gather(-1, index)[..., 0]


Where = Literal["subject", "last"]


def span_of(shard: TokenBatch, position: Where, *, width: int = 1) -> Positions:
    """Return the positions of each prompt that end at its subject's last token, or at its last;
    `width` of them.
    """
    if position == "subject" and shard.subject is None:
        raise TaskError(
            f"{shard.why.get('subject') or shard.first_without('subject')}; position='last' needs"
            " none"
        )
    end = shard.last if position == "last" or shard.subject is None else shard.subject
    span: Tensor = end[:, None] - torch.arange(width - 1, -1, -1, device=end.device)
    return span


@torch.no_grad()
def known_hops(model: Model, task: Task, *, max_new_tokens: int | None = None) -> Tensors:
    """Return the keys of the prompts whose single hops were asked ("asked"), and of those where one
    is wrong ("unknown").

    Without `max_new_tokens` a hop is known if the answer's first token is the first guess; with it,
    if a text says it.
    """
    of = {
        hop.id: prompt.id
        for prompt in task.prompts
        for name, hop in task.related.get(prompt.id, {}).items()
        if name in ("first_hop", "second_hop")
    }
    hops = [
        hop
        for prompt in task.prompts
        for hop in task.related.get(prompt.id, {}).values()
        if hop.id in of
    ]
    unknown: set[str] = set()
    for shard in model.shards(Task(f"{task.name}, single hops", tuple(hops))) if hops else ():
        is_right = answers(model, model.tokenize(shard), max_new_tokens=max_new_tokens).tolist()
        unknown |= {of[hop.id] for hop, right in zip(shard, is_right, strict=True) if not right}
    keys = {"asked": sorted(set(of.values())), "unknown": sorted(unknown)}
    return {
        name: torch.tensor([key_of(prompt) for prompt in ids], dtype=torch.int64)
        for name, ids in keys.items()
    }


def answers(
    model: Model, shard: TokenBatch, *, max_new_tokens: int | None = None
) -> Bool[Tensor, " batch"]:
    """Return whether each prompt is answered: by the first guess, or in a text of so many tokens."""
    answer = require_answers(shard)[:, 0]
    if max_new_tokens is not None:
        return all_say([model.generate(shard, max_new_tokens=max_new_tokens).texts], shard.prompts)[
            0
        ]
    logits = model.logits(shard)[torch.arange(len(answer), device=answer.device), shard.last]
    return torch.eq(logits.argmax(-1), answer).cpu()


@torch.no_grad()
def donors(
    model: Model, task: Task, *, n: int, positions: Callable[[TokenBatch], Positions]
) -> Tensors:
    """Return the vectors [prompt layer span d_model] of a task's first prompts, and what they may
    stand for.

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
    return {
        "donor": torch.cat(vectors),
        "donor_tokens": torch.cat(tokens),
        "donor_keys": torch.tensor(keys),
    }


def of_another(shard: TokenBatch, prepared: Tensors) -> Float[Tensor, "layer batch span d_model"]:
    """Return a donor's vectors for each prompt: another prompt, of another bridge and answer where
    there is one.
    """
    chosen = []
    for prompt, tokens in zip(shard.prompts, _stands_for(shard).tolist(), strict=True):
        is_other = prepared["donor_keys"] != key_of(prompt.id)
        differs = is_other & ~torch.isin(prepared["donor_tokens"].cpu(), torch.tensor(tokens)).any(
            1
        )
        candidates = (differs if bool(differs.any()) else is_other).nonzero()[:, 0]
        chosen.append(int(candidates[key_of(prompt.id) % len(candidates)]))
    return prepared["donor"][chosen].transpose(0, 1)


def _stands_for(shard: TokenBatch) -> Int[Tensor, "batch token"]:
    """Return what a donor's vector may say: its answer, and its bridge where there is one."""
    answer = require_answers(shard)[:, 0]
    return torch.stack([answer, answer if shard.bridge is None else shard.bridge], dim=1)
