"""Depth scores of every level of a tag, and what they are made of."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from interp.analyses.depth_score.levels import DepthScores, Levels, are_numbers, finding_of
from interp.figures.plots import COLOURS, layer_step, titled
from interp.result import Finding, Result
from interp.stats.estimate import Estimate
from interp.stats.groups import Grouping

if TYPE_CHECKING:
    from interp.analyses.depth_score import DepthScore

Array = NDArray[np.float64]
Effect = Literal["layer", "output"]
_EFFECTS: dict[Effect, str] = {"layer": "later layers", "output": "the output"}
_COLUMNS = ["level", "effect", "statistic", "measure", "layer", "value", "low", "high", "n_prompts"]


def depth_score(effects: Array) -> Array:
    """Return the mean layer, counted from 0 and weighted by the effects [... layer].

    It is NaN where nothing has an effect.
    """
    total = effects.sum(-1)
    weighted = effects @ np.arange(effects.shape[-1])
    score: Array = np.divide(weighted, total, out=np.full_like(total, np.nan), where=total > 0)
    return score


def layer_effects(changes: Array) -> Array:
    """Return every skipped layer's mean effect on those after it.

    `changes` are [... skipped affected].
    """
    layers = changes.shape[-1]
    effects: Array = changes.sum(-1) / np.maximum(1, layers - 1 - np.arange(layers))
    return effects


@dataclass(frozen=True, repr=False)
class DepthScoreResult(Result):
    """Levels [prompt], and arrays "layer.max" and "layer.mean" [prompt skipped affected].

    "output.max" and "output.mean" are [prompt skipped]; `lengths` [prompt] are in tokens.
    """

    analysis: "DepthScore"
    level_of: np.ndarray
    arrays: dict[str, Array]
    lengths: np.ndarray

    @property
    def levels(self) -> list[str]:
        """Return the levels in numerical order if they are numbers, else in alphabetical order."""
        names = sorted(set(self.level_of.tolist()))
        return sorted(names, key=float) if are_numbers(names) else names

    def effects(self, level: str, effect: str, statistic: str) -> Array:
        """Return e [layer] of one level: "layer" or "output", "max" or "mean" over prompts.

        A maximum grows with the number of prompts, so every level is taken over as many prompts as
        the smallest level has.
        """
        values = self.arrays[f"{effect}.{statistic}"][self.level_of == level]
        reduced = values[: self._n_smallest].max(0) if statistic == "max" else values.mean(0)
        return layer_effects(reduced) if effect == "layer" else reduced

    @property
    def _n_smallest(self) -> int:
        return min(self._n(level) for level in self.levels)

    def _n(self, level: str) -> int:
        return int((self.level_of == level).sum())

    def score(self, level: str, effect: Effect) -> Estimate:
        """Return one level's depth score by the mean effects, layers counted from 0."""
        return self.scored(effect).score(self.level_of == level)

    def scored(self, effect: Effect) -> DepthScores:
        """Return what the scores by an effect are made of, prompt by prompt."""
        values = self.arrays[f"{effect}.mean"]
        per_prompt = layer_effects(values) if effect == "layer" else values
        weighted = per_prompt @ np.arange(per_prompt.shape[-1])
        grouping = Grouping.of(len(values), self.prompt_groups)
        return DepthScores(
            weighted, per_prompt.sum(-1), self.lengths, grouping, seed=self.analysis.seed
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row per level, effect (layer, output), statistic (max, mean) and measure.

        Measures: "score, layers from 0", "score, layers from 1" (the paper's), and "effect" of each
        skipped layer. Scores of means have 95 % intervals: bootstrap-t over groups of prompts.
        """
        each = product(self.levels, _EFFECTS, ("max", "mean"))
        rows = [row for level, effect, of in each for row in self._rows(level, effect, of)]
        return pd.DataFrame(rows, columns=_COLUMNS).astype({"layer": "Int64"})

    def _rows(self, level: str, effect: Effect, statistic: str) -> Iterator[dict[str, object]]:
        effects = self.effects(level, effect, statistic)
        is_mean = statistic == "mean"
        score = self.score(level, effect) if is_mean else Estimate(float(depth_score(effects)))
        keys: dict[str, object] = {"level": level, "effect": effect, "statistic": statistic}
        n: dict[str, object] = {"n_prompts": self._n(level) if is_mean else self._n_smallest}
        for base in (0, 1):
            numbers: dict[str, object] = {"value": score.value + base, "low": score.low + base}
            numbers["high"] = score.high + base
            yield keys | {"measure": f"score, layers from {base}"} | numbers | n
        for layer, value in enumerate(effects):
            yield keys | {"measure": "effect", "layer": layer, "value": value} | n

    def plot(self) -> go.Figure:
        """Draw the scores by level, and the mean effects of skipping that they are made of."""
        titles = ["depth score", *(f"effect on {name}" for name in _EFFECTS.values())]
        figure = make_subplots(rows=1, cols=3, subplot_titles=titles, horizontal_spacing=0.09)
        units = ("relative change", "change of the probabilities (L2)")
        for i, (effect, unit) in enumerate(zip(_EFFECTS, units, strict=True)):
            # patterns, not colours: those tell levels apart in the other panels
            look = {"color": "#999999", "pattern": {"shape": ("", "/")[i]}}
            bars = self._bars(effect)
            figure.add_bar(**bars, name=titles[1 + i], marker=look, legendrank=1, row=1, col=1)
            for j, level in enumerate(self.levels):
                values = self.effects(level, effect, "mean").astype(np.float32)
                line = {"name": level, "legendgroup": level, "line": {"color": _colour(j)}}
                line |= {"x": np.arange(len(values)), "y": values, "mode": "lines+markers"}
                figure.add_scatter(**line, showlegend=i == 0, row=1, col=2 + i)
            step = layer_step(len(values))
            figure.update_xaxes(title_text="skipped layer", dtick=step, row=1, col=2 + i)
            figure.update_yaxes(title_text=unit, row=1, col=2 + i)
        tag = self.analysis.tag
        figure.update_xaxes(title_text=tag, type="category", row=1, col=1)
        figure.update_yaxes(title_text="layer, counted from 0", row=1, col=1)
        title = f"Do prompts of another {tag!r} use deeper layers? (means over prompts)"
        return titled(figure, title)

    def _bars(self, effect: Effect) -> dict[str, object]:
        scores = [self.score(level, effect) for level in self.levels]
        y = np.array([score.value for score in scores], np.float32)
        low, high = np.array([(score.low, score.high) for score in scores]).T
        error = {"array": high - y, "arrayminus": y - low, "symmetric": False}
        return {"x": self.levels, "y": y, "error_y": error}

    def findings(self) -> tuple[Finding, ...]:
        """Return by how much a level scores deeper than another, by either effect."""
        levels = Levels(self.level_of, self.levels)
        found = (
            finding_of(self.scored(effect), levels, _EFFECTS[effect])
            for effect in reversed(_EFFECTS)
        )
        of = f"levels are values of the tag {self.analysis.tag!r}"
        return tuple(replace(each, note="; ".join(filter(None, (of, each.note)))) for each in found)


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]
