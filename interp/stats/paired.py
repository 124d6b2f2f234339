"""The same prompts scored twice: how far apart the means are, and whether that could be chance."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from interp.stats.bootstrap import bootstrap_interval


@dataclass(frozen=True)
class Difference:
    """A mean difference over `n` prompts, with its 95 % bootstrap interval and the p-value of
    `paired_p`.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int

    @classmethod
    def of(
        cls,
        differences: NDArray[np.float64],
        *,
        weights: NDArray[np.float64] | None = None,
        seed: int = 0,
    ) -> "Difference":
        """Return the (weighted) mean of paired differences [prompt]."""
        (low,), (high,) = bootstrap_interval(differences[:, None], weights=weights, seed=seed)
        mean = float(np.average(differences, weights=weights))
        return cls(mean, float(low), float(high), paired_p(differences), len(differences))


def paired_p(differences: NDArray[np.float64]) -> float:
    """Return a two-sided p-value of paired differences [prompt]; 1 if there is none.

    Where all that differ do so by the same amount (right against wrong) it is McNemar's exact test,
    else Wilcoxon's signed ranks, in which only the order of the differences counts. Differences are
    rounded to 0.0001, so that arithmetic in another order is no difference.
    """
    from scipy import stats  # half a second, and only results need it

    rounded = differences.round(4)
    found = rounded[rounded != 0]
    if not len(found):
        return 1.0
    if np.ptp(np.abs(found)) == 0:
        return float(stats.binomtest(int((found > 0).sum()), len(found)).pvalue)
    return float(stats.wilcoxon(found, method="auto" if len(found) < 20 else "asymptotic").pvalue)
