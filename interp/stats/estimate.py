"""An estimate: a number over prompts with its 95 % interval, and how it is printed."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from interp.stats.bootstrap import bootstrap_interval, interval_of, interval_of_difference

Array = NDArray[np.float64]
NAN = float("nan")


@dataclass(frozen=True)
class Estimate:
    """A value over `n` prompts and its 95 % interval, whose ends are NaN if there is none.

    `f"{estimate:.0%}"` is "43 % [37, 50]"; any float format works.
    """

    value: float
    low: float = NAN
    high: float = NAN
    n: int = 0

    def __post_init__(self) -> None:
        """Drop an interval that lacks an end or has an infinite one."""
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            object.__setattr__(self, "low", NAN)
            object.__setattr__(self, "high", NAN)

    def __format__(self, spec: str) -> str:
        if not self.has_interval:
            return number(self.value, spec)
        low, high = (number(end, spec).removesuffix(" %") for end in (self.low, self.high))
        return f"{number(self.value, spec)} [{low}, {high}]"

    def __str__(self) -> str:
        return format(self, ".3g")

    @property
    def has_interval(self) -> bool:
        """Tell whether there is an interval."""
        return not math.isnan(self.low)

    def excludes(self, value: float = 0.0) -> bool:
        """Tell whether there is an interval and it excludes a value."""
        return self.has_interval and not self.low <= value <= self.high

    def columns(self, value: str = "mean") -> dict[str, float | int]:
        """Return the columns of a frame; `value` names the first."""
        return {value: self.value, "low": self.low, "high": self.high, "n_prompts": self.n}

    def to_json(self) -> dict[str, float | int | None]:
        """Return value, low, high and n; non-finite numbers become None, as JSON has none."""
        value, low, high = (
            x if math.isfinite(x) else None for x in (self.value, self.low, self.high)
        )
        return {"value": value, "low": low, "high": high, "n": self.n}


def number(value: float, spec: str) -> str:
    """Return a number as text, with a space before the percent sign and without "-0"."""
    text = format(value, spec)
    if not any(digit in text for digit in "123456789") and text.startswith("-"):
        text = text[1:]
    return f"{text[:-1]} %" if text.endswith("%") else text


def estimate(values: ArrayLike, *, weights: ArrayLike | None = None, seed: int = 0) -> Estimate:
    """Return the (weighted) mean of values [prompt] with its percentile-bootstrap interval."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return Estimate(NAN)
    columns = estimates(array[:, None], weights=weights, seed=seed)
    mean, low, high = (float(columns[name][0]) for name in ("mean", "low", "high"))
    return Estimate(mean, low, high, len(array))


def estimates(
    values: ArrayLike, *, weights: ArrayLike | None = None, seed: int = 0
) -> dict[str, Array]:
    """Return the (weighted) means of values [prompt ...] and their intervals as columns [...].

    Columns are mean, low, high (percentile bootstrap over the prompts, 1,000 resamples) and
    n_prompts. Calls with the same seed and number of prompts draw the same prompts.
    """
    array = np.asarray(values, dtype=np.float64)
    per_prompt = None if weights is None else np.asarray(weights, dtype=np.float64)
    low, high = bootstrap_interval(array, weights=per_prompt, seed=seed)
    mean = array.mean(0) if per_prompt is None else np.average(array, axis=0, weights=per_prompt)
    return {"mean": mean, "low": low, "high": high, "n_prompts": np.full(mean.shape, len(array))}


def estimate_of(value: float, resampled: Iterable[float], *, n: int) -> Estimate:
    """Return a number with the interval of its resampled values, such as a ratio of means."""
    return Estimate(float(value), *interval_of(resampled), n)


def estimate_difference(one: ArrayLike, other: ArrayLike, *, seed: int = 0) -> Estimate:
    """Return mean(one) - mean(other), over different prompts, with its interval."""
    first, second = (np.asarray(values, dtype=np.float64) for values in (one, other))
    if not len(first) or not len(second):
        return Estimate(NAN)
    interval = interval_of_difference(first, second, seed=seed)
    return Estimate(float(first.mean() - second.mean()), *interval, len(first) + len(second))
