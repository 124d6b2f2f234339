"""How well cheap scores agree with exact effects, by several measures.

One large entry can decide a correlation; no measure alone is enough.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[np.float64]
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


def _ranks(values: Array) -> Array:
    ranks: Array = pd.Series(values).rank().to_numpy().astype(np.float64)
    return ranks


def _pearson(a: Array, b: Array) -> float:
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
