"""Units' scores of sums by gradient and of sizes, and how alike they and the exact rise rank."""

from collections.abc import Callable

import numpy as np

from interp.stats.groups import Array
from interp.stats.ranks import rank_correlation

SCORES = ("importance", "importance, mean over prompts", "first order", "size")


def score_of(score: str, means: Array) -> Array:
    """Return one of `SCORES` of mean sums, absolute sums, sizes and rises [... 4 unit]."""
    row = {"importance, mean over prompts": 1, "size": 2}.get(score, 0)
    values: Array = means[..., row, :]
    return {"importance": np.abs(values), "first order": -values}.get(score, values)


def with_exact(score: str) -> Callable[[Array], Array]:
    """Return a score's rank correlation with the exact rise of the loss, of such means."""
    return lambda means: rank_correlation(score_of(score, means), means[..., 3, :])
