"""What is left without more and more layers, by order, over prompts."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.layer_removal.findings import findings_of
from interp.analyses.layer_removal.scores import GENERATED, SCORES, SHARES
from interp.figures.plots import lines_over_depth
from interp.result import Finding, Result
from interp.stats.estimate import estimates
from interp.stats.groups import Grouping
from interp.stats.picked import Picked, picked
from interp.stats.shares import shares

if TYPE_CHECKING:
    from interp.analyses.layer_removal import LayerRemoval

RANDOM, WHOLE = "random", "whole model"
_PANELS = {
    "accuracy": "answer comes first",
    GENERATED: "text holds the answer",
    "choice": "answer ahead of other choices",
    "log_prob": "log-probability of the answer (nats)",
}
_X = "layers left out"


@dataclass(frozen=True, repr=False)
class LayerRemovalResult(Result):
    """Arrays: scores [prompt order step score], clean [prompt score], removed, chance, ….

    Where texts are written, texts [prompt order step] and texts.clean [prompt]. Orders are those
    asked for, then the random ones.
    """

    analysis: "LayerRemoval"
    arrays: dict[str, np.ndarray]

    @property
    def n_layers(self) -> int:
        """Return the number of layers of the whole model."""
        return int(self.arrays["n_layers"][0])

    @property
    def names(self) -> tuple[str, ...]:
        """Return the orders that were asked for."""
        return self.analysis.orders

    @property
    def counts(self) -> list[int]:
        """Return how many layers are left out, at each step."""
        return self.analysis.counts(self.n_layers)

    def counts_of(self, score: str) -> list[int]:
        """Return how many layers are left out where a score is known."""
        return self.analysis.text_counts(self.n_layers) if score == GENERATED else self.counts

    @property
    def scores(self) -> tuple[str, ...]:
        """Return what was scored; choices only where there are any."""
        known = [s for s in SCORES if s != "choice" or np.isfinite(self.clean("choice")).any()]
        return (*known, GENERATED) if "texts" in self.arrays else tuple(known)

    def clean(self, score: str) -> np.ndarray:
        """Return a score of the whole model [prompt]."""
        if score == GENERATED:
            return self.arrays["texts.clean"]
        return np.asarray(self.arrays["clean"][:, SCORES.index(score)])

    def values(self, score: str) -> np.ndarray:
        """Return a score [prompt order step]; the last orders are random ones."""
        if score == GENERATED:
            return self.arrays["texts"]
        return np.asarray(self.arrays["scores"][..., SCORES.index(score)])

    def curves(self, score: str) -> np.ndarray:
        """Return a score [prompt order step] of the orders asked for, and the mean random one."""
        values, n = self.values(score), len(self.names)
        return np.concatenate([values[:, :n], values[:, n:].mean(1, keepdims=True)], axis=1)

    @cached_property
    def best(self) -> Picked:
        """Return the order that keeps most accuracy, over all steps, and what it keeps [prompt]."""
        area = self.curves("accuracy")[:, :-1].mean(2)
        return picked(area, groups=self.prompt_groups, seed=self.analysis.seed)

    def crossed(self, values: np.ndarray) -> np.ndarray:
        """Return values [prompt order ...] of the order picked on the other half [prompt ...]."""
        half = Grouping.of(len(values), self.prompt_groups).half(seed=self.analysis.seed)
        of_first, of_second = self.best.halves
        return np.asarray(values[np.arange(len(values)), np.where(half, of_second, of_first)])

    def layers(self, order: str) -> list[str]:
        """Return which layers an order leaves out, the first one first; two if halves differ.

        The first was made on one half of the prompts, for the other.
        """
        of = self.arrays["removed"][:, self.names.index(order)].astype(int)
        return list(dict.fromkeys(" ".join(map(str, row)) for row in of[self._by_half]))

    @property
    def _by_half(self) -> np.ndarray:
        """Return a prompt of each half, first of the one that did not make the first's orders."""
        is_first = self.arrays["is_first"].astype(bool)
        return np.array([np.flatnonzero(is_first == of)[0] for of in np.unique(is_first)])

    def to_frame(self) -> pd.DataFrame:
        """Return one row per score, order and number of layers removed.

        Scores are `SCORES` and "generated" (the share of texts that hold the answer); mean, low,
        high (95 %, of shares Wilson's, else bootstrap-t over groups) over n_prompts. `order` is
        "whole model" with nothing removed, "random" is the mean of all that were drawn. `layers`
        are those removed; where halves differ, theirs in turn, with "/" between.
        """
        return pd.concat(self._rows(), ignore_index=True)

    def _rows(self) -> Iterator[pd.DataFrame]:
        for score in self.scores:
            whole = self._columns(score, self.clean(score)[:, None])
            yield pd.DataFrame(
                {"score": score, "order": WHOLE, "removed": [0], "layers": ""} | whole
            )
            for i, order in enumerate((*self.names, RANDOM)):
                counts = self.counts_of(score)
                named = [self._named(order, count) for count in counts]
                keys = {"score": score, "order": order, "removed": counts, "layers": named}
                yield pd.DataFrame(keys | self._columns(score, self.curves(score)[:, i]))

    def _named(self, order: str, count: int) -> str:
        if order == RANDOM:
            return ""
        cut = [" ".join(layers.split()[:count]) for layers in self.layers(order)]
        return " / ".join(dict.fromkeys(cut))

    def _columns(self, score: str, values: np.ndarray) -> dict[str, np.ndarray]:
        has = np.isfinite(values).all(1)
        groups = self.groups_of(has)
        if score in SHARES:
            return shares(values[has], groups=groups)
        return estimates(values[has], groups=groups, seed=self.analysis.seed)

    def plot(self) -> go.Figure:
        """Draw what is left against the number of layers left out, a line per order.

        The grey band holds all random orders, the grey line is their mean.
        """
        frame = self.to_frame()
        frame = frame[frame["score"].isin(_PANELS)]
        whole = frame[frame["order"] == WHOLE]
        lines = [
            pd.concat([whole[whole["score"] == score].assign(order=order), of])
            for order, of_order in frame[frame["order"] != WHOLE].groupby("order", sort=False)
            for score, of in of_order.groupby("score", sort=False)
        ]
        shown = pd.concat(lines).rename(columns={"removed": _X}).drop(columns=["low", "high"])
        order = {panel: i for i, panel in enumerate(_PANELS)}
        shown = shown.sort_values("score", key=lambda s: s.map(order), kind="stable")
        shown["panel"] = shown["score"].map(_PANELS)
        figure = lines_over_depth(
            shown,
            y="mean",
            groups="order",
            panels="panel",
            title="What is left without more and more layers, by the order in which they go",
            x=_X,
        )
        grey = {"line": {"color": "grey", "dash": "dot"}, "marker": {"color": "grey"}}
        black = {"line": {"color": "black"}, "marker": {"color": "black"}}  # there are six colours
        figure.update_traces(black, selector={"name": "greedy"})
        figure.update_traces(grey, selector={"name": RANDOM})
        for col, score in enumerate((s for s in _PANELS if s in self.scores), 1):
            figure.add_scatter(**self._band(score), row=1, col=col)
            if score in SHARES:
                figure.update_yaxes(range=[-0.03, 1.03], row=1, col=col)
        return figure

    def _band(self, score: str) -> dict[str, Any]:
        """Return a trace that fills the area between the lowest and the highest random order."""
        drawn = np.nanmean(self.values(score)[:, len(self.names) :], axis=0)
        whole, counts = np.nanmean(self.clean(score)), [0, *self.counts_of(score)]
        low, high = ([whole, *end] for end in (drawn.min(0), drawn.max(0)))
        return {
            "x": [*counts, *reversed(counts)],
            "y": np.array([*high, *reversed(low)], np.float32),
            "fill": "toself",
            "fillcolor": "rgba(128, 128, 128, 0.2)",
            "line": {"width": 0},
            "mode": "lines",
            "hoverinfo": "skip",
            "showlegend": False,
            "legendgroup": RANDOM,
        }

    def findings(self) -> tuple[Finding, ...]:
        """Return what the best order saves, what choices hide, and how many layers can go."""
        return findings_of(self)
