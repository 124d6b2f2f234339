"""The two colour scales, both colour-blind safe.

Diverging around 0 (blue: positive, red: negative), and sequential.
"""

import base64
from functools import cache

import numpy as np
from numpy.typing import NDArray

from interp.figures.raster import shades

# signed values on dark paper: the dark ends of RdBu would vanish, so this runs to light ones
_ON_DARK = (
    *("#ffc9bd", "#fb9a86", "#ef6548", "#b3402e", "#6e2b24"),
    "#262730",  # the paper
    *("#1f3f5c", "#2b6ca3", "#5aa2d6", "#95c8ee", "#cfe8ff"),
)

Lut = NDArray[np.uint8]


@cache
def lut(theme: str, *, is_signed: bool) -> Lut:
    """Return 256 colours [step rgb], low to high; the middle of signed scales is the paper's."""
    if not is_signed:
        return shades("Cividis")
    return shades(_ON_DARK if theme == "dark" else "RdBu")


def encoded(array: NDArray[np.generic]) -> str:
    """Return an array's bytes as text."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
