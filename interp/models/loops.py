"""Which layers share weights: K shared layers in a loop, where they come from, and controls."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from interp.errors import UnsuitedError
from interp.models.model import Model
from interp.replay import Block

Init = Literal["average", "stepwise", "lower"]
INITS: tuple[Init, ...] = get_args(Init)
DEEP = 16  # layers, beyond which one number of shared layers is measured by default
SVD, UNTRAINED, RANDOM = "truncated SVD", "untrained layers", "random assignment"
NAMES = (*INITS, SVD, UNTRAINED, RANDOM)  # of all that layers' weights are replaced by


@dataclass(frozen=True)
class Loop:
    """Layer l uses shared layer `position[l]`: the mean of the layers in `sources` there.

    `sources` are of the model itself, or of an untrained twin (`UNTRAINED`); none means a matrix of
    zeros, to which a low-rank term is then a truncated SVD of the layer (`SVD`). Random assignments
    have a number, `draw`.
    """

    name: str
    position: tuple[int, ...]
    sources: tuple[tuple[int, ...], ...]
    draw: int = 0

    @property
    def n_shared(self) -> int:
        """Return how many layers are shared; 0 where nothing is."""
        return len(self.sources) if self.name != SVD else 0

    def sources_of(self, layer: int) -> tuple[int, ...]:
        """Return the layers whose mean replaces a layer."""
        return self.sources[self.position[layer]]

    def keeps(self, layer: int) -> bool:
        """Tell whether a layer's shared one is the layer itself."""
        return self.name != UNTRAINED and self.sources_of(layer) == (layer,)

    def opposite_of(self, layer: int) -> int | None:
        """Return an earlier layer that differs from their mean by as much the other way, if any."""
        sources = self.sources_of(layer)
        is_second = len(sources) == 2 and sources[1] == layer and self.name != UNTRAINED
        return sources[0] if is_second else None

    def base(self, layer: int, name: str, blocks: Sequence[Block]) -> Tensor:
        """Return a parameter of the shared layer in fp32; zeros where nothing is shared."""
        own = _parameter(blocks[layer], name).float()
        sources = self.sources_of(layer)
        if not sources:
            return torch.zeros_like(own)
        total = _parameter(blocks[sources[0]], name).float()
        for source in sources[1:]:
            total = total + _parameter(blocks[source], name).float()
        return total / len(sources)


def _parameter(block: Block, name: str) -> Tensor:
    return block.module.get_parameter(name).detach()


def matrices_of(block: Block) -> dict[str, Tensor]:
    """Return a block's matrices by their names in the block."""
    return {name: p.detach() for name, p in block.module.named_parameters() if p.ndim == 2}


def vectors_of(block: Block) -> list[str]:
    """Return the names in the block of gains and biases."""
    return [name for name, parameter in block.module.named_parameters() if parameter.ndim < 2]


def refuse_others(block: Block) -> None:
    """Raise UnsuitedError for experts, which have no common order over layers."""
    tall = [name for name, p in block.module.named_parameters() if p.ndim > 2]
    if block.experts is not None or tall:
        what = f"{block.name}.{tall[0]}" if tall else block.name
        raise UnsuitedError(
            f"{what} holds experts, which have no common order over layers; only models without"
            " experts can share layers"
        )


def kinds_of(model: Model) -> tuple[int, ...]:
    """Return a number per layer, the same for layers of one type with parameters of one shape."""
    config: Any = model.module.config
    declared = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)
    each = []
    for layer, block in enumerate(model.blocks):
        shapes = tuple((name, *p.shape) for name, p in block.module.named_parameters())
        each.append((type(block.module), shapes, declared[layer] if declared else None))
    different = list(dict.fromkeys(each))
    return tuple(different.index(kind) for kind in each)


def why_not(n_shared: int, kinds: Sequence[int]) -> str:
    """Return why a number of shared layers does not suit these kinds of layers; "" if it does."""
    n_layers = len(kinds)
    if not 0 < n_shared <= n_layers or n_layers % n_shared:
        return f"{n_shared} shared layers given; that must divide the model's {n_layers}"
    for layer, kind in enumerate(kinds):
        if kind != kinds[layer % n_shared]:
            return (
                f"{n_shared} shared layers given; layers {layer % n_shared} and {layer} would be"
                " shared, and differ in type or shape"
            )
    return ""


def default_numbers(kinds: Sequence[int]) -> tuple[int, ...]:
    """Return the two largest numbers below the number of layers that suit.

    Of more than `DEEP` layers only the largest: every number decomposes all matrices again.
    """
    suiting = [k for k in range(len(kinds) - 1, 0, -1) if not why_not(k, kinds)]
    return tuple(suiting[: 1 if len(kinds) > DEEP else 2])


def loop_of(init: Init, n_shared: int, kinds: Sequence[int]) -> Loop:
    """Return a loop by its initialisation (Relaxed Recursive Transformers, section 3.1).

    "stepwise": layers at even distances, the first and the last among them; of several kinds, the
    nearest of the kind. "lower": the first ones. "average": the mean of all that use it.
    """
    n_layers = len(kinds)
    position = tuple(layer % n_shared for layer in range(n_layers))
    if init == "average":
        return _averaged(init, position, n_shared)
    chosen = list(range(n_shared))
    if init == "stepwise":
        places = np.linspace(0, n_layers - 1, n_shared) if n_shared > 1 else np.zeros(1)
        alike = [[i for i, kind in enumerate(kinds) if kind == kinds[k]] for k in chosen]
        chosen = [
            min(of, key=lambda layer: (abs(layer - place), layer))
            for of, place in zip(alike, places.round(), strict=True)
        ]
    return Loop(init, position, tuple((layer,) for layer in chosen))


def svd_of(n_layers: int) -> Loop:
    """Return the loop that shares nothing: with a low-rank term, a truncated SVD of each layer."""
    return Loop(SVD, (0,) * n_layers, ((),))


def untrained_of(loop: Loop) -> Loop:
    """Return the same loop of an untrained twin's layers."""
    return Loop(UNTRAINED, loop.position, loop.sources)


def random_of(n_shared: int, kinds: Sequence[int], *, draw: int, seed: int) -> Loop:
    """Return an average in which layers of a kind have places in the loop at random."""
    rng, places = np.random.default_rng((seed, draw)), np.arange(len(kinds))
    for kind in dict.fromkeys(kinds):
        alike = np.flatnonzero(np.array(kinds) == kind)
        places[alike] = rng.permutation(alike)
    position = tuple(int(place) % n_shared for place in places)
    return _averaged(RANDOM, position, n_shared, draw=draw)


def _averaged(name: str, position: tuple[int, ...], n_shared: int, *, draw: int = 0) -> Loop:
    sources = [tuple(i for i, at in enumerate(position) if at == k) for k in range(n_shared)]
    return Loop(name, position, tuple(sources), draw)
