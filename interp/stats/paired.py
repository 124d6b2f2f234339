"""The same prompts scored twice: the difference of the means, and whether it could be chance."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from interp.stats.estimate import Estimate, estimate


@dataclass(frozen=True)
class PairedDifference:
    """The mean of paired differences as an Estimate, and the p-value of `paired_p`."""

    estimate: Estimate
    p: float

    @classmethod
    def of(
        cls,
        differences: NDArray[np.float64],
        *,
        weights: NDArray[np.float64] | None = None,
        seed: int = 0,
    ) -> "PairedDifference":
        """Return the (weighted) mean of paired differences [prompt]."""
        return cls(estimate(differences, weights=weights, seed=seed), paired_p(differences))


def paired_p(differences: NDArray[np.float64]) -> float:
    """Return the two-sided p-value of paired differences [prompt]; 1 if all are 0.

    If all that are not 0 have the same size (right against wrong), this is McNemar's exact test,
    otherwise Wilcoxon's signed-rank test, which uses only the order of the differences. Differences
    are rounded to 0.0001, so that sums computed in another order do not count as different.
    """
    from scipy import stats  # half a second, and only results need it

    rounded = differences.round(4)
    nonzero = rounded[rounded != 0]
    if not len(nonzero):
        return 1.0
    if np.ptp(np.abs(nonzero)) == 0:
        return float(stats.binomtest(int((nonzero > 0).sum()), len(nonzero)).pvalue)
    method = "auto" if len(nonzero) < 20 else "asymptotic"
    return float(stats.wilcoxon(nonzero, method=method).pvalue)
