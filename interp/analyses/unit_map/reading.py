"""Neurons and heads of chosen layers at every token but the first, in fp32."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import UnsuitedError
from interp.models import Model
from interp.sites import Site
from interp.sweeps.heads import z_reader_of
from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch
from interp.tasks.prompts import key_of

FROM = 1  # the first position that is read


@dataclass(frozen=True)
class Units:
    """What a layer's neurons and heads return at all tokens, batch by batch."""

    neurons: Float[Tensor, "token unit"]
    heads: Float[Tensor, "token head d_head"]

    def at(self, tokens: Tensor) -> "Units":
        """Return the same at chosen tokens, given by a mask or by numbers."""
        return Units(self.neurons[tokens], self.heads[tokens])


def n_units(model: Model) -> int:
    """Return how many neurons a layer's MLP has; raise UnsuitedError where they cannot be read."""
    sizes = set()
    for block in model.blocks:
        if block.mlp_post_reader is None or block.experts is not None:
            raise UnsuitedError(f"{model.name}: the neurons of its MLPs cannot be read one by one")
        z_reader_of(block)
        weight = block.mlp_post_reader.weight
        assert isinstance(weight, Tensor)
        sizes.add(weight.numel() // model.d_model)
    if len(sizes) > 1:
        raise UnsuitedError(f"{model.name}: its MLPs have different numbers of neurons")
    return sizes.pop()


def is_held(prompts: Sequence[Prompt], *, seed: int) -> dict[str, bool]:
    """Tell by id which prompts do not choose the match: every second group, in an order drawn."""
    drawn = sorted({prompt.drawn for prompt in prompts}, key=lambda name: key_of(f"{seed} {name}"))
    second = {*drawn[1::2]}
    return {prompt.id: prompt.drawn in second for prompt in prompts}


def units_of(model: Model, batches: Sequence[TokenBatch], layers: Sequence[int]) -> list[Units]:
    """Return the units of layers at all tokens but each prompt's first."""
    neurons: list[list[Tensor]] = [[] for _ in layers]
    heads: list[list[Tensor]] = [[] for _ in layers]
    for batch in batches:
        recording = model.record(batch)
        for i, layer in enumerate(layers):
            post = recording.inside(Site("mlp_post", layer))[:, FROM:].float()
            z = recording.inside(Site("z", layer))[:, FROM:].float()
            neurons[i].append(post.flatten(0, 1))
            heads[i].append(
                rearrange(
                    z, "batch pos (head d) -> (batch pos) head d", head=model.blocks[layer].n_heads
                )
            )
    return [Units(torch.cat(a), torch.cat(b)) for a, b in zip(neurons, heads, strict=True)]


def tokens_elsewhere(batches: Sequence[TokenBatch]) -> Int[Tensor, " token"]:
    """Return for every token another of its prompt: half of the positions further on."""
    numbers, n = [], 0
    for batch in batches:
        rows, n_pos = len(batch.tokens), batch.tokens.shape[1] - FROM
        here = torch.arange(n, n + rows * n_pos).reshape(rows, n_pos)
        numbers.append(here.roll(n_pos // 2, dims=1).flatten())
        n += rows * n_pos
    return torch.cat(numbers)


def tokens_of(batches: Sequence[TokenBatch], held: dict[str, bool]) -> Bool[Tensor, " token"]:
    """Tell of every token whether its prompt is held out."""
    return torch.cat(
        [
            torch.tensor([held[prompt.id] for prompt in batch.prompts]).repeat_interleave(
                batch.tokens.shape[1] - FROM
            )
            for batch in batches
        ]
    )
