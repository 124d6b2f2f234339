"""Shares of prompts, which are declared as such and never guessed from data of 0 and 1."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaincinv, ndtri, stdtrit

from interp.stats.bootstrap import QUANTILES
from interp.stats.estimate import NAN, Estimate
from interp.stats.groups import FEWEST, Array, Grouping

_Z = float(ndtri(QUANTILES[1]))
_RARE = 3  # so few cases (or exceptions) are counted as Poisson's


def share(are: ArrayLike, *, groups: ArrayLike | None = None) -> Estimate:
    """Return the share of prompts for which something is so [prompt], as `shares`."""
    array = np.asarray(are, np.float64)
    return _one(shares(array[:, None], groups=groups), groups) if len(array) else Estimate(NAN)


def shares(are: ArrayLike, *, groups: ArrayLike | None = None) -> dict[str, Array]:
    """Return the shares of prompts for which things are so [prompt column ...], with intervals.

    Columns mean, low, high and n_prompts, each [column ...]. Intervals are Wilson's: 0 of 32 is
    "0 % [0, 11]". Near 0 and 1, where it covers too seldom, an end comes from Poisson's
    distribution (Brown, Cai & DasGupta 2001). Grouped prompts count as the number of independent
    ones that would have the share's variance over groups (Korn & Graubard 1998). Every interval is
    its own: of many, some miss.
    """
    array = np.asarray(are, np.float64)
    grouping, mean = Grouping.of(len(array), groups), array.mean(0)
    return _columns(mean, _wilson(mean, _effective(array, grouping)), len(array), grouping)


def share_difference(
    one: ArrayLike, other: ArrayLike, *, groups: ArrayLike | None = None
) -> Estimate:
    """Return share(one) - share(other) of the same prompts [prompt], as `share_differences`."""
    first, second = (np.asarray(values, np.float64) for values in (one, other))
    if not len(first):
        return Estimate(NAN)
    return _one(share_differences(first[:, None], second[:, None], groups=groups), groups)


def share_differences(
    one: ArrayLike, other: ArrayLike, *, groups: ArrayLike | None = None
) -> dict[str, Array]:
    """Return shares(one) - shares(other) of the same prompts, both [prompt column ...].

    Agresti & Min's (2005): Wald's after one more pair each way is put half into each discordant
    cell, so that no difference at all has an interval too; grouped and given as in `shares`. What
    is so in part (a mean over draws, between 0 and 1) is discordant in part.
    """
    first, second = (np.asarray(values, np.float64) for values in (one, other))
    difference, n = first - second, len(first)
    grouping = Grouping.of(n, groups)
    held = _effective(difference, grouping)
    up, down = (side.clip(0).mean(0) * held + 0.5 for side in (difference, -difference))
    middle = (up - down) / (held + 2)
    spread = _Z * np.sqrt((up + down) / (held + 2) - middle**2) / np.sqrt(held + 2)
    ends = np.maximum(-1.0, middle - spread), np.minimum(1.0, middle + spread)
    return _columns(difference.mean(0), ends, n, grouping)


def _columns(
    mean: Array, ends: tuple[Array, Array], n: int, grouping: Grouping
) -> dict[str, Array]:
    low, high = ends if grouping.n_groups >= FEWEST else (np.full(mean.shape, NAN),) * 2
    return {"mean": mean, "low": low, "high": high, "n_prompts": np.full(mean.shape, n)}


def _one(columns: dict[str, Array], groups: ArrayLike | None) -> Estimate:
    mean, low, high, n = (float(column[0]) for column in columns.values())
    return Estimate(mean, low, high, int(n), Grouping.of(int(n), groups).n_groups)


def _effective(values: Array, grouping: Grouping) -> Array:
    """Return how many independent prompts would have the mean's variance over groups [...]."""
    n, n_groups = len(values), grouping.n_groups
    if n_groups == n or n_groups < FEWEST:
        return np.full(values.shape[1:], float(n))
    rest = values - values.mean(0)
    alone = (rest**2).sum(0) / n**2
    together = (grouping.sums(rest) ** 2).sum(0) / n**2 * n_groups / (n_groups - 1)
    alike = np.full(alone.shape, float(n_groups))
    effective = np.divide(n * alone, together, out=alike, where=together > 0)
    # few groups know their own spread badly
    effective *= float((_Z / stdtrit(n_groups - 1, QUANTILES[1])) ** 2)
    held: Array = np.minimum(n, effective)
    return held


def _wilson(value: Array, n: Array) -> tuple[Array, Array]:
    middle = (value + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    spread = _Z * np.sqrt(value * (1 - value) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
    low, high = np.maximum(0.0, middle - spread), np.minimum(1.0, middle + spread)
    cases, exceptions = value * n, (1 - value) * n
    with np.errstate(invalid="ignore"):
        rare, common = (gammaincinv(few, 0.05) / n for few in (cases, exceptions))
    low = np.where((cases > 0) & (cases <= _RARE), rare, low)
    high = np.where((exceptions > 0) & (exceptions <= _RARE), 1 - common, high)
    return np.minimum(low, value), np.maximum(high, value)  # rounding of 0 and 1
