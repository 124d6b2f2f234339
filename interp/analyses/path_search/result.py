"""What paths answer, against as many tries of every control, over prompts."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.path_search.curves import drawn
from interp.analyses.path_search.findings import findings_of
from interp.analyses.path_search.kinds import (
    CHANCE,
    EVERY,
    FIXED,
    RANDOM,
    RIGHT,
    SAMPLED,
    SEARCH,
    SHUFFLED,
    WRONG,
)
from interp.result import Finding, Result
from interp.stats.estimate import Estimate, estimate, estimates
from interp.stats.groups import Groups
from interp.stats.shares import share, shares
from interp.sweeps.path_tree import Path

if TYPE_CHECKING:
    from interp.analyses.path_search import PathSearch

_KINDS = {SEARCH: "search", RANDOM: "random"}
_UNREACHED = 10**6


@dataclass(frozen=True, repr=False)
class PathSearchResult(Result):
    """Arrays, by prompt: what `PathSearch.measure` returns."""

    analysis: "PathSearch"
    arrays: dict[str, np.ndarray]

    @property
    def n_layers(self) -> int:
        """Return the number of layers of the model."""
        return int(self.arrays["search.path"].shape[2] // 2)

    @property
    def is_right(self) -> np.ndarray:
        """Return whether the ordinary path answers [prompt]."""
        return np.asarray(self.arrays["search.is_right"][:, 0], dtype=bool)

    def tries(self, prompt: int, kind: str = SEARCH) -> pd.DataFrame:
        """Return what was tried for a prompt: columns path, layers, is_right, log_prob (nats)."""
        name = _KINDS[kind]
        paths = [_path(row) for row in self.arrays[f"{name}.path"][prompt]]
        return pd.DataFrame(
            {
                "path": paths,
                "layers": [len(path) for path in paths],
                "is_right": self.arrays[f"{name}.is_right"][prompt],
                "log_prob": self.arrays[f"{name}.log_prob"][prompt],
            }
        )

    def front(self, prompt: int) -> pd.DataFrame:
        """Return those of a prompt's tries that no shorter one beats in log-probability."""
        tries = self.tries(prompt).sort_values(["layers", "log_prob"], ascending=[True, False])
        best = tries["log_prob"].cummax().shift(fill_value=-np.inf)
        return tries[tries["log_prob"] > best].reset_index(drop=True)

    def shortest(self, prompt: int, kind: str = SEARCH) -> Path | None:
        """Return a prompt's shortest path with the right answer, of equal ones the surest."""
        tries = self.tries(prompt, kind)
        right = tries[tries["is_right"]].sort_values(
            ["layers", "log_prob"], ascending=[True, False]
        )
        return None if right.empty else right["path"].iloc[0]

    @cached_property
    def lengths(self) -> dict[str, np.ndarray]:
        """Map search and random paths to the layers of the shortest right one [prompt].

        A large number where none is right.
        """
        lengths = {}
        for kind, name in _KINDS.items():
            layers = (self.arrays[f"{name}.path"] >= 0).sum(-1)
            lengths[kind] = np.where(self.arrays[f"{name}.is_right"], layers, _UNREACHED).min(1)
        return lengths

    @cached_property
    def reached(self) -> dict[str, np.ndarray]:
        """Map the search and every control to whether it reaches the answer [prompt].

        Sampled answers are a probability; searches for another answer, that answer. A fixed path is
        the one chosen on the other half of the prompts.
        """
        other = 1 - self.arrays["half"]
        fixed = np.take_along_axis(self.arrays["fixed.is_right"], other[:, None], 1)[:, 0]
        shuffled = self.arrays["shuffled.is_right"]
        known = {kind: length < _UNREACHED for kind, length in self.lengths.items()}
        known |= {FIXED: fixed, SAMPLED: self.arrays["sampled"]}
        if (shuffled >= 0).all():
            known |= {SHUFFLED: shuffled, CHANCE: self.arrays["shuffled.chance"]}
        return {name: np.asarray(values, np.float64) for name, values in known.items()}

    @property
    def members(self) -> dict[str, np.ndarray]:
        """Map groups of prompts to who is in [prompt], where anyone is."""
        every = np.ones(len(self.is_right), bool)
        members = {WRONG: ~self.is_right, RIGHT: self.is_right, EVERY: every}
        return {name: chosen for name, chosen in members.items() if chosen.any()}

    @cached_property
    def usage(self) -> dict[str, np.ndarray]:
        """Map search and random paths to how often their shortest right one runs each layer.

        [prompt layer], over the prompts for which both have one.
        """
        both = np.flatnonzero(np.all([each < _UNREACHED for each in self.lengths.values()], axis=0))
        return {
            kind: np.array(
                [
                    np.bincount(self.shortest(int(prompt), kind) or (), minlength=self.n_layers)
                    for prompt in both
                ]
            ).reshape(len(both), self.n_layers)
            for kind in _KINDS
        }

    def entropy(self, kind: str = SEARCH) -> float:
        """Return the entropy of how often layers are run, in nats; ln L if all are as often."""
        runs = self.usage[kind].sum(0)
        p = runs[runs > 0] / max(1, runs.sum())
        return float(-(p * np.log(p)).sum())

    def to_frame(self) -> pd.DataFrame:
        """Return columns measure, prompts, kind, layer, mean, low, high and n_prompts.

        "answered": the share of prompts whose answer a way with as many tries reaches. "answered in
        so many layers": by paths of at most `layer` layers. "a shorter path is right": of right
        answers. "layers run": of the shortest right path, as a share of the model's, where search
        and random paths both have one; "times run": of `layer` in it. "paraphrase answered": where
        a prompt has one and a path, by the ordinary path, by its own, by its random one.
        """
        return pd.concat(self._rows(), ignore_index=True).astype({"layer": "Int64"})

    def _rows(self) -> Iterator[pd.DataFrame]:
        for name, chosen in self.members.items():
            groups = self.groups_of(chosen)
            for kind, values in self.reached.items():
                yield _row("answered", name, kind, share(values[chosen], groups=groups))
        for kind, length in self.lengths.items():
            budgets = np.arange(1, 2 * self.n_layers + 1)
            columns = shares(length[:, None] <= budgets, groups=self.prompt_groups)
            keys = {"measure": "answered in so many layers", "prompts": EVERY, "kind": kind}
            yield pd.DataFrame(keys | {"layer": budgets} | columns)
            if self.is_right.any():
                shorter = (length < self.n_layers)[self.is_right]
                groups = self.groups_of(self.is_right)
                yield _row("a shorter path is right", RIGHT, kind, share(shorter, groups=groups))
        for kind, runs in self.usage.items():
            if not len(runs):
                continue
            of = estimate(runs.sum(1) / self.n_layers, groups=self._both, seed=self.analysis.seed)
            yield _row("layers run", EVERY, kind, of)
            columns = estimates(runs, groups=self._both, seed=self.analysis.seed)
            keys = {"measure": "times run", "prompts": EVERY, "kind": kind}
            yield pd.DataFrame(keys | {"layer": np.arange(self.n_layers)} | columns)
        for name, chosen in self.members.items():
            for kind, estimated in self._transfers(chosen).items():
                yield _row("paraphrase answered", name, kind, estimated)

    @property
    def _both(self) -> Groups | None:
        return self.groups_of(np.all([each < _UNREACHED for each in self.lengths.values()], axis=0))

    def _transfers(self, chosen: np.ndarray) -> dict[str, Estimate]:
        answered = self.arrays["transfer"]
        known = chosen & (answered >= 0).all(1)
        if not known.any():
            return {}
        names = ("the ordinary path", SEARCH, RANDOM)
        groups = self.groups_of(known)
        return {name: share(answered[known, i], groups=groups) for i, name in enumerate(names)}

    def plot(self) -> go.Figure:
        """Draw answers reached by length, those reached in all, and how often layers are run."""
        return drawn(self)

    def findings(self) -> tuple[Finding, ...]:
        """Return what search gains on random paths: wrong answers, shorter paths, paraphrases."""
        return findings_of(self)


def _path(row: np.ndarray) -> Path:
    return tuple(int(layer) for layer in row if layer >= 0)


def _row(measure: str, prompts: str, kind: str, of: Estimate) -> pd.DataFrame:
    keys = {"measure": measure, "prompts": prompts, "kind": kind, "layer": pd.NA}
    return pd.DataFrame([keys | of.columns()])
