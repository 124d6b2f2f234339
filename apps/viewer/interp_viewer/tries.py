"""The paths that were tried for every prompt, as a run keeps them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from interp_viewer.grid import Values
from interp_viewer.tensors import Measured

KINDS = {"search": "search", "random paths": "random"}  # as they are called, and in tensors


@dataclass(frozen=True)
class Tries:
    """Paths [prompt try step] with -1 after their end, and what each answers [prompt try].

    A prompt's first path is the ordinary one; `log_prob` is the answer's, in nats.
    """

    paths: NDArray[np.int16]
    is_right: NDArray[np.bool_]
    log_prob: NDArray[np.float32]

    @classmethod
    def of(cls, measured: Measured, kind: str) -> "Tries":
        """Return the tries of a kind; raise RunError in a run that has none."""
        names = (f"{KINDS[kind]}.{part}" for part in ("path", "is_right", "log_prob"))
        paths, is_right, log_prob = (measured.all(name) for name in names)
        return cls(paths, is_right.astype(bool), log_prob)

    @property
    def n_layers(self) -> int:
        """Return the model's number of layers: no path runs more than twice as many."""
        return int(self.paths.shape[2] // 2)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return how many layers each path runs [prompt try]."""
        return np.asarray((self.paths >= 0).sum(-1))

    def path(self, row: int, number: int) -> list[int]:
        """Return the layers of one path, in order."""
        path: list[int] = self.paths[row, number].tolist()
        return [layer for layer in path if layer >= 0]

    def shortest(self, row: int) -> int | None:
        """Return the number of a prompt's shortest right path, of equal ones the surest."""
        order = self._by_length(row)
        right = order[self.is_right[row, order]]
        return int(right[0]) if len(right) else None

    def front(self, row: int) -> NDArray[np.int64]:
        """Return the numbers of a prompt's paths that no shorter one beats, by length."""
        order = self._by_length(row)
        log_prob = self.log_prob[row, order]
        best = np.maximum.accumulate(np.concatenate([[-np.inf], log_prob[:-1]]))
        return order[log_prob > best]

    def _by_length(self, row: int) -> NDArray[np.int64]:
        return np.lexsort((-self.log_prob[row], self.lengths[row]))

    def usage(self) -> Values:
        """Return how often each prompt's shortest right path runs each layer [prompt layer].

        NaN for a prompt without a right path.
        """
        runs = np.full((len(self.paths), self.n_layers), np.nan, np.float32)
        for row in range(len(runs)):
            number = self.shortest(row)
            if number is not None:
                runs[row] = np.bincount(self.path(row, number), minlength=self.n_layers)
        return runs


def passes(path: list[int]) -> list[list[int]]:
    """Return a path cut where it goes back: [0, 1, 3, 2, 3] as [[0, 1, 3], [2, 3]]."""
    cuts = [i for i in range(1, len(path)) if path[i] <= path[i - 1]]
    return [path[a:b] for a, b in zip([0, *cuts], [*cuts, len(path)], strict=True)]


def path_named(path: list[int]) -> str:
    """Return a path as text: [0, 1, 2, 5, 5, 6] as "0–2, 5, 5–6"."""
    cuts = [i for i in range(1, len(path)) if path[i] != path[i - 1] + 1]
    ends = zip([0, *cuts], [*cuts, len(path)], strict=True)
    spans = [(path[a], path[b - 1]) for a, b in ends]
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in spans)
