"""Scores of nodes per prompt, aligned at the prompts' ends, as tables, grids and words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from numpy.typing import NDArray
from torch import Tensor

from interp.figures.plots import grids_over_positions
from interp.figures.words import head_named, mlp_named
from interp.models import Model
from interp.result import Finding
from interp.shapes import Tensors
from interp.sites import Site, SiteKind
from interp.stats.align import Aligned, align
from interp.stats.estimate import Estimate

_NODES: dict[str, Callable[[int, int], str]] = {
    "resid_pre": lambda layer, _: f"the residual in front of layer {layer}",
    "attn_out": lambda layer, _: f"attention of layer {layer}",
    "z": head_named,
    "mlp_out": lambda layer, _: mlp_named(layer),
    "mlp_post": lambda layer, neuron: f"neuron {neuron} of {mlp_named(layer)}",
}


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
    base: NDArray[np.float64]
    source: NDArray[np.float64]

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

    @property
    def gap(self) -> float:
        """Return the mean difference between source and base run, to which shares relate."""
        return float((self.source - self.base).mean())

    def mean(self, name: str, prompts: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Return the mean [layer*unit column] over some prompts (all), NaN where none has it."""
        values = self.scores[name].values if prompts is None else self.scores[name].values[prompts]
        n_known = (~np.isnan(values)).sum(0)
        total: NDArray[np.float64] = np.nansum(values.astype(np.float64), axis=0)
        return np.where(n_known > 0, total / np.maximum(n_known, 1), np.nan)

    def of_name(self, name: str, *, seed: int) -> pd.DataFrame:
        """Return columns layer, unit (head or neuron), position, mean, low, high, share, n_prompts.

        `share` relates the mean to the mean difference between source and base run.
        """
        frame, n_units = self.scores[name].to_frame(seed=seed), self.n_units[name]
        layer, unit = np.divmod(frame["layer"].to_numpy(), n_units)
        units = pd.array(unit if n_units > 1 else [pd.NA] * len(frame), dtype="Int64")
        return frame.assign(layer=layer, unit=units, share=frame["mean"] / (self.gap or np.nan))

    def to_frame(self, keys: Mapping[str, Mapping[str, str]], *, seed: int) -> pd.DataFrame:
        """Return the frames of several names, with the columns of their `keys` in front."""
        frames = [self.of_name(name, seed=seed).assign(**key) for name, key in keys.items()]
        first = [*next(iter(keys.values()))]
        numbers = ["layer", "unit", "position", "mean", "low", "high", "share", "n_prompts"]
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

    def plot(self, panels: Mapping[str, str], *, title: str, colour: str) -> go.Figure:
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

    def findings(
        self, names: Mapping[str, str], *, by: str, difference: str, seed: int
    ) -> tuple[Finding, ...]:
        """Return the shares of the difference that the largest nodes carry.

        `by` says how they were found, and begins the claims; `difference` is the metric in words.
        """
        return tuple(
            Finding(
                f"{by}, {node} carries {share:.0%} of the change in {difference}.",
                share,
                f"share of the difference that the largest {what} carries",
            )
            for what, node, share in self._reported(names, seed=seed)
        )

    def _reported(self, names: Mapping[str, str], *, seed: int) -> list[tuple[str, str, Estimate]]:
        """Return the largest node of all kinds, then those of the last two kinds if they differ.

        Each is what was looked at ("node", or the kind), the node in words, and its share of the
        difference between the runs.
        """
        frames = {kind: self.of_name(name, seed=seed) for kind, name in names.items()}
        rows = {kind: _largest(frame) for kind, frame in frames.items()}
        first = max(rows, key=lambda kind: np.nan_to_num(abs(rows[kind]["share"])))
        chosen = {first: "node"} | {kind: kind for kind in [*rows][-2:] if kind != first}
        nodes = []
        for kind, what in chosen.items():
            row = rows[kind]
            low, high = sorted(float(row[end]) / (self.gap or np.nan) for end in ("low", "high"))
            share = Estimate(float(row["share"]), low, high, int(row["n_prompts"]))
            nodes.append((what, _in_words(kind, row), share))
        return nodes


def _largest(frame: pd.DataFrame) -> "pd.Series[Any]":
    return frame.iloc[int(frame["share"].abs().fillna(0).argmax())]


def _in_words(kind: str, row: "pd.Series[Any]") -> str:
    """Return a node in words: "L2H3 at the last token"."""
    unit = 0 if pd.isna(row["unit"]) else row["unit"]
    node = _NODES[kind](row["layer"], unit)
    places = {"first": "the first token", "-1": "the last token"}
    position = row["position"]
    return f"{node} at {places.get(position, f'position {position}')}"


def _units_first(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return [prompt layer pos unit] as [prompt layer*unit pos]."""
    return np.moveaxis(scores, 3, 2).reshape(len(scores), -1, scores.shape[2])
