"""Where every head attends to, over prompts, and the patterns that were kept."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.head_patterns.findings import Claims
from interp.analyses.head_patterns.targets import BEHIND, COPIES, FIRST, PREVIOUS, READINGS
from interp.errors import RunError
from interp.figures.heads import head_maps
from interp.result import Finding, Result, joined
from interp.shapes import Tensors
from interp.stats.estimate import estimates

if TYPE_CHECKING:
    from interp.analyses.head_patterns import HeadPatterns

WEIGHTINGS = ("attention", "value-weighted")
_KEPT = "kept"
_TWICE = "random tokens said twice"


@dataclass(frozen=True)
class Pattern:
    """One head's pattern on one prompt [query key], and the tokens it promotes or suppresses there.

    `weighted` is attention times the length of what the head would write of each value, as shares.
    `promoted` and `suppressed` are what its write at the last token makes most and least probable.
    """

    attention: np.ndarray
    weighted: np.ndarray
    promoted: tuple[int, ...]
    suppressed: tuple[int, ...]


@dataclass(frozen=True, repr=False)
class HeadPatternsResult(Result):
    """Arrays as `HeadPatterns.measure` returns them, prompts joined; `kept` by prompt."""

    analysis: "HeadPatterns"
    readings: np.ndarray
    uniform: np.ndarray
    repeated: np.ndarray
    unrelated: np.ndarray
    kept: dict[int, Tensors]

    @classmethod
    def of(cls, analysis: "HeadPatterns", parts: Sequence[Tensors]) -> "HeadPatternsResult":
        """Return the result of all shards."""
        names = ("readings", "uniform", "repeated", "unrelated")
        arrays = joined([{name: part[name] for name in names} for part in parts])
        kept, start = dict[int, Tensors](), 0
        for part in parts:
            for row, prompt in enumerate(part[_KEPT].nonzero().flatten().tolist()):
                kept[start + prompt] = {
                    name.removeprefix(f"{_KEPT}."): tensor[row]
                    for name, tensor in part.items()
                    if name.startswith(f"{_KEPT}.")
                }
            start += len(part[_KEPT])
        return cls(analysis, kept=kept, **arrays)

    @property
    def n_layers(self) -> int:
        """Return the number of layers."""
        return int(self.readings.shape[3])

    @property
    def n_heads(self) -> int:
        """Return the number of heads of a layer."""
        return int(self.readings.shape[4])

    def pattern(self, prompt: int, layer: int, head: int) -> Pattern:
        """Return the pattern of a head on a prompt; raise RunError if it was not kept."""
        if prompt not in self.kept:
            there = ", ".join(map(str, self.kept)) or "none"
            raise RunError(f"no pattern of prompt {prompt} was kept; there is {there}")
        whole = {name: tensor[layer, head].numpy() for name, tensor in self.kept[prompt].items()}
        pattern, weighted = (whole[name] / np.float32(255) for name in ("pattern", "weighted"))
        words = (tuple(whole[name].tolist()) for name in ("promoted", "suppressed"))
        return Pattern(pattern, weighted, *words)

    def reading(self, target: str, weighting: str = "attention") -> np.ndarray:
        """Return a reading of the prompts that have one [prompt layer head]."""
        values = self.readings[:, READINGS.index(target), WEIGHTINGS.index(weighting)]
        known: np.ndarray = values[self.has(target)]
        return known

    def has(self, target: str) -> np.ndarray:
        """Tell which prompts have a reading [prompt]."""
        known: np.ndarray = ~np.isnan(self.readings[:, READINGS.index(target), 0, 0, 0])
        return known

    def to_frame(self) -> pd.DataFrame:
        """Return columns text, target, weighting, layer, head, mean, low, high, control, n_prompts.

        `text` is "task", or "random tokens said twice" with the targets of induction. `control` is
        the mean over prompts of what a head that attends to everything alike gives, or what the
        same head gives after unrelated tokens.
        """
        return pd.concat([*self._task_rows(), *self._copy_rows()], ignore_index=True)

    def _task_rows(self) -> Iterator[pd.DataFrame]:
        for target in READINGS:
            has = self.has(target)
            if not has.any():
                continue
            control = self.uniform[has, READINGS.index(target)].mean()
            for weighting in WEIGHTINGS:
                keys = {"text": "task", "target": target, "weighting": weighting}
                yield self._rows(self.reading(target, weighting), has, keys, control=control)

    def _copy_rows(self) -> Iterator[pd.DataFrame]:
        everyone = np.ones(len(self.readings), bool)
        for i, target in enumerate(COPIES):
            keys = {"text": _TWICE, "target": target}
            control = self.unrelated[:, i].mean(0).ravel()
            yield self._rows(
                self.repeated[:, i], everyone, keys | {"weighting": "attention"}, control=control
            )

    def _rows(
        self, values: np.ndarray, has: np.ndarray, keys: dict[str, str], *, control: object
    ) -> pd.DataFrame:
        columns = estimates(values, groups=self.groups_of(has), seed=self.analysis.seed)
        n_prompts = columns.pop("n_prompts").ravel()
        layer, head = (axis.ravel() for axis in np.indices(values.shape[1:]))
        numbers = {name: column.ravel() for name, column in columns.items()}
        places = {"layer": layer, "head": head}
        return pd.DataFrame(keys | places | numbers | {"control": control, "n_prompts": n_prompts})

    def plot(self) -> go.Figure:
        """Draw maps of layer and head: attention to four kinds of keys."""
        maps = {
            FIRST: self.reading(FIRST).mean(0),
            PREVIOUS: self.reading(PREVIOUS).mean(0),
            f"{BEHIND}, of random tokens said twice": self.repeated[:, COPIES.index(BEHIND)].mean(
                0
            ),
        }
        if (target := self.claims.target) is not None:
            maps[target] = self.reading(target).mean(0)
        return head_maps(
            maps, of="share of attention", title="What heads attend to, mean over prompts"
        )

    @cached_property
    def claims(self) -> Claims:
        """Return what can be claimed."""
        return Claims(self)

    def findings(self) -> tuple[Finding, ...]:
        """Return the head of the kind that the task needs, the induction head, and the sink."""
        return self.claims.findings()
