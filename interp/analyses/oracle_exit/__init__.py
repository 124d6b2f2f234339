"""How early could a prediction be read out: with hindsight, and by a rule that needs none?

The oracle exits in front of the first layer at which the logit lens already makes the model's final
choice; it has to run the whole model to know which, and is a bound, not a method. The rule exits
where the lens has made the same choice `k` times in a row. Both skip all later layers of a token,
so they are what skipping voids (void_skip) has to be compared with; their own control exits
everywhere in front of one layer, at the same mean depth.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from interp.analysis import Analysis, Cost, Finding, Result
from interp.errors import AnalysisError
from interp.figures.plots import lines_over_depth
from interp.models import Model
from interp.replay import Recording
from interp.result import old_finding
from interp.shapes import Tensors
from interp.stats.bootstrap import bootstrap_interval
from interp.stats.paired import Difference
from interp.stats.rates import Rate
from interp.sweeps.lens import choices_of, held
from interp.tasks.batch import TokenBatch

ORACLE, SETTLED = "oracle", "oracle, settled"
_AGREES, _RIGHT = "agrees with the full model", "accuracy"


@dataclass(frozen=True)
class OracleExit(Analysis):
    """Read the prediction at the last position in front of an early layer; the rule asks for
    `stable_for` equal choices.
    """

    stable_for: tuple[int, ...] = (2, 3)
    seed: int = 0
    question: ClassVar[str] = (
        "How early could the prediction be read out, with hindsight or by a rule?"
    )
    how: ClassVar[str] = (
        "The prediction is read out by the lens in front of every layer. The oracle leaves where"
        " the final choice is first there; rules that need no hindsight, and leaving everywhere at"
        " one layer, are compared with the full model."
    )
    caveat: ClassVar[str] = (
        "The oracle has to run the whole model to know where to leave: it is a bound and saves"
        " nothing."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stable_for:
            raise AnalysisError(
                "stable_for is empty; at least one number of equal choices is needed"
            )
        for k in self.stable_for:
            if k < 2:
                raise AnalysisError(f"stable_for={k}; at least 2 equal choices in a row are needed")

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise AnalysisError for a rule that asks for more equal choices than there are readings."""
        if max(self.stable_for) > model.n_layers + 1:
            raise AnalysisError(
                f"stable_for={max(self.stable_for)}; the model has {model.n_layers + 1} places to"
                " read"
            )

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return the lens's choice at the last position [batch tap], the last tap behind all
        layers, and the answer.
        """
        answer = torch.full((len(shard.prompts),), -1) if shard.answer is None else shard.answer
        return {"choice": choices_of(recording).cpu(), "answer": answer.cpu()}

    def combine(self, parts: Sequence[Tensors]) -> "OracleExitResult":
        """Return exits and scores of all prompts."""
        choice, answer = (
            torch.cat([part[name] for part in parts]).numpy() for name in ("choice", "answer")
        )
        return OracleExitResult(self, choice, answer)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Nothing beyond the clean pass but `n_layers` + 1 unembeddings of the last position."""
        n = len(shard.prompts)
        return Cost(0.0, n * (model.n_layers + 2), held(n, model.d_vocab))


def first_agreeing(choice: np.ndarray, *, is_settled: bool = False) -> np.ndarray:
    """Return the first tap [prompt] of `choice` [prompt tap] that is the last one's; if settled,
    with all between equal.
    """
    agrees = choice == choice[:, -1:]
    if is_settled:
        agrees = np.logical_and.accumulate(agrees[:, ::-1], axis=1)[:, ::-1]
    return np.asarray(agrees.argmax(1))


def first_stable(choice: np.ndarray, k: int) -> np.ndarray:
    """Return the first tap [prompt] at which the last `k` choices [prompt tap] are equal; the last
    tap if none is.
    """
    n_taps = choice.shape[1]
    runs = np.stack(
        [
            (choice[:, tap - k + 1 : tap + 1] == choice[:, [tap]]).all(1)
            for tap in range(k - 1, n_taps)
        ],
        axis=1,
    )
    return np.asarray(np.where(runs.any(1), runs.argmax(1) + k - 1, n_taps - 1))


@dataclass(frozen=True, repr=False)
class OracleExitResult(Result):
    """The lens's choices [prompt tap] at the last position, and the answers [prompt], -1 where
    there is none.
    """

    analysis: OracleExit
    choice: np.ndarray
    answer: np.ndarray

    @property
    def n_layers(self) -> int:
        """Return the number of layers; there is one tap more."""
        return int(self.choice.shape[1]) - 1

    @property
    def rules(self) -> dict[str, np.ndarray]:
        """Map every way to exit to the layer [prompt] in front of which it reads; `n_layers`:
        behind all.
        """
        exits = {
            ORACLE: first_agreeing(self.choice),
            SETTLED: first_agreeing(self.choice, is_settled=True),
        }
        return exits | {
            f"same choice {k} times": first_stable(self.choice, k) for k in self.analysis.stable_for
        }

    @property
    def scores(self) -> tuple[str, ...]:
        """Return what exits are scored by: agreement and, where every prompt has an answer,
        accuracy.
        """
        return (_AGREES, _RIGHT) if (self.answer >= 0).all() else (_AGREES,)

    def score(self, exits: np.ndarray, score: str) -> np.ndarray:
        """Return [prompt] whether what is read in front of these layers [prompt] is right, or the
        model's choice.
        """
        read = self.choice[np.arange(len(exits)), exits]
        return np.asarray(
            read == (self.answer if score == _RIGHT else self.choice[:, -1]), dtype=np.float64
        )

    def fixed(self, exits: np.ndarray) -> np.ndarray:
        """Return exits everywhere in front of one layer: the mean depth, rounded up."""
        return np.full_like(exits, int(np.ceil(exits.mean())))

    def to_frame(self) -> pd.DataFrame:
        """Return columns statistic, rule, score, layer, mean, low, high, depth, difference, p,
        n_prompts.

        "rule": the score of an exit rule with its 95 % bootstrap interval over prompts, the mean
        share of layers it runs (depth), its difference to the full model and p (McNemar's exact
        test); "control": of a fixed exit at the rule's mean depth. "exit": the share of prompts
        that have left in front of a layer. "lens": the score of everyone reading there.
        """
        frame = pd.concat([*self._rule_rows(), *self._layer_rows()], ignore_index=True)
        return frame.astype({"layer": "Int64"})

    def _rule_rows(self) -> Iterator[pd.DataFrame]:
        for rule, exits in self.rules.items():
            for statistic, taken in (("rule", exits), ("control", self.fixed(exits))):
                for score in self.scores:
                    values = self.score(taken, score)
                    full = self.score(np.full_like(exits, self.n_layers), score)
                    difference = Difference.of(values - full, seed=self.analysis.seed)
                    row = {
                        "statistic": statistic,
                        "rule": rule,
                        "score": score,
                        "layer": pd.NA,
                        **self._interval(values),
                    }
                    row |= {
                        "depth": float(taken.mean()) / self.n_layers,
                        "difference": difference.mean,
                        "p": difference.p,
                    }
                    yield pd.DataFrame([row | {"n_prompts": len(values)}])

    def _layer_rows(self) -> Iterator[pd.DataFrame]:
        taps = range(self.n_layers + 1)
        kinds = [("exit", rule, "share that has left") for rule in self.rules]
        kinds += [("lens", "everyone", score) for score in self.scores]
        for statistic, rule, score in kinds:
            for tap in taps:
                everyone = np.full(len(self.choice), tap)
                values = (
                    (self.rules[rule] <= tap) * 1.0
                    if statistic == "exit"
                    else self.score(everyone, score)
                )
                row = {
                    "statistic": statistic,
                    "rule": rule,
                    "score": score,
                    "layer": tap,
                    **self._interval(values),
                }
                row |= {"depth": tap / self.n_layers, "difference": np.nan, "p": np.nan}
                yield pd.DataFrame([row | {"n_prompts": len(values)}])

    def _interval(self, values: np.ndarray) -> dict[str, float]:
        (low,), (high,) = bootstrap_interval(values[:, None], seed=self.analysis.seed)
        return {"mean": float(values.mean()), "low": float(low), "high": float(high)}

    def plot(self) -> go.Figure:
        """Draw who has left in front of which layer, and what the lens says there."""
        frame = pd.concat(self._layer_rows(), ignore_index=True)
        frame["panel"] = frame["statistic"].map(
            {"exit": "share of prompts that have left", "lens": "if everyone read here"}
        )
        frame["line"] = np.where(frame["statistic"] == "exit", frame["rule"], frame["score"])
        title = "How early the prediction could be read out, in front of each layer"
        return lines_over_depth(
            frame, y="mean", groups="line", panels="panel", title=title
        ).update_yaxes(range=[-0.03, 1.03])

    def findings(self) -> tuple[Finding, ...]:
        """Return after which share of the layers the final choice is first there."""
        depths = Rate.of(self.rules[ORACLE] / self.n_layers, seed=self.analysis.seed)
        measure = "share of layers until the final choice is there, with hindsight"
        return (
            old_finding(self.summary(), depths.share, measure, depths.low, depths.high, depths.n),
        )

    def summary(self) -> str:
        """Say how deep the oracle goes, what the rules cost, and that the oracle needs the full
        pass.
        """
        score, rules = self.scores[-1], self.rules
        full = self.score(np.full(len(self.choice), self.n_layers), score).mean()
        depth, settled = (rules[name].mean() / self.n_layers for name in (ORACLE, SETTLED))
        said = " ".join(
            self._told(name, exits, score)
            for name, exits in rules.items()
            if name not in (ORACLE, SETTLED)
        )
        return (
            f"With hindsight the final choice is there after {depth:.0%} of {self.n_layers} layers"
            f" on average, and to stay after {settled:.0%} (the oracle: it runs the whole model to"
            f" know, and saves nothing). The full model's {score} is {full:.0%} ({len(self.choice)}"
            f" prompts). {said} Every reading of the lens costs an unembedding, which the depth"
            " does not count."
        )

    def _told(self, rule: str, exits: np.ndarray, score: str) -> str:
        own, fixed = self.score(exits, score), self.score(self.fixed(exits), score)
        gain = Difference.of(own - fixed, seed=self.analysis.seed)
        low, high = (100 * x for x in (gain.low, gain.high))
        difference = Difference.of(own - self.score(np.full_like(exits, self.n_layers), score))
        return (
            f"{rule[0].upper()}{rule[1:]}: {exits.mean() / self.n_layers:.0%} of the layers,"
            f" {own.mean():.0%} (against the full model p = {difference.p:.2g}); everyone leaving"
            f" in front of layer {self.fixed(exits)[0]}: {fixed.mean():.0%}; the rule is"
            f" {100 * gain.mean:+.0f} points [{low:+.0f} to {high:+.0f}], p = {gain.p:.2g}."
        )
