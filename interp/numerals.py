"""Numbers as people read them: a real minus, no "e+05", no "0.00" for what is not 0."""

import math
import re

_FINER = 2  # decimals beyond those asked for, where rounding would hide a number
_LONGEST = 6  # power of ten, up to which a number is written in full
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_DECIMALS = re.compile(r"(.*)\.(\d+)([f%])")


def number(value: float, spec: str) -> str:
    """Return a number as text: "−0.31", "43 %", "102,000", "3.1 × 10⁻⁸".

    One that rounding would hide gets up to two more decimals, and is "< 0.0001" below those. Zero
    has no sign.
    """
    return rounded(value, finer(spec, value)) if is_seen(value, spec) else _tiny(value, spec)


def rounded(value: float, spec: str) -> str:
    """Return a number as text with no more decimals than asked for."""
    text = format(value, spec)
    if not any(digit in text for digit in "123456789"):
        text = text.removeprefix("-")
    text = f"{text[:-1]} %" if text.endswith("%") else text
    return with_minus(_without_e(text) if "e" in text else text)


def finer(spec: str, value: float) -> str:
    """Return a spec with as many more decimals, up to two, as a number needs not to round to 0."""
    if not _is_hidden(value, spec):
        return spec
    head, digits, kind = _parts(spec)
    specs = [f"{head}.{digits + more}{kind}" for more in range(1, _FINER + 1)]
    return next((each for each in specs if not _is_hidden(value, each)), specs[-1])


def is_seen(value: float, spec: str) -> bool:
    """Tell whether a number is 0, or does not round to it with the decimals of `finer`."""
    return not _is_hidden(value, finer(spec, value))


def with_minus(numbers: str) -> str:
    """Return numbers in which hyphens have become minus signs."""
    return numbers.replace("-", "−")


def _is_hidden(value: float, spec: str) -> bool:
    """Tell whether a number that is not 0 would be rounded to 0."""
    if not value or not math.isfinite(value) or _DECIMALS.fullmatch(spec) is None:
        return False
    return not any(digit in format(value, spec) for digit in "123456789")


def _parts(spec: str) -> tuple[str, int, str]:
    parts = _DECIMALS.fullmatch(spec)
    assert parts is not None
    return parts[1], int(parts[2]), parts[3]


def _times(kind: str) -> int:
    return 100 if kind == "%" else 1


def _tiny(value: float, spec: str) -> str:
    """Return what a number that is too small to be written is smaller than."""
    _, digits, kind = _parts(spec)
    digits += _FINER
    least = rounded(10.0**-digits / _times(kind), f".{digits}{kind}")
    return f"> −{least}" if value < 0 else f"< {least}"


def _without_e(text: str) -> str:
    """Return "1.02e+05" as "102,000", and powers too long for that as "1.02 × 10⁷"."""
    times, power = text.split("e")
    if 0 <= int(power) <= _LONGEST:
        return f"{float(text):,.0f}"
    return f"{times} × 10{str(int(power)).translate(_RAISED)}"
