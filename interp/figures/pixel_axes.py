"""Axes of still pictures: where values stand, in pixels, and which of them are written."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interp.figures.raster import Trace, numbers_of
from interp.numerals import with_minus

Values = NDArray[np.float64]
Tick = tuple[float, str]  # where along the axis, and what is written
CHARACTER = 6.4  # pixels, of the size that ticks and names are written in
_APART = 34.0  # pixels between ticks, at least
_WORD = 40.0  # pixels, in which a word can be told from another
_FEW = 2.0  # powers of ten
_PLAIN = 3  # powers of ten beyond it are written as such
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_PADDED = 0.03  # of an axis's length, on either side of lines and points


@dataclass(frozen=True)
class PixelAxis:
    """Where values stand along an axis of `length` pixels; words stand in order at 0, 1, …

    Values grow with the pixels, to the right or downwards; if `is_upward`, against them. `layout`
    is what the figure says of the axis.
    """

    names: tuple[str, ...]
    low: float
    high: float
    length: float
    is_log: bool = False
    is_upward: bool = False
    layout: Mapping[str, Any] = field(default_factory=dict)

    def numbers(self, values: Any) -> Values:
        """Return values as numbers along the axis."""
        if self.names:
            return np.array([self.names.index(str(value)) for value in values], np.float64)
        numbers = numbers_of(values)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log10(numbers) if self.is_log else numbers

    def at(self, numbers: Values) -> Values:
        """Return where numbers along the axis stand, in pixels."""
        share = (numbers - self.low) / ((self.high - self.low) or 1.0)
        return self.length * (1 - share if self.is_upward else share)

    def place(self, number: float) -> float:
        """Return where one number along the axis stands, in pixels."""
        return float(self.at(np.array([number]))[0])

    @property
    def ticks(self) -> list[Tick]:
        """Return the ticks that there is room for; a few long words are cut, not left out."""
        ticks = [(at, text) for at, text in self._candidates() if self.low <= at <= self.high]
        room = self.length / max(1, len(ticks))
        if self.names and not self.is_upward and room >= _WORD:
            most = int(room / CHARACTER) - 1
            return [(at, t if len(t) <= most else f"{t[: most - 1]}…") for at, t in ticks]
        longest = max((len(text) for _, text in ticks), default=0) * CHARACTER + 8
        return ticks[:: max(1, math.ceil((20.0 if self.is_upward else longest) / room))]

    def _candidates(self) -> list[Tick]:
        if self.layout.get("tickvals") is not None:
            places = numbers_of(self.layout["tickvals"]).tolist()
            return [*zip(places, map(str, self.layout.get("ticktext") or places), strict=True)]
        if self.names:
            return [(float(i), name) for i, name in enumerate(self.names)]
        if self.is_log:
            return _powers(self.low, self.high)
        spec, step = str(self.layout.get("tickformat") or ""), self.layout.get("dtick") or 0.0
        most = int(self.length // _APART)
        return ticks_between(self.low, self.high, most=most, least=float(step), spec=spec)


def _powers(low: float, high: float) -> list[Tick]:
    """Return powers of ten between two; of few, twice and five times them too."""
    whole = range(math.floor(low), math.floor(high) + 1)
    times = (1, 2, 5) if high - low < _FEW else (1,)
    return [(k + math.log10(n), _power(n, k)) for k in whole for n in times]


def _power(times: int, k: int) -> str:
    """Return some power of ten as it is written: "0.02", "100", "10⁵"."""
    if abs(k) <= _PLAIN or times > 1:
        return f"{times * 10.0**k:g}"
    return f"10{f'{k}'.translate(_RAISED)}"


def ticks_between(
    low: float, high: float, *, most: int, least: float = 0.0, spec: str = ""
) -> list[Tick]:
    """Return up to `most` round numbers between two, `least` or more apart, written by `spec`."""
    rough = (high - low) / max(2, most) or 1.0
    unit = least if least and least <= rough else 10.0 ** math.floor(math.log10(rough))
    powers = (unit * 10**k for k in range(12))
    round_steps = (n * power for power in powers for n in (1, 2, 5))
    step = max(least, next(step for step in round_steps if step >= rough * 0.999))
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    places = [k * step for k in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]
    return [
        (at, with_minus(format(at + 0.0, spec) if spec else f"{round(at, digits) + 0.0:g}"))
        for at in places
    ]


def axis_of(
    traces: Sequence[Trace], of: str, layout: Mapping[str, Any], length: float
) -> PixelAxis:
    """Return an axis, "x" or "y", that all of these traces fit on."""
    is_forced = layout.get("type") == "category"
    names = names_along((trace[of] for trace in traces), is_forced=is_forced)
    is_log = layout.get("type") == "log"
    is_upward = of == "y" and layout.get("autorange") != "reversed"
    axis = PixelAxis(names, 0.0, 1.0, length, is_log, is_upward, layout)
    low, high = _ends(traces, of, axis)
    if layout.get("range") and not names:
        low, high = map(float, layout["range"])
    return PixelAxis(names, low, high, length, is_log, is_upward, layout)


def _ends(traces: Sequence[Trace], of: str, axis: PixelAxis) -> tuple[float, float]:
    """Return what the traces reach from and to, with some room around lines and points."""
    numbers = [axis.numbers(trace[of]) for trace in traces]
    reached = [*numbers, *(end for trace in traces for end in errors_of(trace, of, axis))]
    finite = np.concatenate([values[np.isfinite(values)] for values in reached])
    low, high = float(finite.min()), float(finite.max())
    kinds = {trace["type"] for trace in traces}
    if "heatmap" in kinds or (of == "x" and kinds & {"bar", "box"}):
        half = float(min((step_of(values) for values in numbers), default=1.0)) / 2
        return low - half, high + half
    around = _PADDED * ((high - low) or 1.0)
    if of == "y" and "bar" in kinds:
        return min(low - around, 0.0), max(high + around, 0.0)
    return low - around, high + around


def errors_of(trace: Trace, of: str, axis: PixelAxis) -> list[Values]:
    """Return where a trace's error bars begin and end along an axis; nothing without any."""
    error = trace.get(f"error_{of}") or {}
    if error.get("array") is None:
        return []
    middle, above = numbers_of(trace[of]), numbers_of(error["array"])
    below = above if error.get("arrayminus") is None else numbers_of(error["arrayminus"])
    return [axis.numbers(middle - below), axis.numbers(middle + above)]


def names_along(values: Iterable[Any], *, is_forced: bool = False) -> tuple[str, ...]:
    """Return the words along an axis in order; none if all of its values are numbers."""
    known, are_words = dict[str, None](), is_forced
    for column in values:
        try:
            numbers_of(column)
        except ValueError:
            are_words = True
        known |= dict.fromkeys(map(str, [] if isinstance(column, dict) else column))
    return tuple(known) if are_words else ()


def step_of(values: Values) -> float:
    """Return the smallest distance between two different values; 1 if there is only one."""
    steps = np.diff(np.unique(values[np.isfinite(values)]))
    return float(steps.min()) if len(steps) else 1.0
