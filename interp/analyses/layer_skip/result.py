"""The effects of skipped layers, summarised over prompts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.figures.plots import grids_over_bars
from interp.figures.words import mlp_named
from interp.result import Compared, Finding, Result
from interp.stats.estimate import estimate, estimates
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
_PARTS = {"layer": "layer", "attention": "attention", "mlp": "MLP"}
_BARS = {"answer": "fall of the answer's logit", "output": "change of the probabilities"}


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
    def _output_effect(self) -> Literal["answer", "output"]:
        """Return what findings are about: the answer, or all probabilities if none is known."""
        return "answer" if "all.answer_fall" in self.arrays else "output"

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
        the probabilities) and "answer" (fall of the answer's logit). Statistics over prompts: max
        and percentile of each prompt's maximum over the positions measured; mean with its 95 %
        bootstrap interval; which prompt and position (0 is the first) made the maximum.
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
        for effect, top, mean in (
            ("output", "output_max", "output_mean"),
            ("answer", "answer_fall", "answer_fall"),
        ):
            if f"{scope}.{top}" in self.arrays:
                per_prompt = self.arrays[f"{scope}.{top}"]
                keys = {"scope": scope, "effect": effect, "skipped": np.arange(per_prompt.shape[1])}
                numbers = self._columns(per_prompt, self.arrays[f"{scope}.{mean}"])
                yield pd.DataFrame(keys | numbers | {"prompt": per_prompt.argmax(0)})

    def _columns(self, maxima: np.ndarray, means: np.ndarray) -> dict[str, np.ndarray]:
        interval = estimates(means, seed=self.analysis.seed)
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
        output = frame[frame["effect"] == self._output_effect]
        bars = {self.shown[str(scope)]: rows for scope, rows in output.groupby("scope", sort=False)}
        title = (
            "What skipping a layer changes:"
            " later layers (largest relative change), and the output (mean)"
        )
        return grids_over_bars(
            grids,
            bars,
            x="affected layer",
            y="skipped layer",
            bars_label=_BARS[self._output_effect],
            title=title,
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return which layer the output needs most, and how far future tokens need a layer."""
        part, seed = _PARTS[self.analysis.part], self.analysis.seed
        of_answer = self._output_effect == "answer"
        per_layer = self.arrays["all.answer_fall" if of_answer else "all.output_mean"].T
        most = int(per_layer.mean(1).argmax())
        cost, others = estimate(per_layer[most], seed=seed), np.delete(per_layer, most, axis=0)
        control = None
        if len(others):
            average = estimate(others.mean(0), seed=seed)
            control = Compared("the other layers, on average", average)
        skipped = mlp_named(most) if part == "MLP" else f"layer {most}"
        skipped += "'s attention" if part == "attention" else ""
        if of_answer:
            claim = f"Skipping {skipped} costs most: {cost:.2f} of the answer's logit."
        else:
            claim = f"Skipping {skipped} changes the probabilities most: by {cost:.2f} (L2)."
        change = "loss of the answer's logit" if of_answer else "change of the probabilities (L2)"
        first = Finding(
            claim,
            cost,
            f"{change} without the {part} that the output needs most",
            control=control,
        )
        return (first, *self._future())

    def _future(self) -> Iterator[Finding]:
        """Yield how much a skipped layer changes later layers at later tokens."""
        if "future" not in self.scopes or self.arrays["all.max"].shape[1] < 2:
            return
        later = (slice(None), *np.triu_indices(self.arrays["all.max"].shape[1], 1))
        future = estimate(self.arrays["future.mean"][later].mean(1), seed=self.analysis.seed)
        yield Finding(
            "A skipped layer changes what later layers write"
            f" at later tokens by {future:.2f} of its size.",
            future,
            "relative change of later layers' writes at tokens behind the skip, mean over layers",
        )
