"""How well cheap scores agree with exact effects, by several measures.

One large entry can decide a correlation; no measure alone is enough.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from interp.stats.bootstrap import corrected_interval, draws
from interp.stats.estimate import Estimate
from interp.stats.groups import FEWEST, Grouping, Groups

Array = NDArray[np.float64]
_RESAMPLES = 200
MEASURES = (
    "pearson",
    "pearson without the largest",
    "spearman",
    "mean absolute error",
    "top overlap",
    "same sign",
    "slope",
)


def agreement(cheap: Array, exact: Array, *, gap: float, top_k: int) -> dict[str, float]:
    """Return `MEASURES` of cheap scores against exact effects [entry]; NaN where undefined.

    "spearman" is over entries that exceed 0.1 % of `gap` in either; "mean absolute error" is a
    share of `gap`; "top overlap" is the share of the `top_k` entries with the largest absolute
    effects that are also among the `top_k` largest scores; "same sign" is over entries whose
    effect exceeds 1 % of `gap`; "slope" is that of exact effects on cheap scores through 0; above
    1, scores are too small.
    """
    known = ~(np.isnan(cheap) | np.isnan(exact))
    cheap, exact = cheap[known], exact[known]
    others = np.arange(len(exact)) != np.abs(exact).argmax() if len(exact) else known[known]
    large = np.abs(exact) > 0.01 * abs(gap)
    # ranks of rounding errors mean nothing
    matters = np.maximum(np.abs(exact), np.abs(cheap)) > 0.001 * abs(gap)
    k = min(top_k, len(exact))
    best, guessed = (
        set(np.argsort(-np.abs(values), kind="stable")[:k].tolist()) for values in (exact, cheap)
    )
    square = float(cheap @ cheap)
    return {
        "pearson": _pearson(cheap, exact),
        "pearson without the largest": _pearson(cheap[others], exact[others]),
        "spearman": _pearson(_ranks(cheap[matters]), _ranks(exact[matters])),
        "mean absolute error": float(np.abs(cheap - exact).mean() / abs(gap)) if gap else np.nan,
        "top overlap": len(best & guessed) / k if k else np.nan,
        "same sign": (
            float((np.sign(cheap) == np.sign(exact))[large].mean()) if large.any() else np.nan
        ),
        "slope": float(cheap @ exact) / square if square else np.nan,
    }


@dataclass(frozen=True)
class Resampled:
    """`MEASURES` of mean scores against mean effects: a row for all prompts, one per resample.

    `n_prompts` prompts are in `n_groups` groups.
    """

    rows: pd.DataFrame
    n_prompts: int
    n_groups: int

    @classmethod
    def of(
        cls, cheap: Array, exact: Array, *, gap: Array, top_k: int, groups: Groups | None, seed: int
    ) -> "Resampled":
        """Compare scores and effects [prompt entry], NaN where a prompt has none; `gap` [prompt].

        Groups of prompts are drawn 200 times, for all alike: the same for the same groups and seed.
        """
        grouping = Grouping.of(len(gap), groups)
        drawn = draws(grouping.n_groups, seed=seed)[: _RESAMPLES * (grouping.n_groups >= FEWEST)]
        weights = np.vstack([np.ones(len(gap)), drawn[:, grouping.codes]])
        means = zip(_means(cheap, weights), _means(exact, weights), strict=True)
        gaps = weights @ gap / weights.sum(1)
        rows = [
            agreement(*both, gap=float(of_all), top_k=top_k)
            for both, of_all in zip(means, gaps, strict=True)
        ]
        return cls(pd.DataFrame(rows, columns=MEASURES), len(gap), grouping.n_groups)

    def estimate(self, measure: str, *, beyond: "Resampled | None" = None) -> Estimate:
        """Return a measure (less that of `beyond`, of the same draws) with its interval.

        It is the bias-corrected percentile one; none with fewer than 5 groups.
        """
        column = self.rows[measure] - (0.0 if beyond is None else beyond.rows[measure])
        value, *resampled = column.tolist()
        known = np.array([each for each in resampled if np.isfinite(each)])
        low, high = corrected_interval(value, known) if len(known) else (np.nan, np.nan)
        return Estimate(value, low, high, self.n_prompts, self.n_groups)


def _means(values: Array, weights: Array) -> Array:
    """Return weighted means [row entry] of values [prompt entry], NaN where none is known."""
    known = (~np.isnan(values)).astype(np.float64)
    total = weights @ known
    means: Array = np.where(
        total > 0, weights @ np.nan_to_num(values) / np.maximum(total, 1), np.nan
    )
    return means


def _ranks(values: Array) -> Array:
    ranks: Array = pd.Series(values).rank().to_numpy().astype(np.float64)
    return ranks


def _pearson(a: Array, b: Array) -> float:
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
