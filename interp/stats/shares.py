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
    """Return the share of prompts for which something is so [prompt], with Wilson's interval.

    0 of 32 is "0 % [0, 11]". Near 0 and 1, where Wilson's own covers too seldom, its end comes from
    Poisson's distribution (Brown, Cai & DasGupta 2001). Grouped prompts count as the number of
    independent ones that would have the share's variance over groups (Korn & Graubard 1998).
    """
    array = np.asarray(are, np.float64)
    if not len(array):
        return Estimate(NAN)
    grouping = Grouping.of(len(array), groups)
    value = float(array.mean())
    if grouping.n_groups < FEWEST:
        return Estimate(value, n=len(array), n_groups=grouping.n_groups)
    low, high = _wilson(value, _effective(array, grouping))
    return Estimate(value, low, high, len(array), grouping.n_groups)


def share_difference(
    one: ArrayLike, other: ArrayLike, *, groups: ArrayLike | None = None
) -> Estimate:
    """Return share(one) - share(other) of the same prompts, both [prompt], with its interval.

    Agresti & Min's interval (2005): Wald's after one more pair each way is put half into each
    discordant cell, so that no difference at all has an interval too; grouped as in `share`. What
    is so in part (a mean over draws, between 0 and 1) is discordant in part.
    """
    first, second = (np.asarray(values, np.float64) for values in (one, other))
    n = len(first)
    if not n:
        return Estimate(NAN)
    difference, grouping = first - second, Grouping.of(n, groups)
    value = float(difference.mean())
    if grouping.n_groups < FEWEST:
        return Estimate(value, n=n, n_groups=grouping.n_groups)
    held = _effective(difference, grouping)
    up, down = (side.clip(0).mean() * held + 0.5 for side in (difference, -difference))
    middle = (up - down) / (held + 2)
    spread = _Z * np.sqrt((up + down) / (held + 2) - middle**2) / np.sqrt(held + 2)
    low, high = max(-1.0, middle - spread), min(1.0, middle + spread)
    return Estimate(value, float(low), float(high), n, grouping.n_groups)


def _effective(values: Array, grouping: Grouping) -> float:
    """Return how many independent prompts would have the mean's variance over groups."""
    n, n_groups = len(values), grouping.n_groups
    if n_groups == n:
        return float(n)
    rest = values - values.mean()
    alone = (rest**2).sum() / n**2
    together = (grouping.sums(rest) ** 2).sum() / n**2 * n_groups / (n_groups - 1)
    effective = n * alone / together if together > 0 else float(n_groups)
    # few groups know their own spread badly
    effective *= float((_Z / stdtrit(n_groups - 1, QUANTILES[1])) ** 2)
    return float(min(n, effective))


def _wilson(value: float, n: float) -> tuple[float, float]:
    middle = (value + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    spread = _Z * np.sqrt(value * (1 - value) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
    cases, exceptions = value * n, (1 - value) * n
    # where there are none, the end is exact, not a rounding error off
    low = max(0.0, float(middle - spread)) if cases else 0.0
    high = min(1.0, float(middle + spread)) if exceptions else 1.0
    if 0 < cases <= _RARE:
        low = float(gammaincinv(cases, 0.05)) / n
    if 0 < exceptions <= _RARE:
        high = 1 - float(gammaincinv(exceptions, 0.05)) / n
    return low, high
