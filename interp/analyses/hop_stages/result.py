"""At which layers, and in how many prompts, the stages of a two-hop query are reached."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.hop_stages.findings import FIRST_HOP, IN_THE_LENS, SAID, findings_of
from interp.analyses.hop_stages.inversion import Inversion
from interp.figures.plots import boxes
from interp.numerals import number
from interp.result import Finding, Result
from interp.stats.estimate import Estimate, estimate, estimate_difference
from interp.stats.groups import Groups
from interp.stats.shares import share
from interp.sweeps.two_hop import (
    RIGHT,
    WRONG,
    answer_groups,
    compared_frame,
)

if TYPE_CHECKING:
    from interp.analyses.hop_stages import HopStages

MEASURES = (
    "bridge said from the first hop",
    "hiding the first hop changes the guess",
    "attention writes the bridge",
    "bridge said from the last token",
    "answer said from the last token",
    "MLP writes the prediction",
    IN_THE_LENS,
    "bridge in the lens at the last token",
    "answer in the lens at the last token",
)
STAGES = {  # by the measures whose mean layer they are
    FIRST_HOP: MEASURES[:1],
    "2 reaches the last token": MEASURES[1:4],
    "3 second hop resolved": MEASURES[4:5],
    "4 prediction extracted": MEASURES[5:6],
}
_IN_THE_LENS = (IN_THE_LENS, MEASURES[8])
_READ = {SAID: (MEASURES[4], MEASURES[0]), "answer before bridge, in the lens": _IN_THE_LENS[::-1]}
_REAL = [
    f"{name}{end}".removeprefix("defined_")
    for name in ("defined", "control", "layer")
    for end in ("", "_low", "_high")
] + ["median"]


@dataclass(frozen=True, repr=False)
class HopStagesResult(Result):
    """Per prompt: `arrays["own"]`, `arrays["control"]` [prompt measure], first layers; -1: none.

    A prompt does not count where the target prompt says one of the entities without any vector.
    """

    analysis: "HopStages"
    arrays: dict[str, np.ndarray]

    def chosen(self, group: str) -> np.ndarray:
        """Return which of a group's prompts count."""
        chosen: np.ndarray = answer_groups(self.arrays)[group] & ~self.arrays["anyway"]
        return chosen

    def layers(
        self, group: str, name: str, *, kind: Literal["own", "control"] = "own"
    ) -> np.ndarray:
        """Return the layer [prompt] of a stage or of a measure; NaN where it is not defined."""
        columns = [MEASURES.index(measure) for measure in STAGES.get(name, (name,))]
        firsts = self.arrays[kind][self.chosen(group)][:, columns]
        there = firsts >= 0
        total = np.where(there, firsts, 0).sum(1)
        layers: np.ndarray = np.where(there.any(1), total / there.sum(1).clip(min=1), np.nan)
        return layers

    def to_frame(self) -> pd.DataFrame:
        """Return one row per kind (stage, measure, difference, inversion), name and group.

        `defined` is the share of prompts in which it happens at any layer, `control` that of
        another prompt's entities (or of another hidden token); `layer` is the mean over the prompts
        in which it is defined, `median` theirs. "difference": the mean layer of wrong answers minus
        that of right ones. "inversion": `defined` is the share of prompts, of those that have both
        (`n_defined`), whose answer comes in an earlier layer than the bridge, `control` that of
        permuted prompts; "inversion above chance" is their difference. 95 % intervals of `shares`,
        `estimates` and `estimate_difference`, over groups of prompts.
        """
        groups = answer_groups(self.arrays)
        rows = [
            {"kind": kind, "name": name} | self._row(group, name)
            for kind, names in (("stage", STAGES), ("measure", MEASURES))
            for name in names
            for group in groups
        ]
        rows += [self._later(name) for name in (*STAGES, *_IN_THE_LENS)]
        rows += [
            row for name in _READ for group in groups for row in self._inversion_rows(group, name)
        ]
        types = dict.fromkeys(_REAL, "float64") | dict.fromkeys(("n_defined", "n_prompts"), "Int64")
        frames = [pd.DataFrame(kept)] if (kept := [row for row in rows if row]) else []
        return compared_frame(frames, keys=["kind", "name", "group"], types=types)

    def _share(self, group: str, name: str, kind: Literal["own", "control"] = "own") -> Estimate:
        """Return the share of a group's prompts in which something happens at any layer."""
        is_defined = ~np.isnan(self.layers(group, name, kind=kind))
        return share(is_defined, groups=self.groups_of(self.chosen(group)))

    def mean_layer(self, group: str, name: str) -> Estimate:
        """Return the mean layer over a group's prompts in which something happens."""
        layers, groups = self._defined(group, name)
        return estimate(layers, groups=groups, seed=self.analysis.seed)

    def _defined(self, group: str, name: str) -> tuple[np.ndarray, Groups | None]:
        """Return the layers of a group's prompts in which something happens, and their groups."""
        layers = self.layers(group, name)
        is_defined = ~np.isnan(layers)
        return layers[is_defined], self.groups_of(np.flatnonzero(self.chosen(group))[is_defined])

    def _row(self, group: str, name: str) -> dict[str, object]:
        own, layers = self._share(group, name), self.layers(group, name)
        row: dict[str, object] = {"group": group, "n_prompts": own.n}
        for prefix, found in (
            ("defined", own),
            ("control", self._share(group, name, "control")),
            ("layer", self.mean_layer(group, name)),
        ):
            before = "" if prefix == "defined" else f"{prefix}_"
            row |= {prefix: found.value, f"{before}low": found.low, f"{before}high": found.high}
        defined = layers[~np.isnan(layers)]
        median = np.median(defined) if len(defined) else np.nan
        return row | {"n_defined": len(defined), "median": median}

    def difference(self, name: str) -> Estimate | None:
        """Return how many layers later something happens in wrong answers; None if unknown."""
        if len(answer_groups(self.arrays)) < 2:
            return None
        (wrong, of_wrong), (right, of_right) = (
            self._defined(each, name) for each in (WRONG, RIGHT)
        )
        if not len(wrong) or not len(right):
            return None
        groups = (of_wrong, of_right)
        return estimate_difference(wrong, right, groups=groups, seed=self.analysis.seed)

    def _later(self, name: str) -> dict[str, object]:
        if (difference := self.difference(name)) is None:
            return {}
        keys: dict[str, object] = {"kind": "difference", "name": name, "group": "wrong minus right"}
        layers = {
            "layer": difference.value,
            "layer_low": difference.low,
            "layer_high": difference.high,
        }
        return keys | {"n_defined": difference.n} | layers

    def inversion(self, group: str, name: str) -> Inversion:
        """Return which of a group's answers are read before the bridge, where both are read."""
        answer, bridge = (self.layers(group, measure) for measure in _READ[name])
        has_both = ~np.isnan(answer + bridge)
        groups = self.groups_of(np.flatnonzero(self.chosen(group))[has_both])
        return Inversion(answer[has_both], bridge[has_both], groups, self.analysis.seed)

    def _inversion_rows(self, group: str, name: str) -> list[dict[str, object]]:
        found, n_prompts = self.inversion(group, name), int(self.chosen(group).sum())
        keys: dict[str, object] = {"name": name, "group": group, "n_prompts": n_prompts}
        kinds = (("inversion", found.share), ("inversion above chance", found.above_chance))
        return [
            {"kind": kind, "control": found.chance if kind == "inversion" else np.nan}
            | keys
            | {"defined": each.value, "low": each.low, "high": each.high}
            | {"n_defined": len(found.answer)}
            for kind, each in kinds
        ]

    def plot(self) -> go.Figure:
        """Draw the layers of the four stages as boxes by group, with the share defined above."""
        values, notes = {}, {}
        for group in answer_groups(self.arrays):
            values[group] = {name: self.layers(group, name) for name in STAGES}
            shares = {name: self._share(group, name).value for name in STAGES}
            notes[group] = {
                name: "" if np.isnan(x) else number(x, ".0%") for name, x in shares.items()
            }
        title = (
            "Layers at which a two-hop query is resolved (above:"
            " share of prompts in which it ever is)"
        )
        return boxes(values, notes=notes, y="layer", title=title)

    def findings(self) -> tuple[Finding, ...]:
        """Return how often the first hop is resolved, by group, and how much later in failures."""
        return findings_of(self)
