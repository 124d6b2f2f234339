"""The effects of skipped layers, summarised over prompts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.layer_skip.findings import findings_of
from interp.figures.plots import grids_over_bars
from interp.metrics import CHANGES, OUTCOMES
from interp.result import Finding, Result
from interp.stats.estimate import estimates
from interp.stats.shares import share
from interp.sweeps.positions import positions_skipped
from interp.sweeps.staircase import Scope

if TYPE_CHECKING:
    from interp.analyses.layer_skip import LayerSkip

Statistic = Literal["max", "percentile", "mean"]
_SHOWN = {
    "future": "future tokens",
    "direct": "direct",
    "direct_future": "direct, future tokens",
}
_FALLS = ("log_prob", "logit_diff")
_BARS = {"log_prob": f"loss of {OUTCOMES['log_prob']}", "output": CHANGES["l2"]}


@dataclass(frozen=True, repr=False)
class LayerSkipResult(Result):
    """Effects per prompt, by scope and statistic.

    `arrays["all.max"]` is [prompt skipped affected], `arrays["all.output_max"]` [prompt skipped].
    """

    analysis: "LayerSkip"
    arrays: dict[str, np.ndarray]
    scopes: tuple[Scope, ...]

    @property
    def shown(self) -> dict[str, str]:
        """Return what each scope is called: where layers are skipped, or who is looked at."""
        everywhere = positions_skipped(self.analysis.skipped_positions)
        return {scope: _SHOWN.get(scope, everywhere) for scope in self.scopes}

    @property
    def has_answers(self) -> bool:
        """Tell whether outcomes of answers were measured (not by interp 0.1)."""
        return "all.log_prob" in self.arrays

    @property
    def costs(self) -> np.ndarray:
        """Return what every skip at all positions costs [prompt skipped].

        Nats of the answer's log-probability, or ||p - p'|| where no answer is known.
        """
        return self.falls("all", "log_prob") if self.has_answers else self.arrays["all.output_mean"]

    @property
    def change_of_later_tokens(self) -> np.ndarray:
        """Return what a skip changes at tokens after it, mean over later layers [prompt skipped].

        The last layer is left out, after which there is none to change.
        """
        means = self.arrays["future.mean"]
        later = np.triu(np.ones(means.shape[1:], bool), 1)
        changes = np.where(later, means, 0).sum(2)[:, :-1]
        return np.asarray(changes / later.sum(1)[:-1])

    def falls(self, scope: str, outcome: str) -> np.ndarray:
        """Return by how much an outcome is lower after every skip [prompt skipped]."""
        clean = self.arrays[f"clean.{outcome}"]
        return np.asarray(clean[:, None] - self.arrays[f"{scope}.{outcome}"])

    def grid(self, scope: str, *, statistic: Statistic = "max") -> np.ndarray:
        """Return the effect of every skipped layer (row) on every layer (column) over prompts."""
        maxima, means = self.arrays[f"{scope}.max"], self.arrays[f"{scope}.mean"]
        return self._over_prompts(maxima, means)[statistic]

    def _over_prompts(self, maxima: np.ndarray, means: np.ndarray) -> dict[str, np.ndarray]:
        percentile = np.percentile(maxima, self.analysis.percentile, axis=0)
        return {"max": maxima.max(0), "percentile": percentile, "mean": means.mean(0)}

    def to_frame(self) -> pd.DataFrame:
        """Return one row per scope, effect, skipped and affected layer.

        Effects: "layer" (relative change of a later layer's contribution), "output" (L2 change of
        the probabilities), "kl" (nats), of the answer's first token "log_prob" (loss of nats) and
        "logit_diff" (loss, where a wrong answer is given), and "accuracy" (after the skip; `clean`
        is without). Statistics over prompts: max and percentile of each prompt's maximum over the
        positions measured; mean with its 95 % interval (bootstrap-t over groups, of accuracy
        Wilson's; each row's own); which prompt and position (0 is the first) made the maximum.
        """
        frame = pd.concat(
            [rows for scope in self.scopes for rows in self._rows(scope)], ignore_index=True
        )
        return frame.astype(dict.fromkeys(("skipped", "affected", "prompt", "position"), "Int64"))

    def _rows(self, scope: str) -> Iterator[pd.DataFrame]:
        maxima, means = self.arrays[f"{scope}.max"], self.arrays[f"{scope}.mean"]
        skipped, affected = np.triu_indices(maxima.shape[1])
        at = (slice(None), skipped, affected)
        who = maxima[at].argmax(0)
        where = self.arrays[f"{scope}.position"][at][who, np.arange(len(who))]
        keys = {"scope": scope, "effect": "layer", "skipped": skipped, "affected": affected}
        made_by = {"prompt": who, "position": where}
        yield pd.DataFrame(keys | self._columns(maxima[at], means[at]) | made_by)
        for effect, top, mean in self._on_output(scope):
            keys = {"scope": scope, "effect": effect, "skipped": np.arange(top.shape[1])}
            yield pd.DataFrame(keys | self._columns(top, mean) | {"prompt": top.argmax(0)})
        if f"{scope}.accuracy" in self.arrays:
            yield self._accuracy(scope)

    def _on_output(self, scope: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield effects on the output with their maxima and means over positions."""
        for effect in ("output", "kl"):
            if f"{scope}.{effect}_max" in self.arrays:
                top, mean = (self.arrays[f"{scope}.{effect}_{of}"] for of in ("max", "mean"))
                yield effect, top, mean
        for effect in _FALLS:
            if f"{scope}.{effect}" in self.arrays:
                yield effect, self.falls(scope, effect), self.falls(scope, effect)

    def _accuracy(self, scope: str) -> pd.DataFrame:
        """Return the share of prompts whose answer comes first after each skip."""
        after = self.arrays[f"{scope}.accuracy"]
        shares = [share(column, groups=self.prompt_groups) for column in after.T]
        rows = pd.DataFrame([each.columns() for each in shares]).drop(columns="n_prompts")
        rows = rows.assign(scope=scope, effect="accuracy", skipped=np.arange(after.shape[1]))
        return rows.assign(clean=self.arrays["clean.accuracy"].mean())

    def _columns(self, maxima: np.ndarray, means: np.ndarray) -> dict[str, np.ndarray]:
        interval = estimates(means, groups=self.prompt_groups, seed=self.analysis.seed)
        columns = self._over_prompts(maxima, means)
        return columns | {"low": interval["low"], "high": interval["high"]}

    def plot(self) -> go.Figure:
        """Draw a grid per scope, skipped by affected layer, and the output's change below.

        Colours saturate at 1, as published.
        """
        earlier = np.tri(self.arrays["all.max"].shape[1], k=-1, dtype=bool)
        grids = {
            name: np.where(earlier, np.nan, self.grid(scope)) for scope, name in self.shown.items()
        }
        frame = self.to_frame()
        effect = "log_prob" if self.has_answers else "output"
        output = frame[frame["effect"] == effect]
        bars = {self.shown[str(scope)]: rows for scope, rows in output.groupby("scope", sort=False)}
        is_last = self.analysis.output_positions == "last"
        of_positions = "at the last token" if is_last else "mean"
        title = (
            "What skipping a layer changes:"
            f" later layers (largest relative change), and the output ({of_positions})"
        )
        return grids_over_bars(
            grids,
            bars,
            x="affected layer",
            y="skipped layer",
            bars_label=_BARS[effect],
            title=title,
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return which layer the output needs most, and how far future tokens need a layer."""
        return findings_of(self)
