"""How far a run is and how long the rest will take: prices, corrected by what was measured."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from interp.runs.folder import Cell
from interp.runs.plan import Spent

_TRUST = 0.1  # of what is priced, as if it had been measured and had taken as long


@dataclass(frozen=True)
class Standing:
    """What a run is doing, the share of the work that is done, and the seconds that are left.

    They are None where nothing is known of them.
    """

    doing: str
    share: float = 0.0
    seconds_left: float | None = None


Progress = Callable[[Standing], None]
OnCell = Callable[[Cell, Mapping[str, Any]], None]  # with what run.json records of it


class WorkLeft:
    """The work of a task's cells, in seconds of one worker as priced; `n_workers` share it."""

    def __init__(self, seconds: Mapping[Cell, float | None], *, n_workers: int = 1) -> None:
        self._priced = {cell: each or 0.0 for cell, each in seconds.items()}
        self._n_workers = n_workers
        self._done = dict.fromkeys(seconds, 0.0)  # the share of each cell
        self._took = dict.fromkeys(seconds, 0.0)
        self._timed = dict.fromkeys(seconds, 0.0)  # the share of each cell that was measured anew

    def add(self, cell: Cell, share: float, spent: Spent) -> None:
        """Note that a share of a cell is done; what was read from disk says nothing of speed."""
        self._done[cell] += share
        if spent.block_tokens > 0:
            self._took[cell] += spent.seconds
            self._timed[cell] += share

    def drop(self, cell: Cell) -> None:
        """Note that nothing more will be done for a cell."""
        if cell in self._done:
            self._done[cell] = 1.0

    @property
    def share(self) -> float:
        """Return the share of the priced work that is done."""
        whole = sum(self._priced.values())
        done = sum(self._priced[cell] * done for cell, done in self._done.items())
        return done / whole if whole else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Return how long the rest takes, if each cell goes on as fast as it has gone so far.

        Of a cell that has not begun, it is the price, corrected as those of the others prove; the
        less is measured, the more the price is trusted.
        """
        if not any(self._priced.values()):
            return None
        expected = {cell: self._priced[cell] * timed for cell, timed in self._timed.items()}
        weight = _TRUST * sum(self._priced.values())
        of_all = (sum(self._took.values()) + weight) / (sum(expected.values()) + weight)
        left = 0.0
        for cell, priced in self._priced.items():
            weight = _TRUST * priced
            own = (self._took[cell] + of_all * weight) / (expected[cell] + weight or 1.0)
            left += own * priced * max(0.0, 1.0 - self._done[cell])
        return left / self._n_workers
