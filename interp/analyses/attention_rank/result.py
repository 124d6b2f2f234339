"""Ranks of heads' patterns, beside other patterns, and what skipping attention costs by layer."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.attention_rank.spectra import MEASURES, VIEWS, ranks, uniform, without_first
from interp.figures.plots import Axes, grid_below, lines_over_depth
from interp.figures.words import by_sign
from interp.result import Compared, Finding, Result
from interp.stats.estimate import Estimate, estimate, estimates
from interp.stats.groups import Array
from interp.stats.ranks import partial_estimate
from interp.stats.shares import share
from interp.sweeps.positions import positions_skipped

if TYPE_CHECKING:
    from interp.analyses.attention_rank import AttentionRank

FEWEST_LAYERS = 12  # for a correlation over layers
PUBLISHED = "rank as published"
COST = "KL without attention, nats"
_MODEL, _SHUFFLED, _UNTRAINED, _UNIFORM = "model", "shuffled", "untrained", "uniform"
_GIVEN = "partial rank correlation with the cost of skipping, given depth: "


@dataclass(frozen=True, repr=False)
class AttentionRankResult(Result):
    """Arrays: rank [prompt layer head view measure], published, shuffled, untrained, kl."""

    analysis: "AttentionRank"
    arrays: dict[str, np.ndarray]

    @property
    def n_layers(self) -> int:
        """Return the number of layers."""
        return int(self.arrays["kl"].shape[1])

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens of every pattern."""
        return int(self.arrays["n_tokens"][0])

    @cached_property
    def uniform(self) -> Array:
        """Return `MEASURES` of attention to everything alike [view measure]."""
        pattern = uniform(self.n_tokens)
        views = [pattern, without_first(pattern)]
        return np.stack([ranks(view).numpy() for view in views])

    def of_layers(self, source: str = _MODEL) -> Array:
        """Return the mean head's ranks [prompt layer view measure] of a source of patterns."""
        if source == _MODEL:
            return np.asarray(self.arrays["rank"].mean(2))
        if source == _UNIFORM:
            shape = (*self.arrays["kl"].shape, *self.uniform.shape)
            return np.broadcast_to(self.uniform, shape)
        return self.arrays["untrained" if source == _UNTRAINED else "shuffled"]

    @property
    def sources(self) -> list[str]:
        """Return whose patterns there are."""
        of_twin = [_UNTRAINED] * ("untrained" in self.arrays)
        return [_MODEL, _SHUFFLED, *of_twin, _UNIFORM]

    def correlation(
        self, measure: str = MEASURES[0], *, view: str = VIEWS[1], source: str = _MODEL
    ) -> Estimate:
        """Return the rank correlation over layers of a rank and the cost of skipping, given depth.

        Depth and its square are taken out, so that neither a trend nor dear ends are counted.
        """
        if measure == PUBLISHED:
            values = self.arrays["published"].mean(2)
        else:
            values = self.of_layers(source)[..., VIEWS.index(view), MEASURES.index(measure)]
        depth = np.linspace(-1, 1, self.n_layers)
        both = np.stack([values, self.arrays["kl"]], axis=1)
        given = np.stack([depth, depth**2])
        seed = self.analysis.seed
        return partial_estimate(both, given, groups=self.prompt_groups, seed=seed)

    def to_frame(self) -> pd.DataFrame:
        """Return columns source, keys, measure, layer, head, mean, low and high.

        Ranks of each head (those of other sources are means over heads), the cost of skipping a
        layer's attention, and correlations over layers, which have no layer. Intervals are over
        groups of prompts; those of correlations count the draw of layers too.
        """
        whole = pd.concat(self._rows(), ignore_index=True)
        return whole.astype({"layer": "Int64", "head": "Int64"})

    def _rows(self) -> Iterator[pd.DataFrame]:
        rank = self.arrays["rank"]
        layers, heads = (index.ravel() for index in np.indices(rank.shape[1:3]))
        for i, view in enumerate(VIEWS):
            for j, measure in enumerate(MEASURES):
                keys = {"source": _MODEL, "keys": view, "measure": measure}
                yield self._frame(keys | {"layer": layers, "head": heads}, rank[..., i, j])
                for source in self.sources[1:]:
                    keys = {"source": source, "keys": view, "measure": measure}
                    yield self._of_layers(keys, self.of_layers(source)[..., i, j])
        keys = {"source": _MODEL, "keys": VIEWS[0], "measure": PUBLISHED}
        yield self._frame(keys | {"layer": layers, "head": heads}, self.arrays["published"])
        yield self._of_layers({"source": _MODEL, "keys": "", "measure": COST}, self.arrays["kl"])
        for view in VIEWS:
            for measure in MEASURES:
                yield self._alone(measure, view, self.correlation(measure, view=view))
        yield self._alone(PUBLISHED, VIEWS[0], self.correlation(PUBLISHED))

    def _of_layers(self, keys: dict[str, str], values: Array) -> pd.DataFrame:
        return self._frame(keys | {"layer": np.arange(self.n_layers), "head": pd.NA}, values)

    def _frame(self, keys: dict[str, object], values: Array) -> pd.DataFrame:
        flat = values.reshape(len(values), -1)
        columns = estimates(flat, groups=self.prompt_groups, seed=self.analysis.seed)
        return pd.DataFrame(keys | {name: columns[name] for name in ("mean", "low", "high")})

    @staticmethod
    def _alone(measure: str, view: str, number: Estimate) -> pd.DataFrame:
        ends = {"mean": number.value, "low": number.low, "high": number.high}
        keys = {"source": _MODEL, "keys": view, "measure": _GIVEN + measure}
        return pd.DataFrame([keys | {"layer": pd.NA, "head": pd.NA} | ends])

    def plot(self) -> go.Figure:
        """Draw ranks and the cost of skipping by layer, and the effective rank of every head."""
        frame = self.to_frame()
        frame = frame[frame["layer"].notna()]
        of_means = pd.concat(self._means())
        cost = frame[frame["measure"] == COST].assign(panel=COST, line=COST)
        panel = "effective rank, mean head"
        both = pd.concat([of_means.assign(panel=panel), cost])
        title = (
            f"Rank of attention among {self.n_tokens} tokens, the first left out,"
            " and what attention is worth"
        )
        figure = lines_over_depth(both, y="mean", groups="line", panels="panel", title=title)
        grid = self.arrays["rank"][..., 1, 0].mean(0).T
        of = "effective rank of every head's pattern"
        axes, least = Axes("layer", "head", of=of), float(grid.min())
        return grid_below(figure, grid, axes=axes, top=float(grid.max()), zmin=least)

    def _means(self) -> Iterator[pd.DataFrame]:
        for source in self.sources:
            values = self.of_layers(source)[..., 1, 0]
            yield self._of_layers({"source": source}, values).assign(line=source)

    def findings(self) -> tuple[Finding, ...]:
        """Return whether rank goes with the cost of skipping, and how high ranks are."""
        described = (self._height(), self._trap())
        if self.n_layers < FEWEST_LAYERS:
            return (described[0], self._too_few(), described[1])
        return (self._correlated(), *described)

    def _correlated(self) -> Finding:
        number = self.correlation()
        worth, over = "At a depth, attention of higher rank is worth", "over layers"
        claim = by_sign(
            number,
            above=f"{worth} more: a rank correlation of {number:.2f} {over}.",
            below=f"{worth} less: a rank correlation of {number:.2f} {over}.",
            unclear="Given depth, attention's rank is not shown to predict the loss without it:"
            f" {number:.2f}.",
        )
        return self._compared(claim, number)

    def _too_few(self) -> Finding:
        known = self.correlation()
        number = Estimate(known.value, n=known.n, n_groups=known.n_groups)
        claim = (
            f"{self.n_layers} layers are too few to relate rank to the cost of skipping attention"
            f" ({FEWEST_LAYERS} are needed)."
        )
        return self._compared(claim, number)

    def _compared(self, claim: str, number: Estimate) -> Finding:
        skipped = positions_skipped(self.analysis.skipped_positions)
        return Finding(
            claim,
            number,
            "partial rank correlation over layers of effective rank and the KL without attention,"
            " given depth and its square",
            control=Compared("the same rows shuffled", self.correlation(source=_SHUFFLED)),
            rival=Compared(PUBLISHED, self.correlation(PUBLISHED)),
            kind="compares",
            note=f"Attention is skipped at {skipped}; the interval counts the draw of layers.",
        )

    def _estimate(self, values: Array) -> Estimate:
        return estimate(values, groups=self.prompt_groups, seed=self.analysis.seed)

    def _height(self) -> Finding:
        of = [self._estimate(self.of_layers(s)[..., 1, 0].mean(1)) for s in self.sources]
        n = self.n_tokens - 1
        return Finding(
            f"Patterns of {n} tokens have an effective rank of {of[0]:.1f} on average.",
            of[0],
            "effective rank of attention patterns without the first token, mean over heads",
            control=Compared("the same rows shuffled", of[1]),
            rival=Compared("attention to everything alike", of[-1]),
            note=f"The exact rank is {n}, as that of every causal pattern with its diagonal.",
        )

    def _trap(self) -> Finding:
        full = (self.arrays["published"] >= self.n_tokens - 1).mean((1, 2))
        have = share(full, groups=self.prompt_groups)
        return Finding(
            f"By the published tolerance, {have:.0%} of heads have the full rank.",
            have,
            "share of heads with full rank, as published (diagonal 0, fp32's rounding)",
            note="Less than full can only come from weights that round to nothing.",
        )
