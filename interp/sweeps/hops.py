"""Two-hop prompts that can be compared, the entities of others, and what a layer writes of a
prompt's own.
"""

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import AnalysisError, TaskError
from interp.models import Model
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sites import Site
from interp.sweeps.answers import require_answers
from interp.sweeps.patching import ranks
from interp.sweeps.tags import key_of, keys_of
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

RIGHT, WRONG = "right answers", "wrong answers"
PARTS = ("attention", "MLP", "stream")

Tokens = Int[Tensor, " batch"]


# The prompts that are compared


def require_hops(shard: TokenBatch) -> None:
    """Raise TaskError, naming a prompt, where an answer, a bridge or a subject is missing."""
    require_answers(shard)
    require_bridge(shard)
    require_subject(shard)


def require_bridge(shard: TokenBatch) -> Tokens:
    """Return the first token of each prompt's bridge; raise TaskError, naming the first prompt, if
    one is missing.
    """
    if shard.bridge is None:
        raise TaskError(
            shard.why.get("bridge")
            or f"{shard.first_without('bridge')}; the answer of its first hop is needed"
        )
    return shard.bridge


def require_subject(shard: TokenBatch) -> Int[Tensor, " batch"]:
    """Return where each prompt's first-hop phrase ends; raise TaskError, naming the first prompt,
    if one is missing.
    """
    if shard.subject is None:
        raise TaskError(
            shard.why.get("subject")
            or f"{shard.first_without('subject')}; its first-hop phrase is needed"
        )
    return shard.subject


@torch.no_grad()
def compared(
    model: Model, task: Task, *, known_only: bool, no_shortcuts: bool
) -> Int[Tensor, " kept"]:
    """Return the keys of the prompts both of whose single hops the model answers, and whose
    shortcuts it does not.

    A single hop or a shortcut that a task does not have excludes nothing; a hop that cannot be
    asked is not known.
    """
    wanted = dict.fromkeys(("first_hop", "second_hop"), True) if known_only else {}
    wanted |= dict.fromkeys(("entity_shortcut", "relation_shortcut"), False) if no_shortcuts else {}
    asked = {
        other.id: (prompt.id, wanted[name], other)
        for prompt in task.prompts
        for name, other in task.related.get(prompt.id, {}).items()
        if name in wanted
    }
    excluded: set[str] = set()
    others = (
        Task(f"{task.name}, related", tuple(other for _, _, other in asked.values()))
        if asked
        else None
    )
    usable = model.fit(others).task if others else None
    fed = {other.id for other in usable.prompts} if usable else set()
    excluded |= {of for key, (of, should, _) in asked.items() if should and key not in fed}
    for shard in model.shards(usable) if usable else ():
        batch = model.tokenize(shard)
        if batch.answer_tokens is None:
            excluded |= {asked[prompt.id][0] for prompt in shard if asked[prompt.id][1]}
            continue
        answers = batch.answer_tokens[:, 0]
        guesses = model.logits(batch)[
            torch.arange(len(shard), device=answers.device), batch.last
        ].argmax(-1)
        for prompt, is_answered in zip(shard, torch.eq(guesses, answers).tolist(), strict=True):
            of, should, _ = asked[prompt.id]
            excluded |= {of} if is_answered != should else set()
    return torch.tensor(
        [key_of(p.id) for p in task.prompts if p.id not in excluded], dtype=torch.int64
    )


def sorted_out(recording: Recording, shard: TokenBatch, kept: Int[Tensor, " kept"]) -> Tensors:
    """Return whether each prompt's first guess is its answer, and whether it is compared."""
    guesses = predictions(recording).argmax(-1)
    is_right = torch.eq(guesses, require_answers(shard)[:, 0]).cpu()
    return {"is_right": is_right, "is_compared": torch.isin(keys_of(shard), kept)}


def groups(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return which of the compared prompts have right and wrong answers; a group without prompts is
    left out.
    """
    right, kept = arrays["is_right"], arrays["is_compared"]
    found = {RIGHT: right & kept, WRONG: ~right & kept}
    return {name: chosen for name, chosen in found.items() if chosen.any()}


def counted(arrays: dict[str, np.ndarray]) -> str:
    """Say how many prompts are compared."""
    n = {name: int(chosen.sum()) for name, chosen in groups(arrays).items()}
    left_out = int((~arrays["is_compared"]).sum())
    if not n:
        return (
            f"Nothing to compare: of {left_out} prompts, none has known hops and shortcuts that do"
            " not work"
        )
    text = f"{n.get(RIGHT, 0)} prompts with right and {n.get(WRONG, 0)} with wrong answers"
    return text + (
        f"; {left_out} whose hops are unknown or whose shortcuts work are left out"
        if left_out
        else ""
    )


# Another prompt's entities, to see what comes out by chance


def strangers(model: Model, task: Task, *, n: int = 64) -> Tensors:
    """Return bridge and answer [prompt 2] of a task's first prompts, by their keys; raise
    AnalysisError for one prompt.
    """
    if len(task.prompts) < 2:
        raise AnalysisError(
            "1 prompt given; the control takes another prompt's bridge and answer: at least 2 are"
            " needed"
        )
    shards = [model.tokenize(shard) for shard in model.shards(Task(task.name, task.prompts[:n]))]
    return {
        "stranger": torch.cat(list(map(_own, shards))).cpu(),
        "stranger_keys": torch.cat(list(map(keys_of, shards))),
    }


def _own(shard: TokenBatch) -> Int[Tensor, "batch 2"]:
    return torch.stack([require_bridge(shard), require_answers(shard)[:, 0]], dim=1)


def of_a_stranger(shard: TokenBatch, prepared: Tensors) -> tuple[Tokens, Tokens]:
    """Return bridge and answer of another prompt for each, neither of them one of its own where
    there is such a prompt.
    """
    chosen = []
    for prompt, own in zip(shard.prompts, _own(shard).tolist(), strict=True):
        is_other = prepared["stranger_keys"] != key_of(prompt.id)
        differs = is_other & ~torch.isin(prepared["stranger"], torch.tensor(own)).any(1)
        candidates = (differs if bool(differs.any()) else is_other).nonzero()[:, 0]
        chosen.append(int(candidates[key_of(prompt.id) % len(candidates)]))
    bridge, answer = prepared["stranger"][chosen].to(shard.tokens.device).T
    return bridge, answer


# What is written


def predictions(recording: Recording) -> Float[Tensor, "batch d_vocab"]:
    """Return the clean logits at the last position."""
    return recording.logits(recording.resid(recording.n_layers), positions=[-1])[:, 0]


def written_ranks(
    recording: Recording, positions: Int[Tensor, " batch"], tokens: Sequence[Tokens]
) -> Int[Tensor, "batch part layer token"]:
    """Return how many tokens stand above each prompt's tokens where each of `PARTS` is unembedded
    alone.

    Parts: what attention, and what the MLP, adds at each prompt's position, and the stream behind
    the layer.
    """
    rows = torch.arange(len(positions), device=positions.device)
    found = []
    for part in PARTS:
        for layer in range(recording.n_layers):
            write = _write(recording, part, layer)
            logits = recording.logits(write[rows, positions][:, None])[:, 0]
            found.append(torch.stack([ranks(logits, token) for token in tokens], dim=-1))
    by_part: Tensor = rearrange(
        torch.stack(found), "(part layer) batch token -> batch part layer token", part=len(PARTS)
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
