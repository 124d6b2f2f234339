"""Back-patches and their controls, each with as many pairs of layers: what is written where.

"own" are a prompt's own vectors: later over earlier layers, and as controls each over itself
("identity") and earlier over later ("forward"). Other controls also write later over earlier
layers: "example" (another prompt's vectors), "random" (random directions with the norm of what they
replace), "position" (the prompt's own, at a random other place) and "rescaled" (the prompt's own,
with the norm of what they replace).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torch.linalg import vector_norm

from interp.models import Model
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sweeps.patches import Spans, outputs_at, patching_steps
from interp.sweeps.two_hop import other_prompts, other_prompts_entities
from interp.tasks import Task
from interp.tasks.batch import TokenBatch
from interp.tasks.prompts import key_of

Control = Literal["identity", "forward", "example", "random", "position", "rescaled"]
CONTROLS: tuple[Control, ...] = get_args(Control)


@dataclass(frozen=True)
class Tries:
    """One kind of patch: each target layer's source layers, and the values that they give."""

    kind: str
    sources: Mapping[int, list[int]]
    values: Mapping[int, Float[Tensor, "source batch span d_model"]]
    positions: Spans

    def grid(
        self, by_target: Mapping[int, Num[Tensor, "source batch"]], *, n_layers: int
    ) -> Num[Tensor, "batch layer layer"]:
        """Return what each pair does [batch source target]; 0 where untried, or -1 for integers."""
        some = next(iter(by_target.values()))
        shape, empty = (some.shape[1], n_layers, n_layers), 0 if some.is_floating_point() else -1
        grid = torch.full(shape, empty, dtype=some.dtype)
        for target, values in by_target.items():
            grid[:, self.sources[target], target] = values.T.cpu()
        return grid


def n_pairs(n_layers: int) -> int:
    """Return how many pairs of a later and an earlier layer there are."""
    return n_layers * (n_layers - 1) // 2


def kinds_of(controls: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds of patch: those that share the prompt's own vectors are one."""
    return ("own", *[control for control in controls if control not in ("identity", "forward")])


def sources_of(kind: str, target: int, *, n_layers: int, controls: Sequence[str]) -> list[int]:
    """Return a target's source layers: later ones; of own vectors also earlier ones or its own."""
    also = (
        {"forward": range(target), "identity": range(target, target + 1)} if kind == "own" else {}
    )
    return [
        *range(target + 1, n_layers),
        *[source for name, more in also.items() if name in controls for source in more],
    ]


def work_of(
    shard: TokenBatch, positions: Spans, *, n_layers: int, controls: Sequence[str], seed: int
) -> tuple[int, int]:
    """Return how many blocks of one position each prompt runs, and how many tries there are."""
    steps, n_tries = 0, 0
    for kind in kinds_of(controls):
        others = other_positions(shard, positions, seed=seed)
        start = int((others if kind == "position" else positions).min())
        asked = [
            len(sources_of(kind, target, n_layers=n_layers, controls=controls))
            for target in range(n_layers)
        ]
        steps += patching_steps(n_layers, variants=asked) * (shard.tokens.shape[1] - start)
        n_tries += sum(asked)
    return steps, n_tries


def other_positions(shard: TokenBatch, positions: Spans, *, seed: int) -> Spans:
    """Return a random span of each prompt that ends elsewhere; without position 0 if possible."""
    n_pos, span = shard.tokens.shape[1], positions.shape[1]
    chosen = []
    for prompt, end in zip(shard.prompts, positions[:, -1].tolist(), strict=True):
        ends = [e for e in range(span, n_pos) if e != end] or [span - 1]
        chosen.append(ends[(key_of(prompt.id) + seed) % len(ends)])
    ends_at: Int[Tensor, " batch"] = torch.tensor(chosen, device=positions.device)
    return ends_at[:, None] - torch.arange(span - 1, -1, -1, device=positions.device)


def donors(
    model: Model, task: Task, *, n: int, positions: Callable[[TokenBatch], Spans]
) -> Tensors:
    """Return a task's first prompts: vectors [prompt layer span d_model], keys and entities.

    Raises AnalysisError if there is only one prompt.
    """
    shards = [model.tokenize(prompts) for prompts in model.shards(task.of(task.prompts[:n]))]
    with torch.no_grad():
        vectors = [outputs_at(model.record(shard), positions(shard)) for shard in shards]
    whole = torch.cat(vectors, dim=1).transpose(0, 1)
    return {"other_vectors": whole} | other_prompts_entities(model, task, n=n)


def all_tries(
    recording: Recording,
    shard: TokenBatch,
    prepared: Tensors,
    *,
    controls: Sequence[str],
    positions: Spans,
    seed: int,
) -> Iterator[Tries]:
    """Yield every kind of patch with its values; `prepared` holds the donors of "example"."""
    layers = range(recording.n_layers)
    own = outputs_at(recording, positions)
    for kind in kinds_of(controls):
        where, vectors = positions, own
        if kind == "example":
            vectors = prepared["other_vectors"][other_prompts(shard, prepared)].transpose(0, 1)
        if kind == "position":
            where = other_positions(shard, positions, seed=seed)
            vectors = outputs_at(recording, where)
        by_target = {
            t: sources_of(kind, t, n_layers=len(layers), controls=controls) for t in layers
        }
        sources = {target: those for target, those in by_target.items() if those}
        values = {}
        for target, those in sources.items():
            value = vectors[those]
            if kind == "random":
                value = _directions(shard, own, n=len(those), seed=1009 * target + seed)
            is_scaled = kind in ("random", "rescaled")
            values[target] = _rescaled(value, own[target]) if is_scaled else value
        yield Tries(kind, sources, values, where)


def _directions(
    shard: TokenBatch, like: Tensor, *, n: int, seed: int
) -> Float[Tensor, "source batch span d_model"]:
    """Return Gaussian vectors; a prompt's depend only on its id and the seed."""
    drawn = []
    for prompt in shard.prompts:
        generator = torch.Generator().manual_seed((key_of(prompt.id) + seed) % 2**63)
        drawn.append(torch.randn(n, *like.shape[2:], generator=generator))
    return torch.stack(drawn, dim=1).to(like)


def _rescaled(values: Tensor, like: Tensor) -> Tensor:
    """Return the vectors, each with the norm of the one it replaces."""
    norms = vector_norm(like.float(), dim=-1, keepdim=True) / vector_norm(
        values.float(), dim=-1, keepdim=True
    )
    rescaled: Tensor = (values.float() * norms).to(values.dtype)
    return rescaled
