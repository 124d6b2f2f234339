"""Back-patches and their controls, each with as many pairs of layers: which vectors are written
where.

"own" are a prompt's own vectors: later over earlier layers, and as controls each over itself
("identity") and earlier over later ("forward"). Later over earlier are also the controls "example"
(another prompt's vectors), "random" (directions of the norm of what they replace) and "position"
(the prompt's own, at a random other place), and "rescaled": the prompt's own at the norm of what
they replace.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.linalg import vector_norm

from interp.replay import Recording
from interp.shapes import Tensors
from interp.sweeps.patching import Positions, of_another, outputs_at
from interp.sweeps.tags import key_of
from interp.tasks.batch import TokenBatch

CONTROLS = ("identity", "forward", "example", "random", "position", "rescaled")


@dataclass(frozen=True)
class Tries:
    """One kind of patch: by target layer its source layers, and the values that each of them gives."""

    kind: str
    sources: Mapping[int, list[int]]
    values: Mapping[int, Float[Tensor, "source batch span d_model"]]
    positions: Positions


def n_pairs(n_layers: int) -> int:
    """Return how many pairs of a later and an earlier layer there are."""
    return n_layers * (n_layers - 1) // 2


def kinds_of(controls: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds of patch: those that share the prompt's own vectors are one."""
    return ("own", *[control for control in controls if control not in ("identity", "forward")])


def sources_of(kind: str, target: int, *, n_layers: int, controls: Sequence[str]) -> list[int]:
    """Return the source layers of a target: the later ones and, of the prompt's own vectors, what
    is asked for besides.
    """
    also = (
        {"forward": range(target), "identity": range(target, target + 1)} if kind == "own" else {}
    )
    return [
        *range(target + 1, n_layers),
        *[source for name, more in also.items() if name in controls for source in more],
    ]


def other_positions(shard: TokenBatch, positions: Positions, *, seed: int) -> Positions:
    """Return a random span of each prompt that ends elsewhere, and does not hold position 0 unless
    it must.
    """
    n_pos, span = shard.tokens.shape[1], positions.shape[1]
    chosen = []
    for prompt, end in zip(shard.prompts, positions[:, -1].tolist(), strict=True):
        ends = [e for e in range(span, n_pos) if e != end] or [span - 1]
        chosen.append(ends[(key_of(prompt.id) + seed) % len(ends)])
    ends_at: Int[Tensor, " batch"] = torch.tensor(chosen, device=positions.device)
    return ends_at[:, None] - torch.arange(span - 1, -1, -1, device=positions.device)


def all_tries(
    recording: Recording,
    shard: TokenBatch,
    prepared: Tensors,
    *,
    controls: Sequence[str],
    positions: Positions,
    seed: int,
) -> Iterator[Tries]:
    """Yield every kind of patch with its values; `prepared` holds the donors of "example"."""
    layers = range(recording.n_layers)
    own = outputs_at(recording, positions)
    for kind in kinds_of(controls):
        found = {
            target: sources_of(kind, target, n_layers=len(layers), controls=controls)
            for target in layers
        }
        sources = {target: those for target, those in found.items() if those}
        where = other_positions(shard, positions, seed=seed) if kind == "position" else positions
        vectors = own
        if kind == "example":
            vectors = of_another(shard, prepared)
        if kind == "position":
            vectors = outputs_at(recording, where)
        values = {}
        for target, those in sources.items():
            drawn = kind == "random"
            value = (
                _directions(shard, own, n=len(those), seed=1009 * target + seed)
                if drawn
                else vectors[those]
            )
            values[target] = (
                _rescaled(value, own[target]) if kind in ("random", "rescaled") else value
            )
        yield Tries(kind, sources, values, where)


def _directions(
    shard: TokenBatch, like: Tensor, *, n: int, seed: int
) -> Float[Tensor, "source batch span d_model"]:
    """Return Gaussian vectors; a prompt's depend on nothing but its id and the seed."""
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
