"""Tables of finished cells: read whole, and compared between two runs; no torch."""

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.runs.folder import Cell, read_file, read_run

_SETTINGS = ("config", "versions", "models", "tasks", "machine")


def read_frame(folder: Path, cell: Cell) -> pd.DataFrame:
    """Return a cell's table; raise RunError if its file is missing or damaged."""
    return pd.read_parquet(io.BytesIO(read_file(folder / cell.path / "frame.parquet")))


@dataclass(frozen=True)
class CellDifference:
    """How the tables of one cell differ: in how many numbers, by how much at most, and where."""

    path: str
    n_rows: int
    n_different: int
    largest: float | None
    where: str = ""
    why: str = ""


@dataclass(frozen=True)
class RunDifference:
    """All that differs; `cells` are those that both runs have and whose numbers differ."""

    settings: dict[str, tuple[Any, Any]]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    cells: tuple[CellDifference, ...]

    @property
    def is_none(self) -> bool:
        """Tell whether both runs agree; settings such as the machine may differ."""
        return not (self.only_a or self.only_b or self.cells)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def differences(a: Path, b: Path, *, tolerance: float) -> RunDifference:
    """Return what differs between two runs; numbers within `tolerance` are equal."""
    left, right = read_run(a), read_run(b)
    done = [
        {path: cell for path, cell in run["cells"].items() if cell["status"] == "ok"}
        for run in (left, right)
    ]
    cells = [Cell.of(path, record) for path, record in done[0].items() if path in done[1]]
    compared = [
        _compare(cell.path, read_frame(a, cell), read_frame(b, cell), tolerance) for cell in cells
    ]
    return RunDifference(
        dict(_settings(left, right)),
        tuple(path for path in done[0] if path not in done[1]),
        tuple(path for path in done[1] if path not in done[0]),
        tuple(difference for difference in compared if difference is not None),
    )


def _settings(left: dict[str, Any], right: dict[str, Any]) -> list[tuple[str, tuple[Any, Any]]]:
    sides = [_flat({name: side.get(name) for name in _SETTINGS}) for side in (left, right)]
    pairs = {
        key: (sides[0].get(key), sides[1].get(key)) for key in dict.fromkeys([*sides[0], *sides[1]])
    }
    return [(key, pair) for key, pair in pairs.items() if pair[0] != pair[1]]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return the values of nested objects by dotted names."""
    if not isinstance(value, dict):
        return {name: value}
    return {
        k: v
        for key, inner in value.items()
        for k, v in _flat(inner, f"{name}.{key}".lstrip(".")).items()
    }


def _compare(
    path: str, a: pd.DataFrame, b: pd.DataFrame, tolerance: float
) -> CellDifference | None:
    """Return how two tables differ; None if they do not."""
    numbers = [name for name in a.columns if pd.api.types.is_float_dtype(a[name])]
    keys = [name for name in a.columns if name not in numbers]
    if why := _unlike(a, b, keys):
        return CellDifference(path, len(a), 0, None, why=why)
    left, right = (frame[numbers].to_numpy(np.float64, na_value=np.nan) for frame in (a, b))
    gap = np.where(np.isnan(left) & np.isnan(right), 0.0, np.abs(left - right))
    gap = np.where(np.isnan(gap), np.inf, gap)
    if not gap.size or gap.max() <= tolerance:
        return None
    row, column = np.unravel_index(int(gap.argmax()), gap.shape)
    values = {key: str(a[key].iloc[row]) for key in keys}
    place = ", ".join(f"{key} {value}" for key, value in values.items() if value != "<NA>")
    where = f"{numbers[column]} of {place}: {left[row, column]:.4g} | {right[row, column]:.4g}"
    return CellDifference(path, len(a), int((gap > tolerance).sum()), float(gap.max()), where)


def _unlike(a: pd.DataFrame, b: pd.DataFrame, keys: list[str]) -> str:
    """Return why the numbers of two tables cannot be compared; "" if they can."""
    if list(a.columns) != list(b.columns) or len(a) != len(b):
        return f"{a.shape[0]} × {a.shape[1]} against {b.shape[0]} × {b.shape[1]}"
    for key in keys:
        if not a[key].astype(str).equals(b[key].astype(str)):
            return f"column {key} differs"
    return ""
