"""A grid [source target] of any prompts, from what is known of each; and which prompts are drawn.

Errors are weighted means of prompts, and are drawn with replacement. Similarities compare prompts
with each other; there a prompt drawn twice would be like itself, so random halves are drawn without
replacement: a number of half the prompts varies about as much around that of all of them.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from interp.stats.groups import Grouping
from interp.sweeps.similarity import example_similarity

_RESAMPLES = 200


class Grids(ABC):
    """Grids [source target] of any prompts; those of the same number of prompts are drawn alike."""

    grouping: Grouping

    @property
    def n_prompts(self) -> int:
        """Return how many prompts are held out, or compared."""
        return len(self.grouping.codes)

    @abstractmethod
    def of(self, counts: Float[ndarray, "draw prompt"]) -> Float[ndarray, "draw source target"]:
        """Return the grids of prompts that count as often as they are drawn."""

    @abstractmethod
    def draws(self) -> Float[ndarray, "draw prompt"]:
        """Return how often each prompt is drawn for the resampled grids."""

    @cached_property
    def whole(self) -> Float[ndarray, "source target"]:
        """Return the grid of all prompts."""
        grid: ndarray = self.of(np.ones((1, self.n_prompts)))[0]
        return grid

    @cached_property
    def resampled(self) -> Float[ndarray, "draw source target"]:
        """Return the grids of resampled prompts."""
        return self.of(self.draws())


@dataclass(frozen=True)
class ErrorGrids(Grids):
    """Each prompt's errors, summed over its `tokens` [prompt]: [prompt source target]."""

    errors: Float[ndarray, "prompt source target"]
    tokens: Float[ndarray, " prompt"]
    grouping: Grouping

    def of(self, counts: Float[ndarray, "draw prompt"]) -> Float[ndarray, "draw source target"]:
        """Return the mean errors per token."""
        total = np.tensordot(counts, self.errors, axes=1)
        mean: ndarray = total / (counts @ self.tokens)[:, None, None]
        return mean

    def draws(self) -> Float[ndarray, "draw prompt"]:
        """Return groups of prompts drawn with replacement."""
        n = self.grouping.n_groups
        drawn = np.random.default_rng(n).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES)
        return drawn.astype(np.float64)[:, self.grouping.codes]


@dataclass(frozen=True)
class SimilarityGrids(Grids):
    """Each prompt's vectors in two models: `x` [source prompt d1] and `y` [target prompt d2]."""

    x: Tensor
    y: Tensor
    kind: Literal["cka", "rsa"]
    grouping: Grouping

    def of(self, counts: Float[ndarray, "draw prompt"]) -> Float[ndarray, "draw source target"]:
        """Return the distances, 1 minus the similarity of the prompts that are drawn."""
        similarity = example_similarity(self.x, self.y, torch.from_numpy(counts), kind=self.kind)
        distances: ndarray = 1 - similarity.numpy()
        return distances

    def draws(self) -> Float[ndarray, "draw prompt"]:
        """Return random halves of the prompts; no group is in both."""
        halves = [self.grouping.half(seed=seed) for seed in range(_RESAMPLES)]
        return np.stack(halves).astype(np.float64)


def two_halves(grouping: Grouping, *, seed: int) -> Float[ndarray, "2 prompt"]:
    """Return prompts split at random: what is chosen on one half is measured on the other."""
    first = grouping.half(seed=seed)
    both = [first, ~first] if first.any() and not first.all() else [first | True] * 2  # one group
    return np.stack(both).astype(np.float64)


def error_grids(held: dict[str, ndarray]) -> tuple[Grids, tuple[Grids, ...]]:
    """Return the grids of held-out prompts' errors, and those towards untrained twins."""
    tokens, twins = held["tokens"], np.moveaxis(held.get("control", np.empty((0, 0))), 1, 0)
    grouping = Grouping.of(len(tokens), held.get("drawn"))
    measured = ErrorGrids(held["error"][:, :-1], tokens, grouping)
    return measured, tuple(ErrorGrids(twin, tokens, grouping) for twin in twins)


def fit_grids(held: dict[str, ndarray]) -> dict[str, Float[ndarray, "source target"]]:
    """Return maps' "r2", and the "constant" error, that of the mean of training tokens."""
    total = held["squared"].sum(0)
    unexplained = np.divide(
        total[:-1], total[-1], out=np.zeros_like(total[:-1]), where=total[-1] > 0
    )
    constant = held["error"][:, -1:].sum(0) / held["tokens"].sum()
    return {"r2": 1 - unexplained, "constant": constant}


def similarity_grids(
    whole: dict[str, ndarray], kind: Literal["cka", "rsa"]
) -> tuple[Grids, tuple[Grids, ...]]:
    """Return the grids of pooled taps, and those towards untrained twins or of each with itself."""
    taps = {
        key: rearrange(torch.from_numpy(value), "prompt ... tap d_model -> ... tap prompt d_model")
        for key, value in whole.items()
        if key != "drawn"
    }
    grouping = Grouping.of(len(whole["source"]), whole.get("drawn"))
    twins = [(taps["source"], twin) for twin in taps.get("control", ())]
    twins += [(twin, twin) for twin in taps.get("own_control", ())]
    measured = SimilarityGrids(taps["source"], taps["target"], kind, grouping)
    return measured, tuple(SimilarityGrids(x, y, kind, grouping) for x, y in twins)
