"""Where prompts exit, and what is read there."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.oracle_exit.findings import ORACLE, RIGHT, findings_of
from interp.figures.plots import lines_over_depth
from interp.result import Finding, Result
from interp.stats.estimate import Estimate, estimate
from interp.stats.paired import paired_p
from interp.stats.shares import share, share_difference

if TYPE_CHECKING:
    from interp.analyses.oracle_exit import OracleExit

SETTLED = "oracle, settled"
_AGREES = "agrees with the full model"


def first_agreeing(choice: np.ndarray, *, is_settled: bool = False) -> np.ndarray:
    """Return the first tap [prompt] whose `choice` [prompt tap] is the last tap's.

    With `is_settled`, the first from which on all choices are.
    """
    agrees = choice == choice[:, -1:]
    if is_settled:
        agrees = np.logical_and.accumulate(agrees[:, ::-1], axis=1)[:, ::-1]
    return np.asarray(agrees.argmax(1))


def first_stable(choice: np.ndarray, k: int) -> np.ndarray:
    """Return the first tap [prompt] at which the last `k` choices [prompt tap] are equal.

    The last tap where none is.
    """
    n_taps = choice.shape[1]
    windows = np.lib.stride_tricks.sliding_window_view(choice, k, axis=1)
    is_stable = (windows == windows[..., -1:]).all(-1)
    return np.asarray(np.where(is_stable.any(1), is_stable.argmax(1) + k - 1, n_taps - 1))


@dataclass(frozen=True, repr=False)
class OracleExitResult(Result):
    """The lens's choices [prompt tap] at the last position, and answers [prompt], -1 for none."""

    analysis: "OracleExit"
    choice: np.ndarray
    answer: np.ndarray

    @property
    def n_layers(self) -> int:
        """Return the number of layers; there is one tap more."""
        return int(self.choice.shape[1]) - 1

    @property
    def rules(self) -> dict[str, np.ndarray]:
        """Map every way to exit to the tap [prompt] at which it reads; `n_layers`: after all."""
        return {
            ORACLE: first_agreeing(self.choice),
            SETTLED: first_agreeing(self.choice, is_settled=True),
            **{f"same choice {k} times": first_stable(self.choice, k) for k in self._repeats},
        }

    @property
    def _repeats(self) -> tuple[int, ...]:
        return self.analysis.stable_for

    @property
    def scores(self) -> tuple[str, ...]:
        """Return the scores of exits: agreement and, if every prompt has an answer, accuracy."""
        return (_AGREES, RIGHT) if (self.answer >= 0).all() else (_AGREES,)

    def score(self, exits: np.ndarray, score: str) -> np.ndarray:
        """Return [prompt] whether what is read at these taps [prompt] is right, or the model's."""
        read = self.choice[np.arange(len(exits)), exits]
        truth = self.answer if score == RIGHT else self.choice[:, -1]
        return np.asarray(read == truth, dtype=np.float64)

    def fixed(self, exits: np.ndarray, score: str) -> np.ndarray:
        """Return the score [prompt] where everyone leaves at the mean depth of these exits.

        Where that lies between two layers, each prompt leaves before one or the other by lot,
        so that the mean depth is the same; this is the expectation.
        """
        below = int(exits.mean())
        early, late = (
            self.score(self.everyone_at(tap), score)
            for tap in (below, min(below + 1, self.n_layers))
        )
        return np.asarray(early + (exits.mean() - below) * (late - early))

    def above_fixed(self, exits: np.ndarray, score: str) -> Estimate:
        """Return by how much exits score above everyone's leaving at their mean depth.

        That depth is known from the same prompts, so its error is part of the interval (by the
        delta method).
        """
        depth, fixed = exits.mean(), self.fixed(exits, score)
        below = int(depth)
        ends = (self.score(self.everyone_at(tap), score).mean() for tap in (below, below + 1))
        per_layer = np.diff([*ends])[0] if below < self.n_layers else 0.0
        own = self.score(exits, score)
        if (own == fixed).all():
            return share_difference(own, fixed, groups=self.prompt_groups)
        return self._estimate(own - fixed - per_layer * (exits - depth))

    def everyone_at(self, tap: int) -> np.ndarray:
        return np.full(len(self.choice), tap)

    def _estimate(self, values: np.ndarray) -> Estimate:
        return estimate(values, groups=self.prompt_groups, seed=self.analysis.seed)

    def _share(self, values: np.ndarray) -> Estimate:
        return share(values, groups=self.prompt_groups)

    def to_frame(self) -> pd.DataFrame:
        """Return a row per statistic, exit rule, score and layer.

        Columns: statistic, rule, score, layer, mean, low, high, depth, difference, p, n_prompts.

        "rule": the score of an exit rule with the interval of `share` over groups of prompts, the
        mean share of layers it runs (depth), its difference to the full model and p (`paired_p`);
        "control": of everyone leaving at the rule's mean depth. "exit": the share of prompts that
        have left before a layer. "lens": the score of everyone reading there.
        """
        frame = pd.DataFrame([*self._rule_rows(), *self._layer_rows()])
        return frame.astype({"layer": "Int64"})

    def _rule_rows(self) -> Iterator[dict[str, object]]:
        for (rule, exits), score in product(self.rules.items(), self.scores):
            full = self.score(self.everyone_at(self.n_layers), score)
            for statistic, values in (
                ("rule", self.score(exits, score)),
                ("control", self.fixed(exits, score)),
            ):
                keys = {"statistic": statistic, "rule": rule, "score": score, "layer": pd.NA}
                lost = values - full
                p = paired_p(lost, groups=self.prompt_groups, seed=self.analysis.seed)
                tests = {"difference": float(lost.mean()), "p": float(p)}
                yield self._row(keys, values, float(exits.mean()), **tests)

    def _layer_rows(self) -> Iterator[dict[str, object]]:
        for (rule, exits), tap in product(self.rules.items(), range(self.n_layers + 1)):
            keys = {"statistic": "exit", "rule": rule, "score": "share that has left", "layer": tap}
            yield self._row(keys, (exits <= tap) * 1.0, float(tap))
        for score, tap in product(self.scores, range(self.n_layers + 1)):
            keys = {"statistic": "lens", "rule": "everyone", "score": score, "layer": tap}
            yield self._row(keys, self.score(self.everyone_at(tap), score), float(tap))

    def _row(
        self,
        keys: dict[str, object],
        values: np.ndarray,
        depth: float,
        *,
        difference: float = np.nan,
        p: float = np.nan,
    ) -> dict[str, object]:
        columns = self._share(values).columns()
        n_prompts = columns.pop("n_prompts")
        tests = {"depth": depth / self.n_layers, "difference": difference, "p": p}
        return keys | columns | tests | {"n_prompts": n_prompts}

    def plot(self) -> go.Figure:
        """Draw who has left before which layer, and what the lens says there."""
        frame = pd.DataFrame(self._layer_rows())
        is_exit = frame["statistic"] == "exit"
        frame["panel"] = np.where(
            is_exit, "share of prompts that have left", "if everyone read here"
        )
        frame["line"] = np.where(is_exit, frame["rule"], frame["score"])
        title = "How early the prediction could be read out, before each layer"
        figure = lines_over_depth(frame, y="mean", groups="line", panels="panel", title=title)
        return figure.update_yaxes(range=[-0.03, 1.03])

    def findings(self) -> tuple[Finding, ...]:
        """Return what a rule gains on a fixed exit, and where the final choice is first there."""
        return findings_of(self)
