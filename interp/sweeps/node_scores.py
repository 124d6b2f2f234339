"""Scores of nodes per prompt: joined over groups of prompts, aligned at the prompts' ends,
averaged.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from interp.shapes import Tensors
from interp.stats.align import Aligned, align
from interp.stats.rates import Rate


def join_scores(rows: Sequence[Tensor], groups: Sequence[Tensors], *, last: Tensor) -> Tensors:
    """Return groups' tensors [batch layer pos ...] as one per name, in the order of `rows`, padded
    to the longest.
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
    """Scores by name [prompt layer*unit column], aligned at the prompts' ends, and the metric of
    both runs [prompt].
    """

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
        """Return the mean score [layer*unit column] over some prompts (all), NaN where none of them
        has that position.
        """
        values = self.scores[name].values if prompts is None else self.scores[name].values[prompts]
        n_known = (~np.isnan(values)).sum(0)
        total: NDArray[np.float64] = np.nansum(values.astype(np.float64), axis=0)
        return np.where(n_known > 0, total / np.maximum(n_known, 1), np.nan)

    def ends(self, metric: str) -> str:
        """Say what the metric is in both runs."""
        return (
            f"{metric} is {self.base.mean():.2f} in the run that is patched and"
            f" {self.source.mean():.2f} in the run that patches come from ({len(self.base)}"
            " prompts)"
        )

    def to_frame(self, name: str, *, seed: int) -> pd.DataFrame:
        """Return columns layer, unit (head or neuron), position, mean, low, high, share and
        n_prompts.
        """
        frame, n_units = self.scores[name].to_frame(seed=seed), self.n_units[name]
        layer, unit = np.divmod(frame["layer"].to_numpy(), n_units)
        units = (
            pd.array(unit, dtype="Int64")
            if n_units > 1
            else pd.array([pd.NA] * len(frame), dtype="Int64")
        )
        return frame.assign(layer=layer, unit=units, share=frame["mean"] / (self.gap or np.nan))

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

    def largest_share(self, names: Sequence[str], *, seed: int) -> Rate:
        """Return the share of the difference that the largest node of all names has, with its
        interval.
        """
        frame = pd.concat([self.to_frame(name, seed=seed) for name in names], ignore_index=True)
        most = frame.iloc[int(frame["share"].abs().fillna(0).argmax())]
        low, high = sorted(float(most[end]) / (self.gap or np.nan) for end in ("low", "high"))
        return Rate(float(most["share"]), low, high, int(most["n_prompts"]))

    def largest(self, name: str, *, n: int) -> list[str]:
        """Return the nodes with the largest mean share, in words; heads and neurons as LAYER.UNIT."""
        aligned, n_units = self.scores[name], self.n_units[name]
        share = self.mean(name) / (self.gap or np.nan)
        found = np.argsort(-np.nan_to_num(np.abs(share)), axis=None)[:n]
        told = []
        for row, column in zip(*np.unravel_index(found, share.shape), strict=True):
            layer, unit = divmod(int(row), n_units)
            place = f"{layer}.{unit}" if n_units > 1 else f"layer {layer}"
            where = aligned.columns[column]
            told.append(
                f"{place} at {where if where == 'first' else f'position {where}'}"
                f" ({share[row, column]:+.0%})"
            )
        return told


def _units_first(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return [prompt layer pos unit] as [prompt layer*unit pos]."""
    return np.moveaxis(scores, 3, 2).reshape(len(scores), -1, scores.shape[2])
