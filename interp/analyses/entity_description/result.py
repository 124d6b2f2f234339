"""How often a vector says the bridge, or the answer, in another prompt."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.entity_description.findings import FROM, findings_of
from interp.figures.plots import Axes, grid_below, lines_over_depth
from interp.result import Finding, Result
from interp.stats.groups import Groups
from interp.stats.shares import share_differences, shares
from interp.sweeps.two_hop import (
    answer_groups,
    compared_frame,
    empty_figure,
)

if TYPE_CHECKING:
    from interp.analyses.entity_description import EntityDescription

ENTITIES = ("bridge", "answer")  # the last axis: one's own, then another prompt's
_SHOWN = (("subject", "bridge"), ("last", "bridge"), ("last", "answer"))
_KEYS = ["statistic", "group", "position", "entity"]
_REAL = (
    "rate",
    "low",
    "high",
    *(f"{name}{end}" for name in ("control", "gain") for end in ("", "_low", "_high")),
)


@dataclass(frozen=True, repr=False)
class EntityDescriptionResult(Result):
    """Per prompt: `arrays["subject.rank"]` [prompt source target entity], own, then another's.

    A prompt does not count where the target prompt says the entity, or its control, without any
    vector.
    """

    analysis: "EntityDescription"
    arrays: dict[str, np.ndarray]

    @property
    def positions(self) -> list[str]:
        """Return where vectors are taken from."""
        return [position for position in FROM if f"{position}.rank" in self.arrays]

    @property
    def drawn(self) -> list[tuple[str, str]]:
        """Return what is drawn: the bridge from both positions, and the answer from the last."""
        return [(position, entity) for position, entity in _SHOWN if position in self.positions]

    def is_said(self, group: str, position: str, entity: str) -> tuple[np.ndarray, np.ndarray]:
        """Return whether the entity, and another's, is said first [prompt source target]."""
        own, other = self._of(group, position, entity, "rank")
        return own == 0, other == 0

    def _of(
        self, group: str, position: str, entity: str, what: str
    ) -> tuple[np.ndarray, np.ndarray]:
        i = ENTITIES.index(entity)
        values = self.arrays[f"{position}.{what}"][self.chosen(group, entity)]
        return values[..., i], values[..., i + 2]

    def chosen(self, group: str, entity: str) -> np.ndarray:
        """Return which prompts [prompt] count in a group."""
        i = ENTITIES.index(entity)
        anyway = self.arrays["anyway"][:, [i, i + 2]].any(1)
        return np.asarray(answer_groups(self.arrays)[group] & ~anyway)

    def to_frame(self) -> pd.DataFrame:
        """Return a row per statistic, group, vector position, entity, and source and target layer.

        "pair": the entity is the first guess for this pair of layers; "any target": for any target
        of this source; "first source": this is the first such source; "anywhere": for any pair;
        "sampled anywhere": expected, if each of the pairs is sampled `n_samples` times. Each `rate`
        stands beside its control, another prompt's entity with as many `tries`, and their paired
        difference `gain`; with the 95 % intervals of `shares` and `share_differences` over groups
        of prompts.
        """
        rows = [
            row
            for group in answer_groups(self.arrays)
            for position in self.positions
            for entity in ENTITIES
            for row in self._rows(group, position, entity)
        ]
        types = dict.fromkeys(("source", "target", "tries", "n_prompts"), "Int64") | dict.fromkeys(
            _REAL, "float64"
        )
        return compared_frame(rows, keys=_KEYS, types=types)

    def _rows(self, group: str, position: str, entity: str) -> Iterator[pd.DataFrame]:
        is_said = self.is_said(group, position, entity)
        n, n_sources, n_targets = is_said[0].shape
        if not n:
            return
        n_pairs, n_samples = n_sources * n_targets, self.analysis.n_samples
        pairs = dict(
            zip(
                ("source", "target"), np.indices((n_sources, n_targets)).reshape(2, -1), strict=True
            )
        )
        sources, anywhere = {"source": np.arange(n_sources)}, {"source": [None]}
        by_source = [np.asarray(each.any(2)) for each in is_said]
        probability = self._of(group, position, entity, "probability")
        for statistic, of_both, at, tries in (
            ("pair", [each.reshape(n, -1) for each in is_said], pairs, 1),
            ("any target", by_source, sources, n_targets),
            ("first source", [x & (x.cumsum(1) == 1) for x in by_source], sources, n_targets),
            ("anywhere", [x.any(1, keepdims=True) for x in by_source], anywhere, n_pairs),
            (
                "sampled anywhere",
                [_ever_sampled(p, n_samples) for p in probability],
                anywhere,
                n_samples * n_pairs,
            ),
        ):
            keys = dict(zip(_KEYS, (statistic, group, position, entity), strict=True)) | at
            rates = _rates(*of_both, groups=self.groups_of(self.chosen(group, entity)))
            yield pd.DataFrame(keys | {"tries": tries, "n_prompts": n} | rates)

    def plot(self) -> go.Figure:
        """Draw how often each source layer's vector says the entity, and a grid of all pairs."""
        frame = self.to_frame()
        title = (
            "What a vector says in another prompt, by its source layer:"
            " share of prompts, any target layer"
        )
        lines = [
            line
            for group in answer_groups(self.arrays)
            for shown in self.drawn
            for line in self._lines(frame, group, *shown)
        ]
        if not lines:
            return empty_figure(title)
        figure = lines_over_depth(
            pd.concat(lines), y="rate", groups="line", panels="panel", title=title
        )
        figure.update_yaxes(range=[0, 1.03], tickformat=".0%")
        group, (position, entity) = list(answer_groups(self.arrays))[-1], self.drawn[0]
        is_said = self.is_said(group, position, entity)[0]
        if not len(is_said):
            return figure
        of = f"{entity} said, {FROM[position]}, {group}: share of prompts"
        return grid_below(
            figure, is_said.mean(0), axes=Axes("target layer", "source layer", of), top=1.0
        )

    def _lines(
        self, frame: pd.DataFrame, group: str, position: str, entity: str
    ) -> Iterator[pd.DataFrame]:
        rows = frame[(frame[_KEYS] == ("any target", group, position, entity)).all(axis=1)]
        panel = f"{entity}, {FROM[position]}"
        own = rows.rename(columns={"source": "layer"})[["layer", "rate", "low", "high"]]
        yield own.assign(panel=panel, line=group)
        control = {"source": "layer"} | dict(zip(_REAL[3:6], _REAL[:3], strict=True))
        others = rows[[*control]].rename(columns=control)
        yield others.assign(panel=panel, line=f"{group}, another prompt's")

    def findings(self) -> tuple[Finding, ...]:
        """Return how often vectors say the bridge, and the answer, and from which layer on."""
        return findings_of(self)


def _rates(own: np.ndarray, other: np.ndarray, *, groups: Groups | None) -> dict[str, np.ndarray]:
    """Return the columns of own, another's, and the paired difference's rates."""
    columns: dict[str, np.ndarray] = {}
    for name, of_name in (
        ("rate", shares(own, groups=groups)),
        ("control", shares(other, groups=groups)),
        ("gain", share_differences(own, other, groups=groups)),
    ):
        before = "" if name == "rate" else f"{name}_"
        columns |= {
            name: of_name["mean"],
            f"{before}low": of_name["low"],
            f"{before}high": of_name["high"],
        }
    return columns


def _ever_sampled(probability: np.ndarray, n_samples: int) -> np.ndarray:
    """Return [prompt 1] how probable it is that any of `n_samples` at any pair says the entity."""
    missed = np.log1p(-probability.astype(np.float64).clip(max=1 - 1e-9))
    ever: np.ndarray = -np.expm1(n_samples * missed.sum((1, 2)))[:, None]
    return ever
