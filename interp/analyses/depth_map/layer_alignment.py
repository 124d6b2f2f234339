"""How far a grid of errors [source target] between two stacks of layers runs along its diagonal.

Taps are evenly spaced: the i-th of n has relative depth (i + 1) / n. Every statistic is larger,
the stronger the diagonal.
"""

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray


def depths(n: int) -> Float[ndarray, " n"]:
    """Return the relative depth of n taps."""
    return np.arange(1, n + 1) / n


def monotone_alignment(errors: Float[ndarray, "source target"]) -> ndarray:
    """Return a source for every target, never falling, with the least total error."""
    n_targets = errors.shape[1]
    totals, came_from = errors[:, 0], np.zeros(errors.shape, dtype=np.int64)
    for target in range(1, n_targets):
        cheapest = np.minimum.accumulate(totals)
        came_from[:, target] = np.maximum.accumulate(
            np.where(totals <= cheapest, np.arange(len(totals)), 0)
        )
        totals = cheapest + errors[:, target]
    path = [int(totals.argmin())]
    for target in range(n_targets - 1, 0, -1):
        path.append(int(came_from[path[-1], target]))
    return np.array(path[::-1])


def alignment_statistics(
    errors: Float[ndarray, "grid source target"],
) -> dict[str, Float[ndarray, " grid"]]:
    """Return the statistics of every grid.

    "diagonal": correlation of error with distance in relative depth over all pairs, after taking
    out each source's and each target's mean. "spearman", "slope": rank correlation and
    least-squares slope of the best source's depth against the target's. "order": the share of the
    best sources' gain over the mean error that is kept when sources may not fall. Where a statistic
    is undefined (all best sources the same, one layer) it is 0.
    """
    n_grids, n_sources, n_targets = errors.shape
    distance = np.abs(depths(n_sources)[:, None] - depths(n_targets))
    best = errors.argmin(1)
    chosen, ranks = (
        _centred(depths(n_sources)[best]),
        _centred(pd.DataFrame(best).rank(axis=1).to_numpy()),
    )
    target = _centred(np.tile(depths(n_targets), (n_grids, 1)))
    off_diagonal = np.tile(_double_centred(distance).ravel(), (n_grids, 1))
    free, totals = errors.min(1).mean(1), errors[:, :, 0]
    for i in range(1, n_targets):
        totals = np.minimum.accumulate(totals, axis=1) + errors[:, :, i]
    lost = totals.min(1) / n_targets - free
    return {
        "diagonal": _correlation(_double_centred(errors).reshape(n_grids, -1), off_diagonal),
        "spearman": _correlation(ranks, target),
        "slope": _ratio((chosen * target).sum(1), (target**2).sum(1)),
        "order": 1 - _ratio(lost, errors.mean((1, 2)) - free),
    }


def _centred(values: ndarray) -> ndarray:
    centred: ndarray = values - values.mean(-1, keepdims=True)
    return centred


def _double_centred(values: ndarray) -> ndarray:
    centred: ndarray = _centred(values) - _centred(values).mean(-2, keepdims=True)
    return centred


def _correlation(one: ndarray, other: ndarray) -> ndarray:
    return _ratio((one * other).sum(-1), np.sqrt((one**2).sum(-1) * (other**2).sum(-1)))


def _ratio(above: ndarray, below: ndarray) -> ndarray:
    ratio: ndarray = np.divide(above, below, out=np.zeros_like(above), where=below > 1e-12)
    return ratio
