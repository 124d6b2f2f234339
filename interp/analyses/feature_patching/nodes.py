"""Features and errors of dictionaries as nodes: their scores, and their values in both runs.

Nodes are numbered through: the features of a dictionary, then its error, then the next dictionary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.activations import Activations
from interp.features import Dictionary, Latents
from interp.features.splitting import split
from interp.sweeps.attribution import Attribution, Coefficients


def n_nodes(dictionaries: Sequence[Dictionary]) -> int:
    """Return how many features and errors there are."""
    return sum(dictionary.n_features + 1 for dictionary in dictionaries)


def is_error(dictionaries: Sequence[Dictionary]) -> Bool[Tensor, " node"]:
    """Return which nodes are errors."""
    ends = torch.tensor([dictionary.n_features + 1 for dictionary in dictionaries]).cumsum(0) - 1
    return torch.isin(torch.arange(n_nodes(dictionaries)), ends)


def dictionary_of(dictionaries: Sequence[Dictionary]) -> Int[Tensor, " node"]:
    """Return the number of each node's dictionary."""
    sizes = torch.tensor([dictionary.n_features + 1 for dictionary in dictionaries])
    return torch.repeat_interleave(torch.arange(len(sizes)), sizes)


@dataclass(frozen=True)
class Nodes:
    """What dictionaries make of the base and the source run [batch pos ...]."""

    dictionaries: Sequence[Dictionary]
    base: Sequence[Latents]
    source: Sequence[Latents]

    @classmethod
    def of(
        cls, runs: Attribution, base: Activations, dictionaries: Sequence[Dictionary]
    ) -> "Nodes":
        """Return the nodes of two runs at the dictionaries' sites."""
        both = (
            [split(d, activations[d.reads], activations[d.writes]) for d in dictionaries]
            for activations in (base, runs.source)
        )
        return cls(dictionaries, *both)

    def only(self, rows: Int[Tensor, " kept"]) -> "Nodes":
        """Return the nodes of some prompts."""
        both = (
            [Latents(each.features[rows], each.error[rows]) for each in run]
            for run in (self.base, self.source)
        )
        return Nodes(self.dictionaries, *both)

    def scores(self, coefficients: Coefficients) -> Float[Tensor, "batch node"]:
        """Return coefficient · (source - base) of every node, summed over positions.

        A feature moves its site by its decoder direction times the change of its activation. As
        features and error add up to the site, their scores add up to the site's.
        """
        parts: list[Tensor] = []
        for dictionary, base, source in zip(self.dictionaries, self.base, self.source, strict=True):
            slope = coefficients[dictionary.writes]
            along = slope @ dictionary.w_dec.T
            parts.append((along * (source.features - base.features)).sum(1))
            parts.append((slope * (source.error - base.error)).sum((1, 2))[:, None])
        return torch.cat(parts, dim=1)

    def distances(self) -> Float[Tensor, "batch node"]:
        """Return how far every node moves its site between the runs, summed over positions."""
        parts: list[Tensor] = []
        for dictionary, base, source in zip(self.dictionaries, self.base, self.source, strict=True):
            moved = (source.features - base.features).abs().sum(1)
            parts.append(moved * dictionary.w_dec.norm(dim=1))
            parts.append((source.error - base.error).norm(dim=-1).sum(1)[:, None])
        return torch.cat(parts, dim=1)

    def rates(self) -> Float[Tensor, "batch node"]:
        """Return at how many of the tokens of both runs a feature is active; 1 for errors."""
        parts: list[Tensor] = []
        for base, source in zip(self.base, self.source, strict=True):
            active = [(each.features > 0).float().mean(1) for each in (base, source)]
            parts += [(active[0] + active[1]) / 2, torch.ones_like(active[0][:, :1])]
        return torch.cat(parts, dim=1)
