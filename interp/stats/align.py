"""Values at positions counted from the prompts' ends, averaged over prompts of any lengths.

Positions are -1 for the prompt's last token, -2 for the one before it, and 1, 2, ... after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from interp.stats.estimate import estimates
from interp.stats.groups import Groups

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Aligned:
    """Values [prompt layer column], NaN where a prompt has none.

    Column 0 is every prompt's first token, which is often an attention sink and is in no other
    column. The others are positions from the end: -1 is the prompt's last token, which predicts the
    answer's first token; -2 the one before it, 1 the first after it. There is no 0 among them.
    """

    values: Array
    positions: NDArray[np.int64]

    @property
    def columns(self) -> list[str]:
        """Return what each column holds: "first", or a position such as "-1" or "+1"."""
        return ["first", *(f"{p:+d}" for p in self.positions)]

    def to_frame(self, *, seed: int, groups: Groups | None = None) -> pd.DataFrame:
        """Return columns layer, position, mean, low, high, max and n_prompts.

        Intervals are over `groups` [prompt], by default over prompts.

        `position` counts from the end, as text ("-1" is the last, "+1" after it), or is "first".
        """
        columns = [self._column(i, name, seed, groups) for i, name in enumerate(self.columns)]
        joined = {name: np.concatenate([each[name] for each in columns]) for name in columns[0]}
        return pd.DataFrame(joined)

    def _column(
        self, i: int, name: str, seed: int, groups: Groups | None
    ) -> dict[str, NDArray[Any]]:
        column: NDArray[np.float64] = self.values[:, :, i].astype(np.float64)
        has_position = ~np.isnan(column).any(1)
        values = column[has_position]
        of_values = None if groups is None else groups[has_position]
        found = estimates(values, groups=of_values, seed=seed)
        n_layers, n_prompts = values.shape[1], found.pop("n_prompts")
        keys = {"layer": np.arange(n_layers), "position": np.full(n_layers, name)}
        return keys | found | {"max": values.max(0), "n_prompts": n_prompts}


def align(
    parts: Sequence[Array], *, last: Sequence[NDArray[np.int64]], n_pos: Sequence[NDArray[np.int64]]
) -> Aligned:
    """Align values [prompt layer pos] of all parts at each prompt's `last` token.

    `n_pos` are the prompts' own numbers of positions.
    """
    lowest = min(int((1 - ends).min()) for ends in last)
    highest = max(int((n - 1 - ends).max()) for n, ends in zip(n_pos, last, strict=True))
    rows = []
    for part, ends, lengths in zip(parts, last, n_pos, strict=True):
        for values, end, length in zip(part, ends, lengths, strict=True):
            row = np.full((values.shape[0], 2 + highest - lowest), np.nan, np.float32)
            row[:, 0] = values[:, 0]
            begin = 1 + (1 - end) - lowest
            row[:, begin : begin + length - 1] = values[:, 1:length]
            rows.append(row)
    offsets = np.arange(lowest, highest + 1)  # 0 is the last token
    return Aligned(np.stack(rows), np.where(offsets > 0, offsets, offsets - 1))
