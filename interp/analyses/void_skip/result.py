"""Scores with layers skipped, next to their controls and the full model's."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.void_skip.evaluations import EVALUATIONS, FULL
from interp.analyses.void_skip.findings import CONTROL, Comparison, finding_of
from interp.analyses.void_skip.masks import KINDS
from interp.analyses.void_skip.samples import Sample
from interp.analyses.void_skip.scores import ACCURACY, CHOICE, SHARES, TEXT, sign_of
from interp.analyses.void_skip.texts import NO_KNOWN_ANSWER, TEXT_SCORES
from interp.figures.plots import lines_over_depth
from interp.result import Compared, Finding, Result
from interp.stats.paired import PairedDifference

if TYPE_CHECKING:
    from interp.analyses.void_skip import VoidSkip

SCORES = (ACCURACY, "log_prob", "logit_diff", CHOICE, *TEXT_SCORES, TEXT)
_AXIS = {ACCURACY: "accuracy", CHOICE: "choice accuracy", TEXT: "perplexity"}


@dataclass(frozen=True, repr=False)
class VoidSkipResult(Result):
    """Scores [prompt evaluation alpha kind] by name, the full model's [prompt] as "full.NAME".

    `has` tells by name which of all prompts [prompt] have a score; without it, all have.
    """

    analysis: "VoidSkip"
    arrays: dict[str, np.ndarray]
    has: Mapping[str, np.ndarray] = field(default_factory=dict)

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

    def _sample(self, score: str) -> Sample:
        has = self.has.get(score, slice(None))
        groups = None if self.prompt_groups is None else self.prompt_groups[has]
        weights = self.arrays["n_tokens"][has] if score == TEXT else None
        return Sample(score in SHARES, weights, groups, self.analysis.seed)

    def gain(
        self, score: str, evaluation: str, *, over: str, alpha: float | None = None
    ) -> PairedDifference:
        """Return how much better voids are than a control, in the score's unit; negative: worse."""
        better, worse = (
            self.per_prompt(score, evaluation, alpha=alpha, kind=kind)
            for kind in ("voids", over)[:: sign_of(score)]
        )
        return self._sample(score).more(better, worse)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per score, evaluation, alpha and kind of mask.

        The full model's are the evaluation "full model". mean, low, high (95 %, of shares Wilson's,
        else bootstrap-t over groups); difference to the full model with interval and p (flipped
        signs); gain of the voids over this control, positive where voids are better, with interval
        and p. Each row's interval and p are its own. skipped and skipped_last
        are shares of layers, over all tokens and at the last; saved the share of a forward that is
        left out by the pass that skips, saved_in_all counts the first pass, where voids need one.
        """
        return self._frame.copy()

    @cached_property
    def _frame(self) -> pd.DataFrame:
        full = pd.DataFrame(map(self._full_row, self.scores))
        return pd.concat([full, *self._rows()], ignore_index=True)

    def _full_row(self, score: str) -> dict[str, object]:
        columns = self._sample(score).estimate(self.arrays[f"full.{score}"]).columns()
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
            full = np.broadcast_to(self.arrays[f"full.{score}"][:, None, None, None], values.shape)
            voids = np.broadcast_to(values[..., :1], values.shape)
            sample = self._sample(score)
            numbers = sample.columns(values) | sample.compared("difference", values, full)
            gains = sample.compared("gain", *(voids, values)[:: sign_of(score)])
            numbers |= {name: np.where(is_voids, np.nan, gain) for name, gain in gains.items()}
            yield ways.assign(score=score, **numbers, **shared, n_prompts=len(values))

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
        """Return what skipping voids saves over skipping as many random layers."""
        ways = [(self.main_score, "read-out"), (self.main_score, "two-pass")]
        has_texts = NO_KNOWN_ANSWER in self.arrays
        ways.append((NO_KNOWN_ANSWER if has_texts else self.main_score, "two-pass, keys kept"))
        return tuple(finding_of(self.comparison(*way)) for way in ways)

    def comparison(self, score: str, evaluation: str) -> Comparison:
        """Return a score with voids skipped, next to random layers, a rival and the full model."""
        sample, sign = self._sample(score), sign_of(score)
        by_kind = {kind: self.per_prompt(score, evaluation, kind=kind) for kind in KINDS}
        others = [kind for kind in KINDS[1:] if kind != CONTROL]
        best = sample.best(sign * np.stack([by_kind[kind] for kind in others], axis=1))
        return Comparison(
            score,
            evaluation,
            sample.estimate(by_kind["voids"]),
            control=Compared(CONTROL, sample.estimate(by_kind[CONTROL])),
            rival=Compared(others[best.index], sample.estimate(sign * best.measured)),
            full=sample.estimate(self.arrays[f"full.{score}"]),
            gain=self.gain(score, evaluation, over=CONTROL).estimate,
        )
