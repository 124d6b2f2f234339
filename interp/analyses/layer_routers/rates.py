"""Sets of layers skipped at the rate of a rule, and how well routers name what runs."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from interp.analyses.layer_routers.routes import MOST_RUNS, set_sizes

Array = NDArray[np.float64]


def at_rate(by_size: ArrayLike, runs: float, n_layers: int) -> tuple[Array, Array]:
    """Return what a set gives that leaves `runs` layers, and by how much more one layer would.

    `by_size` and both results are [prompt (size) ...]. Between two sizes, each prompt gets one set
    or the other by lot; this is the expectation. A rule that runs more layers than there are is
    compared with the full model.
    """
    left = n_layers - np.array(set_sizes(n_layers)[::-1])  # layers that run, from none to all
    values = np.asarray(by_size, np.float64)[:, ::-1]
    at = min(max(runs, 0.0), float(n_layers))
    above = int(np.clip(np.searchsorted(left, at, side="left"), 1, len(left) - 1))
    low, high = left[above - 1], left[above]
    slope = (values[:, above] - values[:, above - 1]) / (high - low)
    is_inside = 0 < runs < n_layers
    return values[:, above - 1] + (at - low) * slope, slope * is_inside


def macro_f1(labels: NDArray[np.int64], said: NDArray[np.int64]) -> float:
    """Return the mean over skip, run and repeat of F1; 0 for one that neither has."""
    f1 = []
    for kind in range(MOST_RUNS + 1):
        both = np.sum((labels == kind) & (said == kind))
        either = np.sum(labels == kind) + np.sum(said == kind)
        f1.append(2 * both / either if either else 0.0)
    return float(np.mean(f1))
