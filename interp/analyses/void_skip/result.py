"""Scores with layers skipped, next to their controls and the full model's."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.void_skip.evaluations import EVALUATIONS, FULL
from interp.analyses.void_skip.findings import Comparison, finding_of
from interp.analyses.void_skip.masks import KINDS
from interp.analyses.void_skip.scores import ACCURACY, CHOICE, LOGIT, TEXT, sign_of
from interp.analyses.void_skip.texts import NO_KNOWN_ANSWER, TEXT_SCORES
from interp.figures.plots import lines_over_depth
from interp.result import Compared, Finding, Result
from interp.stats.estimate import Estimate, estimate, estimates
from interp.stats.paired import PairedDifference, paired_p

if TYPE_CHECKING:
    from interp.analyses.void_skip import VoidSkip

SCORES = (ACCURACY, LOGIT, CHOICE, *TEXT_SCORES, TEXT)
_AXIS = {ACCURACY: "accuracy", CHOICE: "choice accuracy", TEXT: "perplexity"}


@dataclass(frozen=True, repr=False)
class VoidSkipResult(Result):
    """Scores [prompt evaluation alpha kind] by name, the full model's [prompt] as "full.NAME"."""

    analysis: "VoidSkip"
    arrays: dict[str, np.ndarray]
    n_tokens: np.ndarray | None = None

    @property
    def scores(self) -> tuple[str, ...]:
        """Return what was scored."""
        return tuple(name for name in SCORES if name in self.arrays)

    @property
    def main_score(self) -> str:
        """Return the score that figures and findings use."""
        return next(name for name in (ACCURACY, CHOICE, TEXT) if name in self.arrays)

    def per_prompt(
        self, score: str, evaluation: str, *, alpha: float | None = None, kind: str = "voids"
    ) -> np.ndarray:
        """Return a score of every prompt [prompt], random kinds averaged over draws."""
        chosen = self.analysis.alpha if alpha is None else alpha
        way = EVALUATIONS.index(evaluation), self.analysis.all_alphas.index(chosen)
        return np.asarray(self.arrays[score][:, *way, KINDS.index(kind)])

    def skipped(self, evaluation: str, *, alpha: float | None = None, kind: str = "voids") -> float:
        """Return the share of layers that are skipped, over all tokens."""
        return float(self.per_prompt("skipped", evaluation, alpha=alpha, kind=kind).mean())

    def saved(self, evaluation: str, *, alpha: float | None = None, kind: str = "voids") -> float:
        """Return the share of a forward that the pass that skips leaves out; 0 if all layers run.

        Where keys are kept, the share of a layer's weights that makes them is still needed.
        """
        skipped = self.skipped(evaluation, alpha=alpha, kind=kind)
        keys = float(self.arrays["key_share"].mean())
        of_bypass = {"two-pass": skipped, "two-pass, keys kept": skipped * (1 - keys)}
        return of_bypass.get(evaluation, 0.0)

    def _weights(self, score: str) -> np.ndarray | None:
        return self.n_tokens if score == TEXT else None

    def _estimate(self, score: str, values: np.ndarray) -> Estimate:
        return estimate(values, weights=self._weights(score), seed=self.analysis.seed)

    def _paired(self, score: str, differences: np.ndarray) -> PairedDifference:
        weights, seed = self._weights(score), self.analysis.seed
        return PairedDifference.of(differences, weights=weights, seed=seed)

    def gain(
        self, score: str, evaluation: str, *, over: str, alpha: float | None = None
    ) -> PairedDifference:
        """Return how much better voids are than a control, in the score's unit; negative: worse."""
        own, other = (
            self.per_prompt(score, evaluation, alpha=alpha, kind=kind) for kind in ("voids", over)
        )
        return self._paired(score, sign_of(score) * (own - other))

    def best_control(self, score: str, evaluation: str, *, alpha: float | None = None) -> str:
        """Return the control with the best mean score."""
        each = [self.per_prompt(score, evaluation, alpha=alpha, kind=k) for k in KINDS[1:]]
        means = np.average(each, axis=1, weights=self._weights(score))
        return KINDS[1 + int((sign_of(score) * means).argmax())]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per score, evaluation, alpha and kind of mask.

        The full model's are the evaluation "full model". mean, low, high (95 % bootstrap over
        prompts); difference to the full model with interval and p (paired); gain of the voids over
        this control, positive where voids are better, with interval and p. skipped and skipped_last
        are shares of layers, over all tokens and at the last; saved the share of a forward that is
        left out by the pass that skips, saved_in_all counts the first pass, where voids need one.
        """
        return self._frame.copy()

    @cached_property
    def _frame(self) -> pd.DataFrame:
        full = pd.DataFrame(map(self._full_row, self.scores))
        return pd.concat([full, *self._rows()], ignore_index=True)

    def _full_row(self, score: str) -> dict[str, object]:
        columns = self._estimate(score, self.arrays[f"full.{score}"]).columns()
        n_prompts = columns.pop("n_prompts")
        keys = {"score": score, "evaluation": FULL, "alpha": np.nan, "kind": "none"}
        shares = dict.fromkeys(("skipped", "skipped_last", "saved", "saved_in_all"), 0.0)
        return keys | columns | shares | {"n_prompts": n_prompts}

    def _rows(self) -> Iterator[pd.DataFrame]:
        each = list(product(EVALUATIONS, self.analysis.all_alphas, KINDS))
        ways = pd.DataFrame(each, columns=["evaluation", "alpha", "kind"])
        is_voids = (ways["kind"] == "voids").to_numpy()
        needs_first = is_voids & ways["evaluation"].str.startswith("two-pass").to_numpy()
        saved = np.array([self.saved(way, alpha=alpha, kind=kind) for way, alpha, kind in each])
        shared = {
            "skipped": self.arrays["skipped"].mean(0).ravel(),
            "skipped_last": self.arrays["skipped.last"].mean(0).ravel(),
            "saved": saved,
            "saved_in_all": saved - needs_first,
        }
        for score in self.scores:
            values = self.arrays[score]
            lost = values - self.arrays[f"full.{score}"][:, None, None, None]
            gains = self._tested(score, "gain", sign_of(score) * (values[..., :1] - values))
            numbers = self._means(score, values) | self._tested(score, "difference", lost)
            numbers |= {name: np.where(is_voids, np.nan, gain) for name, gain in gains.items()}
            yield ways.assign(score=score, **numbers, **shared, n_prompts=len(values))

    def _means(self, score: str, values: np.ndarray) -> dict[str, np.ndarray]:
        """Return mean, low and high of values [prompt ...]: one number a way of skipping."""
        flat = values.reshape(len(values), -1)
        columns = estimates(flat, weights=self._weights(score), seed=self.analysis.seed)
        return {name: columns[name] for name in ("mean", "low", "high")}

    def _tested(self, score: str, name: str, differences: np.ndarray) -> dict[str, np.ndarray]:
        """Return the columns of paired differences [prompt ...]: NAME, NAME_low, _high and _p."""
        mean, low, high = self._means(score, differences).values()
        p = np.array([paired_p(way) for way in differences.reshape(len(differences), -1).T])
        return {name: mean, f"{name}_low": low, f"{name}_high": high, f"{name}_p": p}

    def plot(self) -> go.Figure:
        """Draw the score against alpha by evaluation: voids, controls and the full model."""
        score = self.main_score
        frame = self.to_frame().query("score == @score")
        is_full = frame["evaluation"] == FULL
        everywhere = product(EVALUATIONS, self.analysis.all_alphas)
        full = [
            frame[is_full].assign(alpha=alpha, evaluation=way, kind=FULL)
            for way, alpha in everywhere
        ]
        curves = pd.concat([frame[~is_full], *full]).rename(columns={"alpha": "α"})
        title = f"{_AXIS[score].capitalize()} with void layers skipped, and with as many others"
        if score == TEXT:
            curves[["mean", "low", "high"]] = np.exp(curves[["mean", "low", "high"]])
        figure = lines_over_depth(
            curves, y="mean", groups="kind", panels="evaluation", title=title, x="α"
        )
        if score != TEXT:
            figure.update_yaxes(range=[-0.03, 1.03])
        return figure.update_yaxes(title_text=_AXIS[score], col=1)

    def findings(self) -> tuple[Finding, ...]:
        """Return scores with voids skipped, against the best control and the full model."""
        ways = [(self.main_score, "read-out"), (self.main_score, "two-pass")]
        has_texts = NO_KNOWN_ANSWER in self.arrays
        ways.append((NO_KNOWN_ANSWER if has_texts else self.main_score, "two-pass, keys kept"))
        return tuple(finding_of(self.comparison(*way)) for way in ways)

    def comparison(self, score: str, evaluation: str) -> Comparison:
        """Return a score with voids skipped, with the best control and the full model's."""
        control = self.best_control(score, evaluation)
        voids, other = (
            self._estimate(score, self.per_prompt(score, evaluation, kind=kind))
            for kind in ("voids", control)
        )
        return Comparison(
            score,
            evaluation,
            voids,
            control=Compared(control, other),
            full=self._estimate(score, self.arrays[f"full.{score}"]),
            gain=self.gain(score, evaluation, over=control),
        )
