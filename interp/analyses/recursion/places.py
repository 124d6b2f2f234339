"""One place alone with other weights: another layer's, or those that it would share.

The layer keeps its own arguments (attention window, rotary base), and only what comes after it is
run again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.models.loops import Loop, matrices_of, vectors_of
from interp.replay import Block, Recording
from interp.shapes import Tensors


@dataclass(frozen=True)
class Place:
    """A layer with the weights of layer `other`, or of its shared layer in a `loop`."""

    layer: int
    other: int | None = None
    loop: Loop | None = None

    def weights(self, blocks: Sequence[Block], *, shares_vectors: bool) -> Tensors:
        """Return the layer's weights by name; without a loop, all of the other layer's."""
        block = blocks[self.layer]
        own = dict(block.module.named_parameters())
        if self.loop is None:
            given = dict(blocks[self.other or 0].module.named_parameters())
            moved = {name: given[name].detach().to(own[name]) for name in own}
        else:
            names = [*matrices_of(block), *(vectors_of(block) if shares_vectors else ())]
            base = {name: self.loop.base(self.layer, name, blocks) for name in names}
            moved = {name: values.to(own[name]) for name, values in base.items()}
        return {f"{block.name}.{name}": values for name, values in moved.items()}


def pairs_of(n: int, kinds: Sequence[int]) -> list[Place]:
    """Return each of `n` evenly spaced layers with the weights of each other one of its kind."""
    places = np.unique(np.linspace(0, len(kinds) - 1, min(n, len(kinds))).round()).astype(int)
    chosen = places.tolist() if n > 1 else []
    return [Place(i, j) for i in chosen for j in chosen if i != j and kinds[i] == kinds[j]]


def alone_of(loops: Sequence[Loop]) -> list[Place]:
    """Return each layer alone with its shared layer's weights, where that is not itself."""
    return [
        Place(layer, loop=loop)
        for loop in loops
        for layer in range(len(loop.position))
        if not loop.keeps(layer)
    ]


def ends_of(
    recording: Recording, places: Sequence[Place], *, shares_vectors: bool
) -> Float[Tensor, "place batch d_model"]:
    """Return the last residual at the last position with each place alone changed."""
    last, n_layers = recording.resid(recording.n_layers)[:, -1], recording.n_layers
    ends = last.repeat(len(places), 1, 1)
    for layer in range(n_layers):
        here = [i for i, place in enumerate(places) if place.layer == layer]
        if not here:
            continue
        weights = (places[i].weights(recording.blocks, shares_vectors=shares_vectors) for i in here)
        rows = torch.cat([*_with_each(recording, layer, weights)])
        for later in range(layer + 1, n_layers):
            rows = recording.run(later, rows)
        ends[here] = rows[:, :, -1]
    return ends


def _with_each(recording: Recording, layer: int, weights: Iterator[Tensors]) -> Iterator[Tensor]:
    before = recording.resid(layer)[None]
    for each in weights:
        with recording.with_weights(each) as other:
            yield other.run(layer, before)


def forwards_of(places: Sequence[Place], n_layers: int) -> float:
    """Return how many forward passes `ends_of` runs."""
    return sum(n_layers - place.layer for place in places) / n_layers


Similarity = Callable[[int, int], float]


def similarities(
    states: dict[int, Float[Tensor, "token d_model"]],
    blocks: Sequence[Block],
    places: Sequence[Place],
) -> Tensors:
    """Return linear CKA of outputs, and the cosine of matrices, of pairs of layers [pair].

    `states` are what layers return, at the same tokens. CKA is NaN for fewer than 3 tokens.
    """
    grams = {layer: _centred(resid) for layer, resid in states.items()}
    alike = [(place.layer, place.other or 0) for place in places]
    cka = [_cosine(grams[i], grams[j]) if len(grams[i]) > 2 else torch.nan for i, j in alike]
    dots: dict[tuple[int, int], float] = {}

    def dot(i: int, j: int) -> float:
        key = min(i, j), max(i, j)
        if key not in dots:
            both = (matrices_of(blocks[at]).values() for at in key)
            dots[key] = sum(
                float((a.float() * b.to(a.device).float()).sum())
                for a, b in zip(*both, strict=True)
            )
        return dots[key]

    cosine = [dot(i, j) / (dot(i, i) * dot(j, j)) ** 0.5 for i, j in alike]
    return {"cka": torch.tensor(cka), "cosine": torch.tensor(cosine)}


def _centred(resid: Float[Tensor, "token d_model"]) -> Float[Tensor, "token token"]:
    centred = resid.double() - resid.double().mean(0)
    return centred @ centred.T


def _cosine(one: Tensor, other: Tensor) -> float:
    return float((one * other).sum() / (one.norm() * other.norm()).clamp_min(1e-30))
