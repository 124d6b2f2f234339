"""Which layers are skipped for which token: the voids, and controls that skip as much."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from interp.analyses.void_skip.evaluations import FULL, MASKED, Streams, active_for, streams_of
from interp.models import Model
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sweeps.cosines import influence
from interp.sweeps.tags import draw_seed
from interp.sweeps.voids import Active
from interp.tasks import Prompt, Task

KINDS = ("voids", "random layers", "random tokens", "least influence")


@dataclass(frozen=True)
class Skipping:
    """What is skipped: voids at every alpha, each with its controls (see `with_controls`).

    `rates` [base alpha layer] are how often layers are void, by the clean pass and by the masked
    stream; `influence` [layer] is block influence. Positions before `begin` skip nothing.
    """

    alphas: tuple[float, ...]
    n_random: int
    begin: int
    seed: int
    rates: Float[Tensor, "base alpha layer"]
    influence: Float[Tensor, " layer"]

    def masks(self, recording: Recording, prompts: Sequence[Prompt], evaluation: str) -> Active:
        """Return what is active [variant batch layer pos] for every alpha, kind and draw."""
        n_layers, n_pos = recording.n_layers, recording.n_pos
        if evaluation == FULL:
            return torch.ones(1, len(prompts), n_layers, n_pos, dtype=torch.bool)
        active = active_for(recording, evaluation, self.alphas, begin=self.begin)
        n = 2 * self.n_random
        uniform = drawn(prompts, n=n, n_layers=n_layers, n_pos=n_pos, seed=self.seed)
        uniform[..., : self.begin] = 2.0  # above any rate
        rates = self.rates[int(evaluation == MASKED)].to(active.device)
        least = self.influence.to(active.device)
        return with_controls(active, uniform.to(active.device), rates=rates, influence=least)

    def streams(
        self, recording: Recording, prompts: Sequence[Prompt], evaluation: str
    ) -> Iterator[Streams]:
        """Yield the streams that skipping leaves for the unembedding, a few variants at a time."""
        return streams_of(recording, evaluation, self.masks(recording, prompts, evaluation))


def calibrate(model: Model, task: Task, *, alphas: Sequence[float], begin: int) -> Tensors:
    """Return "rates" [base alpha layer] and "influence" [layer], means over tokens from `begin` on.

    "key_share" [layer] is the share of each layer's weights that make keys and values.
    """
    turned, void, n_tokens = torch.zeros(model.n_layers), torch.zeros(()), 0
    for shard in map(model.tokenize, model.shards(task)):
        recording = model.record(shard)
        layers = range(recording.n_layers)
        ends = [(recording.resid(layer), recording.resid(layer + 1)) for layer in layers]
        turned = turned + torch.stack([influence(*both)[:, begin:, 0].sum() for both in ends]).cpu()
        bases = [
            active_for(recording, evaluation, alphas, begin=begin)
            for evaluation in ("two-pass", MASKED)
        ]
        void = void + (~torch.stack(bases)).sum((2, 4)).cpu()
        n_tokens += shard.tokens.numel() - begin * len(shard.prompts)
    shares = [_share_of_keys(recording, layer) for layer in layers]
    return {
        "influence": turned / n_tokens,
        "rates": void / n_tokens,
        "key_share": torch.tensor(shares),
    }


def _share_of_keys(recording: Recording, layer: int) -> float:
    """Return the share of a layer's weights, matrices only, that make keys and values."""
    keys, _ = recording.kv(layer)
    n_weights = 2 * keys.shape[1] * keys.shape[3] * recording.resid(0).shape[-1]
    weights = recording.blocks[layer].module.parameters()
    return n_weights / sum(weight.numel() for weight in weights if weight.ndim > 1)


def drawn(
    prompts: Sequence[Prompt], *, n: int, n_layers: int, n_pos: int, seed: int
) -> Float[Tensor, "draw batch layer pos"]:
    """Return uniform numbers that depend only on a prompt's id, the position and the seed.

    So a longer text begins with the same ones.
    """
    rows = [
        np.random.default_rng(draw_seed(prompt.id, seed=seed)).random((n_pos, n, n_layers))
        for prompt in prompts
    ]
    return torch.from_numpy(np.stack(rows)).float().permute(2, 0, 3, 1)


def lowest(scores: Float[Tensor, "#variant #batch layer #pos"], active: Active) -> Active:
    """Return masks that skip as many layers of every token: those with the lowest scores."""
    n_skipped = (~active).sum(2, keepdim=True)
    rank = scores.expand(active.shape).argsort(dim=2, stable=True).argsort(dim=2, stable=True)
    return rank >= n_skipped


def at_rates(
    uniform: Float[Tensor, "draw batch layer pos"], rates: Float[Tensor, " layer"]
) -> Active:
    """Return masks that skip every layer at tokens drawn at random, as often as its rate says."""
    is_active: Bool[Tensor, "draw batch layer pos"] = uniform >= rates[:, None]
    return is_active


def n_drawn(n_random: int) -> int:
    """Return how many masks `with_controls` makes of one."""
    return 2 * n_random + 2


def drawn_first(alpha: int, n_random: int) -> list[int]:
    """Return the variants of an alpha's voids and of the first draw of each control."""
    kinds = (0, 1, 1 + n_random, 1 + 2 * n_random)
    return [alpha * n_drawn(n_random) + kind for kind in kinds]


def with_controls(
    active: Bool[Tensor, "alpha batch layer pos"],
    uniform: Float[Tensor, "draw batch layer pos"],
    *,
    rates: Float[Tensor, "alpha layer"],
    influence: Float[Tensor, " layer"],
) -> Active:
    """Return each alpha's mask and its controls, alpha-major, in the order of `KINDS`.

    "random layers" skips as many layers of every token, drawn at random; "random tokens" skips
    every layer as often (`rates`), at tokens drawn at random; "least influence" skips as many
    layers of every token, those that turn the stream least (block influence). Half of the draws
    serve each random kind.
    """
    by_count, by_rate = uniform.chunk(2)
    masks = []
    for own, rate in zip(active, rates, strict=True):
        masks += [own[None], *[lowest(scores[None], own[None]) for scores in by_count]]
        masks += [at_rates(by_rate, rate), lowest(influence[None, None, :, None], own[None])]
    return torch.cat(masks)


def over_draws(
    values: Float[Tensor, "variant batch"], *, n_random: int
) -> Float[Tensor, "batch alpha kind"]:
    """Return the mean over the draws of each kind."""
    by_alpha = rearrange(
        values, "(alpha drawn) batch -> batch alpha drawn", drawn=n_drawn(n_random)
    )
    kinds = torch.split(by_alpha, [1, n_random, n_random, 1], dim=-1)
    return torch.stack([kind.mean(-1) for kind in kinds], dim=-1)
