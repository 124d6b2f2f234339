"""All that is run on one model: loops with low-rank terms, their controls, and single places."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from interp.analyses.recursion.low_rank import ENERGIES, RelaxedLoop, Shape, TermSize
from interp.analyses.recursion.places import Place, alone_of, pairs_of
from interp.models.loops import (
    NAMES,
    SVD,
    Init,
    Loop,
    loop_of,
    random_of,
    svd_of,
    untrained_of,
)
from interp.models.untrained import N_TWINS

MOST_KEPT = 0.75  # of the parameters, at the rank that findings are about


@dataclass(frozen=True)
class Design:
    """What is run: `variants` of whole models, and one place alone (`grid`, `alone`).

    `inits` and `numbers` of shared layers name the loops, the first of each those that findings are
    about; `kinds` are those of the layers, `shapes` of their matrices. Layers share at random in
    `draws` draws, and those of an untrained twin are shared if `has_twin`.
    """

    inits: tuple[Init, ...]
    numbers: tuple[int, ...]
    ranks: tuple[int, ...]
    kinds: tuple[int, ...]
    shapes: Sequence[Sequence[Shape]]
    n_grid: int
    draws: int
    has_twin: bool
    seed: int

    @property
    def first_loops(self) -> list[Loop]:
        """Return the loops of the first number of shared layers."""
        return [loop_of(init, self.numbers[0], self.kinds) for init in self.inits]

    @property
    def variants(self) -> list[RelaxedLoop]:
        """Return loops by number and initialisation, those of controls, and truncated SVDs."""
        loops = [loop_of(init, k, self.kinds) for k in self.numbers for init in self.inits]
        plain = [
            RelaxedLoop(loop, loop.n_shared, rank, TermSize(rank))
            for loop in loops
            for rank in self.ranks
        ]
        judged = self._judged(plain)
        plain += [
            RelaxedLoop(loop, loop.n_shared, rank, TermSize(rank))
            for loop in self._controls(loops[0])
            for rank in dict.fromkeys((0, judged.rank))
        ]
        svd = svd_of(len(self.kinds))
        compared = [each for each in plain if each.loop.name == self.inits[0]]
        return plain + [
            RelaxedLoop(svd, each.n_shared, each.rank, TermSize(share=each.kept(self.shapes)))
            for each in compared
        ]

    def _controls(self, first: Loop) -> list[Loop]:
        loops = [untrained_of(first)] if self.has_twin else []
        if len({*self.kinds[: first.n_shared]}) == first.n_shared:
            return loops  # each layer has one place in the loop only
        return loops + [
            random_of(first.n_shared, self.kinds, draw=i, seed=self.seed) for i in range(self.draws)
        ]

    def _judged(self, variants: Sequence[RelaxedLoop]) -> RelaxedLoop:
        """Return the first loop at its largest rank that saves a quarter, or else at 0."""
        of_first = [each for each in variants if each.loop == variants[0].loop]
        saving = [each for each in of_first if each.kept(self.shapes) <= MOST_KEPT]
        return saving[-1] if saving else of_first[0]

    @property
    def pair(self) -> tuple[RelaxedLoop, RelaxedLoop]:
        """Return the first loop and the truncated SVD that it is compared with.

        Its rank is the largest that saves a quarter of the parameters, or else 0.
        """
        variants = self.variants
        one = self._judged(variants)
        (other,) = [
            each
            for each in variants
            if each.loop.name == SVD and (each.n_shared, each.rank) == (one.n_shared, one.rank)
        ]
        return one, other

    @property
    def grid(self) -> list[Place]:
        """Return layers with each other's weights."""
        return pairs_of(self.n_grid, self.kinds)

    @property
    def alone(self) -> list[Place]:
        """Return layers alone with what they share in the first loops."""
        return alone_of(self.first_loops)

    @property
    def rows_alone(self) -> list[int]:
        """Return the numbers of `alone` among all layers of all first loops."""
        loops, n_layers = self.first_loops, len(self.kinds)
        return [loops.index(at.loop) * n_layers + at.layer for at in self.alone if at.loop]

    @property
    def table(self) -> Float[Tensor, "variant 5"]:
        """Return each variant's name (of `NAMES`), shared layers, rank, draw and share kept."""
        return torch.tensor(
            [
                [
                    NAMES.index(each.loop.name),
                    each.n_shared,
                    each.rank,
                    each.loop.draw,
                    each.kept(self.shapes),
                ]
                for each in self.variants
            ],
            dtype=torch.float64,
        )

    @property
    def numbers_of_weights(self) -> int:
        """Return how many numbers `Recursion.prepare` keeps of weights, for every prompt."""
        n_loops, most = len({each.loop for each in self.variants}), max(map(len, self.shapes))
        needed = n_loops * len(self.shapes) * most * len(ENERGIES)
        return needed + 6 * len(self.variants) + 2 * len(self.grid) + len(self.kinds) + 3

    @property
    def held(self) -> int:
        """Return how many numbers of a loop are held at once: factors, averages and a copy."""
        sizes, shapes = {each.size for each in self.variants}, [*chain(*self.shapes)]
        factors = 0
        for shape in shapes:
            cut = [size.of(shape) for size in sizes if size.of(shape) < min(shape)]
            factors += max(cut, default=0) * sum(shape)
        averages = sum(n * m for n, m in chain(*self.shapes[: max(self.numbers)]))
        return factors + averages + sum(n * m for n, m in shapes)

    @property
    def as_tokens(self) -> float:
        """Return as how many tokens' passes all decompositions count.

        One of a matrix [n m], n ≤ m, counts as 12 n³ + 4 n² m operations, a token's pass as two a
        weight.
        """
        twins = N_TWINS * [each.loop for each in self.pair] if self.has_twin else []
        loops = [*{each.loop: None for each in self.variants}, *twins]
        operations = sum(
            12 * min(shape) ** 3 + 4 * min(shape) ** 2 * max(shape)
            for loop in loops
            for layer, shapes in enumerate(self.shapes)
            for shape in shapes
            if not loop.keeps(layer) and loop.opposite_of(layer) is None
        )
        return operations / (2 * sum(n * m for layer in self.shapes for n, m in layer))
