"""A grid of numbers with its rows, columns and colour scale, as every page hands it out."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Axis:
    """Rows or columns: their name, and what picking one of them selects by `keys`."""

    name: str
    labels: tuple[str, ...]
    values: tuple[int, ...]
    keys: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, name: str, n: int, *keys: str, labels: tuple[str, ...] = (), first: int = 0
    ) -> "Axis":
        """Return an axis of `n` places that are numbered from `first`."""
        numbers = tuple(range(first, first + n))
        return cls(name, labels or tuple(map(str, numbers)), numbers, keys)

    def index(self, selected: dict[str, int | None]) -> int | None:
        """Return the selected place on this axis, or None."""
        for key in self.keys:
            value = selected.get(key)
            if value is not None:
                return self.values.index(value) if value in self.values else None
        return None

    def outside(self, selected: dict[str, int | None]) -> list[str]:
        """Return, as "layer 9", what is selected but not on this axis."""
        value = next((selected[key] for key in self.keys if selected.get(key) is not None), None)
        return [] if value is None or value in self.values else [f"{self.keys[0]} {value}"]

    def picked(self, index: int) -> dict[str, int]:
        """Return the selection that picking a place makes."""
        return dict.fromkeys(self.keys, self.values[index])


@dataclass(frozen=True)
class Grid:
    """Values [row column], NaN where there is none for the reason `missing`.

    Signed values are coloured around 0, others from 0 to `top` (the largest). `low`, `high` and `n`
    (prompts) are those of a mean. `texts` are written into cells, each where `text_at` [row column]
    says. `threshold` (name, value) marks what is below it as `hatched`.
    """

    title: str
    values: Values
    rows: Axis
    cols: Axis
    unit: str = ""
    is_signed: bool = False
    is_upward: bool = True
    top: float | None = None
    missing: str = "nothing measured"
    low: Values | None = None
    high: Values | None = None
    n: Values | None = None
    texts: tuple[str, ...] = ()
    text_at: NDArray[np.int32] | None = None
    threshold: tuple[str, float] | None = None
    hatched: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def range(self) -> tuple[float, float]:
        """Return the ends of the colour scale: from 0 on, or around it where values are signed."""
        if self.is_signed:
            top = self._largest(np.abs(self.values))
            return -top, top
        return 0.0, self._largest(self.values)

    def text(self, row: int, col: int) -> str:
        """Return what is written into a cell."""
        return "" if self.text_at is None else self.texts[self.text_at[row, col]]

    def _largest(self, values: Values) -> float:
        if self.top is not None:
            return self.top
        finite = values[np.isfinite(values)]
        return float(finite.max()) if finite.size and finite.max() > 0 else 1.0

    def captions(self) -> list[str]:
        """Return what must be known to read it: what is missing, cut off, or 0 everywhere."""
        captions = list(self.notes)
        low, high = self.range
        finite = self.values[np.isfinite(self.values)]
        if n_broken := int(np.isinf(self.values).sum()):
            captions.append(f"Infinite cells, left blank: {n_broken}.")
        if n_missing := int(np.isnan(self.values).sum()):
            captions.append(f"Blank cells: {n_missing} of {self.values.size} ({self.missing}).")
        if n_above := int((finite > high).sum() + (finite < low).sum()):
            captions.append(
                f"Cells beyond the colour scale ({low:.4g} to {high:.4g}), marked ▲: {n_above}."
            )
        if not finite.size:
            captions.append("There is no number to show.")
        elif not finite.any():
            captions.append("All values are 0.")
        return captions

    def rank(self, row: int, col: int) -> tuple[int, int, int]:
        """Return a cell's place by absolute size (1: the largest), how many are smaller, and n."""
        size, sizes = abs(self.values[row, col]), np.abs(self.values[np.isfinite(self.values)])
        return int((sizes > size).sum()) + 1, int((sizes < size).sum()), sizes.size

    def to_frame(self) -> pd.DataFrame:
        """Return the same numbers as a table, a row per row from the top of the picture."""
        frame = pd.DataFrame(
            self.values, index=list(self.rows.labels), columns=_distinct(self.cols.labels)
        )
        frame.index.name = self.rows.name
        return frame[::-1] if self.is_upward else frame


def _distinct(labels: tuple[str, ...]) -> list[str]:
    """Return labels for columns, numbered where two are the same."""
    return (
        list(labels)
        if len(set(labels)) == len(labels)
        else [f"{i} {label}" for i, label in enumerate(labels)]
    )
