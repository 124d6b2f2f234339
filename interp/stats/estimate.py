"""An estimate: a number over prompts with its 95 % interval, and how it is printed."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from interp.numerals import finer, is_seen, number, rounded
from interp.stats.bootstrap import corrected_interval, interval_of_ratio, resampled_means
from interp.stats.groups import FEW, FEWEST, Array, Grouping

NAN = float("nan")


@dataclass(frozen=True)
class Estimate:
    """A value over `n` prompts and its 95 % interval, whose ends are NaN if there is none.

    `n_groups` is how many groups of prompts were drawn independently; by default every prompt was.
    `f"{estimate:.0%}"` is "43 % [37, 50]"; any float format works, and gets more decimals where all
    would round to 0, or a value or an end whose interval excludes it.
    """

    value: float
    low: float = NAN
    high: float = NAN
    n: int = 0
    n_groups: int | None = None

    def __post_init__(self) -> None:
        """Drop an interval that lacks an end or has an infinite one."""
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            object.__setattr__(self, "low", NAN)
            object.__setattr__(self, "high", NAN)

    def __format__(self, spec: str) -> str:
        least = self.value if self.excludes() else max(self.value, self.low, self.high, key=abs)
        if not self.has_interval or not is_seen(least, spec):
            return number(self.value, spec)
        spec = finer(spec, least)
        specs = (finer(spec, end) if self.excludes() else spec for end in (self.low, self.high))
        ends = zip((self.low, self.high), specs, strict=True)
        low, high = (rounded(end, each).removesuffix(" %") for end, each in ends)
        between = " to " if "," in low + high else ", "
        return f"{rounded(self.value, spec)} [{low}{between}{high}]"

    def __str__(self) -> str:
        return format(self, ".3g")

    def __neg__(self) -> "Estimate":
        """Return the estimate of the number with its other sign."""
        return replace(self, value=-self.value, low=-self.high, high=-self.low)

    @property
    def has_interval(self) -> bool:
        """Tell whether there is an interval."""
        return not math.isnan(self.low)

    @property
    def is_of_few(self) -> bool:
        """Tell whether it rests on so few prompts that its interval may be too narrow."""
        return 0 < (self.n if self.n_groups is None else self.n_groups) < FEW

    def excludes(self, value: float = 0.0) -> bool:
        """Tell whether there is an interval and it excludes a value."""
        return self.has_interval and not self.low <= value <= self.high

    def columns(self, value: str = "mean") -> dict[str, float | int]:
        """Return the columns of a frame; `value` names the first."""
        return {value: self.value, "low": self.low, "high": self.high, "n_prompts": self.n}

    def to_json(self) -> dict[str, float | int | None]:
        """Return value, low, high, n and n_groups; non-finite numbers become None."""
        value, low, high = (
            float(x) if math.isfinite(x) else None for x in (self.value, self.low, self.high)
        )
        return {"value": value, "low": low, "high": high, "n": self.n, "n_groups": self.n_groups}

    @classmethod
    def from_json(cls, number: Mapping[str, Any]) -> "Estimate":
        """Return the estimate that `to_json` wrote; what is missing or None becomes NaN."""
        ends = (number.get(key) for key in ("value", "low", "high"))
        value, low, high = (NAN if end is None else float(end) for end in ends)
        return cls(value, low, high, number.get("n") or 0, number.get("n_groups"))


def estimate(
    values: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> Estimate:
    """Return the (weighted) mean of values [prompt] with the interval of `estimates`."""
    array = np.asarray(values, np.float64)
    below = np.ones(len(array)) if weights is None else np.asarray(weights, np.float64)
    return ratio(array * below, below, groups=groups, seed=seed)


def ratio(
    above: ArrayLike, below: ArrayLike, *, groups: ArrayLike | None = None, seed: int = 0
) -> Estimate:
    """Return Σ above / Σ below [prompt], whose interval resamples both."""
    over, under = (np.asarray(values, np.float64) for values in (above, below))
    if not len(over):
        return Estimate(NAN)
    grouping = Grouping.of(len(over), groups)
    ends = interval_of_ratio(over[:, None], under[:, None], grouping, seed=seed)
    value, low, high = (float(end[0]) for end in ends)
    return Estimate(value, low, high, len(over), grouping.n_groups)


def estimates(
    values: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> dict[str, Array]:
    """Return the (weighted) means of values [prompt ...] and their intervals as columns [...].

    Columns are mean, low, high and n_prompts. Intervals are bootstrap-t over `groups` of prompts
    (1,000 resamples), those of Student's t with fewer than 10 groups, and NaN with fewer than 5.
    Every column's interval is its own: of many columns, some miss by chance (see `band`).
    """
    array = np.asarray(values, np.float64)
    below = np.ones(len(array)) if weights is None else np.asarray(weights, np.float64)
    return ratios(
        array * below.reshape(-1, *[1] * (array.ndim - 1)), below, groups=groups, seed=seed
    )


def ratios(
    above: ArrayLike, below: ArrayLike, *, groups: ArrayLike | None = None, seed: int = 0
) -> dict[str, Array]:
    """Return Σ above / Σ below for `above` [prompt ...], as the columns of `estimates`.

    `below` is [prompt], or of the shape of `above`.
    """
    over, under = (np.asarray(values, np.float64) for values in (above, below))
    shape = over.shape[1:]
    flat = over.reshape(len(over), -1)
    wide = under.reshape(len(over), -1)
    wide = np.broadcast_to(wide, flat.shape)
    ends = interval_of_ratio(flat, wide, Grouping.of(len(over), groups), seed=seed)
    mean, low, high = (end.reshape(shape) for end in ends)
    return {"mean": mean, "low": low, "high": high, "n_prompts": np.full(shape, len(over))}


def estimate_of(
    statistic: Callable[[Array], float],
    values: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> Estimate:
    """Return a statistic of the (weighted) mean of values [prompt ...] with its interval.

    The interval is the bias-corrected percentile one, for statistics such as the depth at which a
    curve crosses a half. Do not give one that picks an extreme: see `picked`.
    """
    array = np.asarray(values, np.float64)
    if not len(array):
        return Estimate(NAN)
    grouping = Grouping.of(len(array), groups)
    below = np.ones(len(array)) if weights is None else np.asarray(weights, np.float64)
    value = float(statistic(np.average(array, axis=0, weights=below)))
    if grouping.n_groups < FEWEST:
        return Estimate(value, n=len(array), n_groups=grouping.n_groups)
    means = resampled_means(array, weights=weights, groups=groups, seed=seed)
    resampled = np.fromiter((statistic(mean) for mean in means), np.float64, len(means))
    return Estimate(value, *corrected_interval(value, resampled), len(array), grouping.n_groups)


def estimate_difference(
    one: ArrayLike,
    other: ArrayLike,
    *,
    groups: tuple[ArrayLike | None, ArrayLike | None] = (None, None),
    seed: int = 0,
) -> Estimate:
    """Return mean(one) - mean(other), over different prompts, with its interval.

    It is that of the ratios' difference with both samples resampled together, as one sample in
    which a prompt belongs to one side; a group may have prompts on both sides.
    """
    first, second = (np.asarray(values, np.float64) for values in (one, other))
    n = len(first) + len(second)
    if not len(first) or not len(second):
        return Estimate(NAN)
    means = first.mean(), second.mean()
    # each prompt's influence on the difference, so that their mean is 0 and their spread its error
    influence = n * np.concatenate(
        [(first - means[0]) / len(first), -(second - means[1]) / len(second)]
    )
    whole = None
    if groups[0] is not None and groups[1] is not None:
        whole = np.concatenate([np.asarray(each) for each in groups])
    around = estimate(influence, groups=whole, seed=seed)
    value = float(means[0] - means[1])
    if min(len(first), len(second)) < FEWEST:
        return Estimate(value, n=n, n_groups=around.n_groups)
    return Estimate(value, value + around.low, value + around.high, n, around.n_groups)
