"""Two-hop prompts: which are compared, and where layers write their entities or others'."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import AnalysisError, TaskError
from interp.figures.words import counted
from interp.models import Model
from interp.models.turns import in_groups
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sites import Site
from interp.stats.groups import FEWEST, Groups
from interp.sweeps.answers import require_answers
from interp.sweeps.patches import ranks
from interp.sweeps.tags import keys_of
from interp.sweeps.texts import hold_answers
from interp.tasks import Task
from interp.tasks.batch import TokenBatch
from interp.tasks.prompts import key_of

RIGHT, WRONG = "right answers", "wrong answers"
PARTS = ("attention", "MLP", "stream")
HOPS, SHORTCUTS = ("first_hop", "second_hop"), ("entity_shortcut", "relation_shortcut")

Tokens = Int[Tensor, " batch"]


def require_hops(shard: TokenBatch) -> None:
    """Raise TaskError, naming a prompt, where an answer, a bridge or a subject is missing."""
    require_answers(shard)
    require_bridge(shard)
    require_subject(shard)


def require_bridge(shard: TokenBatch) -> Tokens:
    """Return the first token of each prompt's bridge; raise TaskError where one is missing."""
    if shard.bridge is None:
        raise TaskError(
            shard.why.get("bridge")
            or f"{shard.first_without('bridge')}; the answer of its first hop is needed"
        )
    return shard.bridge


def require_subject(shard: TokenBatch) -> Int[Tensor, " batch"]:
    """Return where each prompt's first-hop phrase ends; raise TaskError where one is missing."""
    if shard.subject is None:
        raise TaskError(
            shard.why.get("subject")
            or f"{shard.first_without('subject')}; its first-hop phrase is needed"
        )
    return shard.subject


# Which prompts are compared


@torch.no_grad()
def related_answered(
    model: Model, task: Task, names: Collection[str], *, max_new_tokens: int | None = None
) -> dict[str, dict[str, bool]]:
    """Return, by a prompt's id and the name, whether the model answers each related prompt.

    Without `max_new_tokens`, the model's first guess has to be the answer's first token; with it, a
    text of that many tokens has to hold the answer. A prompt that does not fit it counts as wrong.
    """
    asked = {  # by an id that is its own: a task may give the same to several
        f"{prompt.id}:{name}": (prompt.id, name, other)
        for prompt in task.prompts
        for name, other in task.related.get(prompt.id, {}).items()
        if name in names
    }
    answered: dict[str, dict[str, bool]] = {}
    for prompt_id, name, _ in asked.values():
        answered.setdefault(prompt_id, {})[name] = False
    if not asked:
        return answered
    others = tuple(replace(other, id=key) for key, (_, _, other) in asked.items())
    related = Task(f"{task.name}, related", others)
    batches = [model.tokenize(shard) for shard in model.shards(model.fit(related).task)]
    batches = [batch for batch in batches if batch.answer_tokens is not None]
    ask = partial(_is_answered, model, max_new_tokens=max_new_tokens)
    for batch, is_answered in zip(batches, in_groups(model, batches, ask), strict=True):
        for other, is_right in zip(batch.prompts, is_answered.tolist(), strict=True):
            prompt_id, name, _ = asked[other.id]
            answered[prompt_id][name] = is_right
    return answered


def _is_answered(
    model: Model, shard: TokenBatch, *, max_new_tokens: int | None
) -> Bool[Tensor, " batch"]:
    if max_new_tokens is not None:
        texts = model.generate(shard, max_new_tokens=max_new_tokens).texts
        return hold_answers([texts], shard.prompts)[0]
    answer = require_answers(shard)[:, 0]
    logits = model.logits(shard)[torch.arange(len(answer), device=answer.device), shard.last]
    return torch.eq(logits.argmax(-1), answer).cpu()


def comparable_prompts(
    model: Model, task: Task, *, known_only: bool, no_shortcuts: bool
) -> Int[Tensor, " kept"]:
    """Return the keys of the prompts that are compared.

    With `known_only`, the model answers their single hops; with `no_shortcuts`, none of their
    shortcuts. A hop or shortcut that a task does not have excludes nothing.
    """
    wanted = dict.fromkeys(HOPS, True) if known_only else {}
    wanted |= dict.fromkeys(SHORTCUTS, False) if no_shortcuts else {}
    excluded = {
        prompt_id
        for prompt_id, answered in related_answered(model, task, wanted).items()
        if any(is_answered != wanted[name] for name, is_answered in answered.items())
    }
    return _keys(prompt.id for prompt in task.prompts if prompt.id not in excluded)


def known_hops(model: Model, task: Task, *, max_new_tokens: int | None = None) -> Tensors:
    """Return the keys of prompts with both single hops ("asked"), and with a wrong one ("unknown").

    A prompt of which one hop was asked, and is right, is neither.
    """
    answered = related_answered(model, task, HOPS, max_new_tokens=max_new_tokens)
    asked = [prompt for prompt, by_name in answered.items() if len(by_name) == len(HOPS)]
    unknown = [prompt for prompt, by_name in answered.items() if not all(by_name.values())]
    return {"asked": _keys(sorted(asked)), "unknown": _keys(sorted(unknown))}


def hops_known(shard: TokenBatch, prepared: Tensors) -> Int[Tensor, " batch"]:
    """Return 1 where both single hops are known, 0 where one is not, -1 where not both were asked.

    `prepared` holds `known_hops`, or nothing of it where no hop was to be asked.
    """
    if "asked" not in prepared:
        return torch.full((len(shard.prompts),), -1, dtype=torch.int8)
    asked, unknown = (
        torch.isin(keys_of(shard.prompts), prepared[name]) for name in ("asked", "unknown")
    )
    return torch.where(unknown, 0, torch.where(asked, 1, -1)).to(torch.int8)


def _keys(prompt_ids: Iterable[str]) -> Int[Tensor, " prompt"]:
    return torch.tensor([key_of(prompt_id) for prompt_id in prompt_ids], dtype=torch.int64)


def right_and_compared(
    recording: Recording, shard: TokenBatch, kept: Int[Tensor, " kept"]
) -> Tensors:
    """Return whether each prompt's first guess is its answer, and whether it is compared."""
    is_right = torch.eq(last_logits(recording).argmax(-1), require_answers(shard)[:, 0]).cpu()
    return {"is_right": is_right, "is_compared": torch.isin(keys_of(shard.prompts), kept)}


def answer_groups(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return which compared prompts have right, and wrong, answers; empty groups are left out."""
    right, kept = arrays["is_right"], arrays["is_compared"]
    members = {RIGHT: right & kept, WRONG: ~right & kept}
    return {name: chosen for name, chosen in members.items() if chosen.any()}


def enough(members: dict[str, np.ndarray], prompt_groups: Groups | None) -> dict[str, np.ndarray]:
    """Return those members [prompt] that are of enough groups of prompts for an interval."""
    n_groups = {
        name: len(
            np.unique(np.flatnonzero(chosen) if prompt_groups is None else prompt_groups[chosen])
        )
        for name, chosen in members.items()
    }
    return {name: chosen for name, chosen in members.items() if n_groups[name] >= FEWEST}


def nothing_compared(arrays: dict[str, np.ndarray]) -> str:
    """Return the sentence for a task of which no prompts, or too few, can be compared."""
    if n := int(arrays["is_compared"].sum()):
        return (
            f"Too few to compare: {counted(n, 'prompt')}; {FEWEST} groups of prompts with right, or"
            " wrong, answers are needed."
        )
    return (
        f"Nothing to compare: each of {counted(len(arrays['is_compared']), 'prompt')} has a single"
        " hop that is not known, or a shortcut that works."
    )


def compared_frame(
    frames: Sequence[pd.DataFrame], *, keys: Sequence[str], types: dict[str, str]
) -> pd.DataFrame:
    """Return all rows with typed columns; one with `n_prompts` 0 if no prompts are compared."""
    whole = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame([{"n_prompts": 0}])
    return whole.reindex(columns=[*keys, *types]).astype(types)


def empty_figure(title: str) -> go.Figure:
    """Return a figure whose title says that no prompts are compared."""
    return go.Figure().update_layout(title=f"{title}: no prompts are compared")


# Another prompt's entities, to see what comes out by chance


def other_prompts_entities(model: Model, task: Task, *, n: int = 64) -> Tensors:
    """Return bridge and answer [prompt 2] of a task's first `n` prompts, and the prompts' keys.

    Raises AnalysisError where a task has but one prompt.
    """
    if len(task.prompts) < 2:
        raise AnalysisError(
            "1 prompt given; the control takes another prompt's entities: at least 2 are needed"
        )
    shards = [model.tokenize(shard) for shard in model.shards(task.of(task.prompts[:n]))]
    return {
        "other_entities": torch.cat([entities(shard) for shard in shards]).cpu(),
        "other_keys": torch.cat([keys_of(shard.prompts) for shard in shards]),
    }


def entities(shard: TokenBatch) -> Int[Tensor, "batch 2"]:
    """Return the first tokens of each prompt's bridge (without one, the answer) and answer."""
    answer = require_answers(shard)[:, 0]
    return torch.stack([answer if shard.bridge is None else shard.bridge, answer], dim=1)


def other_prompts(shard: TokenBatch, prepared: Tensors) -> list[int]:
    """Return for each prompt the row of `other_prompts_entities` that is its control.

    It is another prompt, whose entities are none of its own where there is such a prompt.
    """
    chosen = []
    for prompt, own in zip(shard.prompts, entities(shard).tolist(), strict=True):
        is_other = prepared["other_keys"] != key_of(prompt.id)
        differs = is_other & ~torch.isin(prepared["other_entities"], torch.tensor(own)).any(1)
        candidates = (differs if bool(differs.any()) else is_other).nonzero()[:, 0]
        chosen.append(int(candidates[key_of(prompt.id) % len(candidates)]))
    return chosen


def another_prompts_entities(shard: TokenBatch, prepared: Tensors) -> tuple[Tokens, Tokens]:
    """Return bridge and answer of each prompt's control, another prompt."""
    of_others = prepared["other_entities"][other_prompts(shard, prepared)]
    bridge, answer = of_others.to(shard.tokens.device).T
    return bridge, answer


# What is written


def last_logits(recording: Recording) -> Float[Tensor, "batch d_vocab"]:
    """Return the clean logits at the last position."""
    return recording.logits(recording.resid(recording.n_layers), positions=[-1])[:, 0]


def written_ranks(
    recording: Recording, positions: Int[Tensor, " batch"], tokens: Sequence[Tokens]
) -> Int[Tensor, "batch part layer token"]:
    """Return the ranks of each prompt's tokens where each of `PARTS` is unembedded alone.

    Parts: what attention, and what the MLP, adds at each prompt's position, and the stream behind
    the layer.
    """
    rows = torch.arange(len(positions), device=positions.device)
    written = []
    for part in PARTS:
        for layer in range(recording.n_layers):
            write = _write(recording, part, layer)
            logits = recording.logits(write[rows, positions][:, None])[:, 0]
            written.append(torch.stack([ranks(logits, token) for token in tokens], dim=-1))
    by_part: Tensor = rearrange(
        torch.stack(written), "(part layer) batch token -> batch part layer token", part=len(PARTS)
    )
    return by_part


def _write(recording: Recording, part: str, layer: int) -> Tensor:
    if part == "stream":
        return recording.resid(layer + 1)
    return recording.clean(Site("attn_out" if part == "attention" else "mlp_out", layer))


def first_layer(is_there: Bool[Tensor, "batch layer"]) -> Int[Tensor, " batch"]:
    """Return the first layer at which something is true of each prompt; -1 if it never is."""
    layer = is_there.int().argmax(1)
    return torch.where(is_there.any(1), layer, -1)
