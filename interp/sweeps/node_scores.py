"""Scores of nodes per prompt, aligned at the prompts' ends, as tables and grids."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from numpy.typing import NDArray
from torch import Tensor

from interp.figures.plots import grids_over_positions
from interp.metrics import Metric
from interp.models import Model
from interp.shapes import Tensors
from interp.sites import Site, SiteKind
from interp.stats.align import Aligned, align
from interp.stats.estimate import ratios
from interp.stats.groups import Groups
from interp.stats.picked import band
from interp.sweeps.behaviour import Behaviour
from interp.sweeps.twins import Direction

Array = NDArray[np.float64]
_SHARES = ("share", "share_low", "share_high")


def n_units(model: Model, kinds: Sequence[SiteKind]) -> int:
    """Return how many nodes of some kinds there are at most at one layer and position."""
    each = {"z": model.n_heads, "mlp_post": 4 * model.d_model}
    return sum(each.get(kind, 1) for kind in kinds)


def by_kind(
    score: Callable[[Site], Tensor], kinds: Sequence[SiteKind], *, n_layers: int
) -> Tensors:
    """Return scores [batch layer pos (unit)] on the CPU by kind, from those of a site."""
    return {
        kind: torch.stack([score(Site(kind, layer)).cpu() for layer in range(n_layers)], dim=1)
        for kind in kinds
    }


def join_scores(rows: Sequence[Tensor], groups: Sequence[Tensors], *, last: Tensor) -> Tensors:
    """Return groups' tensors [batch layer pos ...] as one per name, padded to the longest.

    `rows` says which prompts of the shard a group holds.
    """
    n_prompts, joined = sum(map(len, rows)), {}
    n_pos = torch.zeros(n_prompts, dtype=torch.int64)
    for name in groups[0]:
        parts = [group[name] for group in groups]
        shape = [
            n_prompts,
            *(max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)),
        ]
        joined[name] = torch.zeros(shape, dtype=parts[0].dtype)
        for at, part in zip(rows, parts, strict=True):
            inside: list[Tensor | slice] = [at, *(slice(size) for size in part.shape[1:])]
            joined[name][tuple(inside)] = part
            if part.ndim > 2:
                n_pos[at] = part.shape[2]
    return joined | {"last": last, "n_pos": n_pos}


@dataclass(frozen=True)
class NodeScores:
    """Scores by name [prompt layer*unit column], and the metric of both runs [prompt]."""

    scores: dict[str, Aligned]
    n_units: dict[str, int]
    base: Array
    source: Array

    @classmethod
    def of(cls, parts: Sequence[Tensors], names: Sequence[str]) -> "NodeScores":
        """Return the scores of all parts."""
        last, n_pos = ([part[key].numpy() for part in parts] for key in ("last", "n_pos"))
        scores, n_units = {}, {}
        for name in names:
            arrays = [part[name].float().numpy() for part in parts]
            n_units[name] = 1 if arrays[0].ndim == 3 else arrays[0].shape[3]
            flat = [array if array.ndim == 3 else _units_first(array) for array in arrays]
            scores[name] = align(flat, last=last, n_pos=n_pos)
        ends = {
            key: np.concatenate([part[key].double().numpy() for part in parts])
            for key in ("base", "source")
        }
        return cls(scores, n_units, ends["base"], ends["source"])

    def behaviour(
        self, metric: Metric, direction: Direction, *, groups: Groups | None, seed: int
    ) -> Behaviour:
        """Return the metric of clean and corrupted prompts, which are source and base to denoise.

        `groups` are the prompts' own [prompt].
        """
        runs = (self.source, self.base) if direction == "denoise" else (self.base, self.source)
        return Behaviour(*runs, metric, groups, seed)

    def filled(self, name: str) -> Array:
        """Return the scores [prompt layer*unit column], 0 where a prompt has no such position."""
        return np.nan_to_num(self.scores[name].values.astype(np.float64))

    def mean(self, name: str) -> Array:
        """Return the mean [layer*unit column] over prompts, NaN where none has the position."""
        n_known = (~np.isnan(self.scores[name].values)).sum(0)
        return np.where(n_known > 0, self.filled(name).sum(0) / np.maximum(n_known, 1), np.nan)

    def of_name(self, name: str, behaviour: Behaviour) -> pd.DataFrame:
        """Return columns layer, unit (head or neuron), position, mean, low, high, share and others.

        `share`, with its interval's ends, is Σ score / Σ (source - base) over all prompts, also
        those that have no such position; NaN where there is no behaviour.
        """
        groups, seed = behaviour.groups, behaviour.seed
        frame, n_units = self.scores[name].to_frame(seed=seed, groups=groups), self.n_units[name]
        layer, unit = np.divmod(frame["layer"].to_numpy(), n_units)
        units = pd.array(unit if n_units > 1 else [pd.NA] * len(frame), dtype="Int64")
        found = ratios(self.filled(name), self.source - self.base, groups=groups, seed=seed)
        shares = {
            column: np.where(behaviour.is_absent, np.nan, found[end]).T.ravel()
            for column, end in zip(_SHARES, ("mean", "low", "high"), strict=True)
        }
        return frame.assign(layer=layer, unit=units, **shares)

    def exceeds(self, names: Sequence[str], behaviour: Behaviour) -> dict[str, NDArray[np.bool_]]:
        """Return which nodes [layer*unit column] have a mean other than 0, by name.

        One band (max-statistic) holds the means of all nodes of these names together in 95 %;
        none exceeds it with fewer than 5 groups of prompts.
        """
        nodes = {name: self.filled(name) for name in names}
        flat = np.concatenate([values.reshape(len(values), -1) for values in nodes.values()], 1)
        low, high = band(flat, groups=behaviour.groups, seed=behaviour.seed)
        cuts = np.cumsum([values[0].size for values in nodes.values()])[:-1]
        parts = np.split((low > 0) | (high < 0), cuts)
        return {
            name: part.reshape(values.shape[1:])
            for (name, values), part in zip(nodes.items(), parts, strict=True)
        }

    def to_frame(self, keys: Mapping[str, Mapping[str, str]], behaviour: Behaviour) -> pd.DataFrame:
        """Return the frames of several names, with the columns of their `keys` in front.

        `exceeds` is over all names with one `method`.
        """
        families: dict[str, list[str]] = {}
        for name, key in keys.items():
            families.setdefault(key.get("method", ""), []).append(name)
        exceed: dict[str, NDArray[np.bool_]] = {}
        for names in families.values():
            exceed |= self.exceeds(names, behaviour)
        frames = [
            self.of_name(name, behaviour).assign(exceeds=exceed[name].T.ravel(), **key)
            for name, key in keys.items()
        ]
        first = [*next(iter(keys.values())), "layer", "unit", "position"]
        numbers = ["mean", "low", "high", *_SHARES, "exceeds", "n_prompts"]
        return pd.concat(frames, ignore_index=True)[first + numbers]

    def summed(self, name: str) -> pd.DataFrame:
        """Return the mean by layer and position, heads or neurons added up."""
        aligned = self.scores[name]
        mean = self.mean(name).reshape(-1, self.n_units[name], len(aligned.columns)).sum(1)
        rows = [
            {"layer": layer, "position": column, "mean": mean[layer, i]}
            for i, column in enumerate(aligned.columns)
            for layer in range(len(mean))
        ]
        return pd.DataFrame(rows)

    def plot(self, panels: Mapping[SiteKind, str], *, title: str, colour: str) -> go.Figure:
        """Draw means by layer and position, a panel for every name; heads and neurons added up."""
        frames = [self.summed(name).assign(panel=panel) for panel, name in panels.items()]
        return grids_over_positions(
            pd.concat(frames, ignore_index=True),
            panels="panel",
            y="layer",
            title=title,
            colour=colour,
            is_signed=True,
        )


def _units_first(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return [prompt layer pos unit] as [prompt layer*unit pos]."""
    return np.moveaxis(scores, 3, 2).reshape(len(scores), -1, scores.shape[2])
