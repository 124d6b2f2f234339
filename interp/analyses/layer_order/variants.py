"""Which layers are run in which order, and what that costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal, get_args

import torch

Operation = Literal[
    "swap",
    "distance",
    "reverse",
    "shuffle",
    "repeat",
    "parallel_sum",
    "parallel_mean",
    "looped_parallel",
    "duplicate",
    "loop",
    "damped_loop",
]
WINDOWED: tuple[Operation, ...] = get_args(Operation)[2:]  # all but swaps of two layers
NOT_PATHS = ("parallel_sum", "parallel_mean", "looped_parallel", "damped_loop")
DISTANCES = (2, 4, 8)
LENGTH = 4  # layers of a window, by default
MOST_PLACES = 4  # of swaps at a distance, and of windows by default


@dataclass(frozen=True)
class Variant:
    """One way of running the layers: an operation on some of them; all others run as ever.

    "skip" leaves `layers` out, "swap" exchanges the first and the last of them. `draw` numbers
    shuffles, `rounds` are those of loops.
    """

    operation: str
    layers: tuple[int, ...]
    draw: int = 0
    rounds: int = 1
    seed: int = 0

    @property
    def name(self) -> str:
        """Return "swap 3,4", "reverse 5-8" or "shuffle 5-8 #2"."""
        first, last = self.layers[0], self.layers[-1]
        is_window = self.layers == tuple(range(first, last + 1))
        if len(self.layers) == 1:
            place = f"{first}"
        elif is_window and self.operation != "swap":
            place = f"{first}-{last}"
        else:
            place = ",".join(map(str, self.layers))
        return f"{self.operation} {place}" + (f" #{self.draw + 1}" if self.draw else "")

    @property
    def is_path(self) -> bool:
        """Tell whether the order in which layers run says all."""
        return self.operation not in NOT_PATHS

    def path(self, n_layers: int) -> tuple[int, ...] | None:
        """Return the layers in the order in which they run; None if that says not all."""
        if not self.is_path:
            return None
        first, last = self.layers[0], self.layers[-1]
        return (*range(first), *self._instead(), *range(last + 1, n_layers))

    def _instead(self) -> Sequence[int]:
        """Return what runs from the first of the layers to the last."""
        layers, span = self.layers, range(self.layers[0], self.layers[-1] + 1)
        match self.operation:
            case "swap":
                return (layers[-1], *span[1:-1], layers[0])
            case "skip":
                return [layer for layer in span if layer not in layers]
            case "reverse":
                return layers[::-1]
            case "shuffle":
                return self._shuffled()
            case "repeat":
                return (layers[len(layers) // 2],) * len(layers)
            case _:  # duplicate, loop
                return layers * self.rounds

    def _shuffled(self) -> list[int]:
        """Return the layers in a drawn order, which is another one wherever there is one."""
        generator = torch.Generator()
        generator.manual_seed(self.seed + 2**16 * self.draw + 2**32 * self.layers[0])
        order = list(self.layers)
        while order == list(self.layers) and len(order) > 1:
            drawn = torch.randperm(len(order), generator=generator).tolist()
            order = [self.layers[i] for i in drawn]
        return order

    def start(self, n_layers: int) -> int:
        """Return how many layers run as ever before anything changes."""
        path = self.path(n_layers)
        if path is None:
            return self.layers[0]
        same = takewhile(lambda pair: pair[0] == pair[1], zip(path, range(n_layers), strict=False))
        return sum(1 for _ in same)

    def n_blocks(self, n_layers: int) -> int:
        """Return how many blocks run: none whose output the clean pass has."""
        path, size = self.path(n_layers), len(self.layers)
        if path is not None:
            return len(path) - self.start(n_layers)
        behind = n_layers - 1 - self.layers[-1]
        known = size if self.operation == "damped_loop" else 1
        return self.rounds * size - known + behind

    def key(self, n_layers: int) -> tuple[object, ...]:
        """Return what is the same for variants that run the same blocks on the same streams."""
        path = self.path(n_layers)
        is_mean = self.operation in ("parallel_mean", "looped_parallel")
        kind = "mean" if is_mean else self.operation
        return (kind, self.layers, self.rounds) if path is None else ("path", *path)


def swaps(n_layers: int, *, every: int) -> list[Variant]:
    """Return swaps of neighbours, and skips of the first, of the second and of both."""
    pairs = [(layer, layer + 1) for layer in range(0, n_layers - 1, every)]
    single = sorted({layer for pair in pairs for layer in pair})
    return [
        *[Variant("swap", pair) for pair in pairs],
        *[Variant("skip", pair) for pair in pairs],
        *[Variant("skip", (layer,)) for layer in single],
    ]


def inner(n_layers: int) -> range:
    """Return all layers but the first and the last; all of fewer than four."""
    return range(1, n_layers - 1) if n_layers > 3 else range(n_layers)


def fitting_distances(n_layers: int) -> tuple[int, ...]:
    """Return the distances that are looked at by default, as far as they fit."""
    return tuple(distance for distance in DISTANCES if distance < len(inner(n_layers)))


def distant_swaps(n_layers: int, distances: Sequence[int], *, every: int) -> list[Variant]:
    """Return swaps of layers at each distance and skips of both, all from the same layers on.

    Neighbours at these places come first. At most `MOST_PLACES` places, spread evenly.
    """
    if not distances:
        return []
    longest = max(distances)
    within = inner(n_layers) if longest < len(inner(n_layers)) else range(n_layers)
    last = within[-1] - longest
    places = _spread(within[0], last, min(last - within[0] + 1, MOST_PLACES))[::every]
    return [
        Variant(operation, (place, place + distance))
        for distance in sorted({1, *distances})
        for operation in ("swap", "skip")
        for place in places
    ]


def windows_of(n_layers: int, lengths: Sequence[int], *, every: int) -> list[tuple[int, ...]]:
    """Return windows of each length, without the first and the last layer if they fit.

    They do not overlap, are spread evenly, and at most `MOST_PLACES` of a length.
    """
    chosen: list[tuple[int, ...]] = []
    for length in lengths or (min(LENGTH, len(inner(n_layers))),):
        within = inner(n_layers) if length <= len(inner(n_layers)) else range(n_layers)
        n = min(len(within) // length, MOST_PLACES)
        firsts = _spread(within[0], within[-1] - length + 1, n)[::every]
        chosen += [tuple(range(first, first + length)) for first in firsts]
    return chosen


def _spread(first: int, last: int, n: int) -> list[int]:
    """Return `n` places from the first to the last, evenly."""
    return [first + round(i * (last - first) / max(1, n - 1)) for i in range(n)]


def windowed(
    windows: Sequence[tuple[int, ...]],
    operations: Sequence[str],
    *,
    shuffles: int,
    rounds: int,
    seed: int,
) -> list[Variant]:
    """Return every operation on every window, and skips of the windows, if there are any."""
    variants: list[Variant] = []
    for operation in [name for name in WINDOWED if name in operations]:
        n_rounds = {"duplicate": 2, "loop": rounds, "looped_parallel": rounds}.get(operation, 1)
        n_rounds = rounds if operation == "damped_loop" else n_rounds
        for window in windows:
            for draw in range(shuffles if operation == "shuffle" else 1):
                variants.append(Variant(operation, window, draw, n_rounds, seed))
    skips = [Variant("skip", window) for window in windows] if variants else []
    return [*variants, *skips]


@dataclass(frozen=True)
class Orders:
    """What is run: swaps of neighbours, swaps at a distance and changes of windows, with skips."""

    adjacent: list[Variant]
    distant: list[Variant]
    windowed: list[Variant]

    @property
    def variants(self) -> list[Variant]:
        """Return all variants, each once."""
        return [*dict.fromkeys([*self.adjacent, *self.distant, *self.windowed])]

    def pairs(self, operation: str) -> list[Variant]:
        """Return swaps or skips of two neighbours."""
        return [
            each for each in self.adjacent if each.operation == operation and len(each.layers) == 2
        ]

    def inner_pairs(self, n_layers: int) -> list[Variant]:
        """Return swaps, then skips, of two neighbours that are inner layers; of all if none are."""
        within = inner(n_layers)
        both = [*self.pairs("swap"), *self.pairs("skip")]
        return [each for each in both if set(each.layers) <= {*within}] or both
