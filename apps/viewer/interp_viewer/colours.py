"""The two colour scales: diverging around 0 (blue: positive, red: negative), and sequential; both
colour-blind safe.
"""

import base64

import numpy as np
from numpy.typing import NDArray

# ColorBrewer's RdBu, from negative to positive, and cividis, at equal distances
_DIVERGING = (
    "67001f",
    "b2182b",
    "d6604d",
    "f4a582",
    "fddbc7",
    "",
    "d1e5f0",
    "92c5de",
    "4393c3",
    "2166ac",
    "053061",
)
_SEQUENTIAL = (
    "00224e",
    "123570",
    "3b496c",
    "575d6d",
    "707173",
    "8a8678",
    "a59c74",
    "c3b369",
    "e1cc55",
    "fee838",
)
_PAPER = {"light": "f7f7f7", "dark": "262730"}

Lut = NDArray[np.uint8]


def lut(theme: str, *, is_signed: bool, is_reversed: bool = False) -> Lut:
    """Return 256 colours [step rgb] from the low to the high end of a scale; the middle of signed
    ones is the paper's.
    """
    stops = _DIVERGING if is_signed else _SEQUENTIAL
    if is_signed and theme == "dark":  # the dark ends would vanish: the scale runs to light ones
        stops = (
            "ffc9bd",
            "fb9a86",
            "ef6548",
            "b3402e",
            "6e2b24",
            "",
            "1f3f5c",
            "2b6ca3",
            "5aa2d6",
            "95c8ee",
            "cfe8ff",
        )
    points = np.array(
        [[int((stop or _PAPER[theme])[i : i + 2], 16) for i in (0, 2, 4)] for stop in stops], float
    )
    at = np.linspace(0, len(points) - 1, 256)
    colours = np.stack(
        [np.interp(at, np.arange(len(points)), points[:, i]) for i in range(3)], axis=1
    )
    return np.round(colours[::-1] if is_reversed else colours).astype(np.uint8)


def encoded(array: NDArray[np.generic]) -> str:
    """Return an array's bytes as text."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
