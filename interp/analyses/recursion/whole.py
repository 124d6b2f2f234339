"""What whole models with shared layers predict.

Every loop's weights are made once: all prompts are run before the first shard is measured, and a
shard looks up its own.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.analyses.recursion.low_rank import LoopWeights, RelaxedLoop
from interp.metrics import changes, distribution, outcomes
from interp.models import Model, temporary_weights
from interp.models.loops import UNTRAINED, Loop
from interp.models.untrained import twins_of
from interp.shapes import Tensors
from interp.tasks import Task
from interp.tasks.batch import TokenBatch
from interp.tasks.prompts import key_of

OUTCOMES = ("kl", "same", "log_prob", "accuracy")
JUDGED = 4  # prompts that untrained twins are asked
STATED, TOKENS = 64, 512  # prompts, and tokens of those, on which layers' outputs are compared
Logits = Float[Tensor, "*variant batch d_vocab"]


def read(logits: Logits, clean: Tensor, answer: Tensor | None) -> dict[str, Tensor]:
    """Return `OUTCOMES` [*variant batch] of logits at the last position; NaN without an answer.

    KL(clean ‖ changed) in nats, whether the first token stays, the answer's log-probability in nats
    and whether it comes first.
    """
    kl = changes(logits, distribution(clean))["kl"]
    read: dict[str, Tensor] = {"kl": kl, "same": (logits.argmax(-1) == clean.argmax(-1)).float()}
    of_answer = {} if answer is None else {str(k): v for k, v in outcomes(logits, answer).items()}
    return read | {name: of_answer.get(name, kl * torch.nan) for name in OUTCOMES[2:]}


def stacked(read: Mapping[str, Tensor]) -> Float[Tensor, "*variant batch outcome"]:
    """Return `OUTCOMES` along the last axis, on the CPU."""
    return torch.stack([read[name].float() for name in OUTCOMES], dim=-1).cpu()


def by_loop(variants: Sequence[RelaxedLoop]) -> dict[Loop, list[int]]:
    """Return the numbers of the variants of every loop."""
    loops: dict[Loop, list[int]] = {}
    for i, variant in enumerate(variants):
        loops.setdefault(variant.loop, []).append(i)
    return loops


def run_loops(
    model: Model,
    batches: Sequence[TokenBatch],
    variants: Sequence[RelaxedLoop],
    *,
    twin: Model | None = None,
    shares_vectors: bool = False,
) -> Tensors:
    """Return "loops" [prompt variant outcome], their "error" [variant] and "needed" ranks.

    "needed" is [loop layer matrix energy]. `twin` has the layers of untrained loops. Besides the
    model, one copy of its blocks is held, and the factors of low-rank terms.
    """
    clean = [_last(model, batch) for batch in batches]
    n = sum(len(batch.prompts) for batch in batches)
    found = torch.zeros(n, len(variants), len(OUTCOMES))
    error, needed = torch.zeros(len(variants)), []
    for loop, chosen in by_loop(variants).items():
        source = twin if loop.name == UNTRAINED else None
        sizes = [variants[i].size for i in chosen]
        weights = LoopWeights(model, loop, sizes, source=source, shares_vectors=shares_vectors)
        needed.append(weights.ranks_for_energies())
        for i, size in zip(chosen, sizes, strict=True):
            error[i] = weights.error(size)
            found[:, i] = _outcomes(model, batches, clean, weights.at(size))
        del weights  # before the next ones are made
    return {"loops": found, "error": error, "needed": torch.stack(needed)}


def _outcomes(
    model: Model, batches: Sequence[TokenBatch], clean: Sequence[Tensor], weights: Tensors
) -> Float[Tensor, "prompt outcome"]:
    with temporary_weights(model, weights):
        rows = [
            stacked(read(_last(model, batch), before, batch.answer))
            for batch, before in zip(batches, clean, strict=True)
        ]
    return torch.cat(rows)


def _last(model: Model, batch: TokenBatch) -> Float[Tensor, "batch d_vocab"]:
    logits: Tensor = model.forward(batch, positions=slice(-1, None)).logits
    return logits[:, 0].float()


def _few(task: Task, n: int) -> Task:
    """Return a few prompts, chosen by their ids."""
    return task.of(sorted(task.prompts, key=lambda prompt: key_of(prompt.id))[:n])


def gaps_of_twins(
    model: Model, task: Task, pair: Iterable[RelaxedLoop], *, seed: int, shares_vectors: bool
) -> Float[Tensor, " twin"]:
    """Return the KL of one variant less that of another, a mean over prompts, in every twin."""
    variants, few, gaps = [*pair], _few(task, JUDGED), []
    for twin in twins_of(model, seed=seed):
        batches = [twin.tokenize(shard) for shard in twin.shards(few)]
        loops = run_loops(twin, batches, variants, shares_vectors=shares_vectors)["loops"]
        kl = loops[..., OUTCOMES.index("kl")].mean(0)
        gaps.append(kl[0] - kl[1])
    return torch.stack(gaps) if gaps else torch.zeros(0)


def states_of(
    model: Model, task: Task, layers: Sequence[int]
) -> dict[int, Float[Tensor, "token d_model"]]:
    """Return what layers return at up to 512 tokens of up to 64 prompts, chosen by their ids.

    First positions, which many models use as a sink, are left out.
    """
    states: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for shard in model.shards(_few(task, STATED)) if layers else ():
        recording = model.record(model.tokenize(shard))
        for layer in layers:
            states[layer].append(recording.resid(layer + 1)[:, 1:].flatten(0, 1))
    whole = {layer: torch.cat(each) for layer, each in states.items()}
    n = len(next(iter(whole.values()), ()))
    chosen = torch.linspace(0, max(n - 1, 0), min(n, TOKENS)).round().long()
    return {layer: each[chosen.to(each.device)].cpu() for layer, each in whole.items()}
