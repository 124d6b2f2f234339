"""Integrals along a straight path, checked against the known difference of the ends.

The rule is Boole's on panels of five nodes. A panel whose integral misses the difference of *its*
ends is halved; the halves keep its nodes, so nothing is evaluated twice, and nodes gather where the
integrand is steep.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

BOOLE = (7 / 90, 32 / 90, 12 / 90, 32 / 90, 7 / 90)
FEWEST_NODES = 9
FLOOR = 0.01  # differences below this are held to an absolute error

# (which integral, where along its path) -> the function's value there, and the integrand's
# components
Evaluate = Callable[
    [Sequence[int], Sequence[float]], tuple[Float[Tensor, " node"], Float[Tensor, "node component"]]
]
Node = tuple[float, float, Tensor]  # value, sum of the components, components


@dataclass(frozen=True)
class Integral:
    """The components' integrals and how well they add up.

    `difference` is that of the ends, `error` how far the sum is from it, `n_nodes` the nodes used.
    """

    components: Float[Tensor, " component"]
    difference: float
    error: float
    n_nodes: int
    is_capped: bool


def allowed(difference: float, tolerance: float) -> float:
    """Return the largest acceptable error: relative, or absolute where the difference is tiny."""
    return tolerance * max(abs(difference), FLOOR)


class _Path:
    """One integral under way."""

    def __init__(self) -> None:
        self.nodes: dict[float, Node] = {}
        self.panels = [(0.0, 0.5), (0.5, 1.0)]
        self.is_capped = False

    def missing(self) -> list[float]:
        return sorted({a for panel in self.panels for a in _at(panel)} - self.nodes.keys())

    def errors(self) -> list[float]:
        return [self._error(panel) for panel in self.panels]

    def _error(self, panel: tuple[float, float]) -> float:
        nodes = [self.nodes[a] for a in _at(panel)]
        integral = (panel[1] - panel[0]) * sum(
            w * total for w, (_, total, _) in zip(BOOLE, nodes, strict=True)
        )
        return integral - (nodes[-1][0] - nodes[0][0])

    @property
    def difference(self) -> float:
        return self.nodes[1.0][0] - self.nodes[0.0][0]

    def refine(self, *, tolerance: float, max_nodes: int) -> bool:
        """Halve the panels that miss their ends; return whether nodes are missing now."""
        errors, most = self.errors(), allowed(self.difference, tolerance)
        if sum(map(abs, errors)) <= most:
            return False
        halved: list[tuple[float, float]] = []
        for (a, b), error in zip(self.panels, errors, strict=True):
            middle = (a + b) / 2
            halved += [(a, middle), (middle, b)] if abs(error) > most / len(errors) else [(a, b)]
        before, self.panels = self.panels, halved
        if len(self.nodes) + len(self.missing()) > max_nodes:
            self.panels, self.is_capped = before, True
        return not self.is_capped

    def integral(self) -> Integral:
        parts = [
            (b - a) * w * self.nodes[at][2]
            for a, b in self.panels
            for w, at in zip(BOOLE, _at((a, b)), strict=True)
        ]
        components = torch.stack(parts).sum(0)
        error = abs(float(components.sum()) - self.difference)
        return Integral(components, self.difference, error, len(self.nodes), self.is_capped)


def _at(panel: tuple[float, float]) -> list[float]:
    a, b = panel
    return [a + (b - a) * i / 4 for i in range(5)]


def integrate(evaluate: Evaluate, n: int, *, tolerance: float, max_nodes: int) -> list[Integral]:
    """Return `n` integrals over [0, 1], each with as many nodes as it needs.

    Those are at least `FEWEST_NODES` and at most `max_nodes`.
    """
    paths = [_Path() for _ in range(n)]
    todo = list(range(n))
    while todo:
        asked = [(i, at) for i in todo for at in paths[i].missing()]
        values, components = evaluate([i for i, _ in asked], [at for _, at in asked])
        totals = components.double().sum(1).tolist()
        for (i, at), value, total, row in zip(
            asked, values.tolist(), totals, components, strict=True
        ):
            paths[i].nodes[at] = (value, total, row)
        todo = [i for i in todo if paths[i].refine(tolerance=tolerance, max_nodes=max_nodes)]
    return [path.integral() for path in paths]


def left_riemann(
    evaluate: Evaluate, n: int, *, n_nodes: int, ends: Sequence[float]
) -> list[Integral]:
    """Return `n` sums over `n_nodes` equal steps, each evaluated at its left end.

    `ends` are the functions' values at 1.
    """
    integrals = []
    for i in range(n):
        values, components = evaluate([i] * n_nodes, [step / n_nodes for step in range(n_nodes)])
        mean, difference = components.mean(0), ends[i] - float(values[0])
        integrals.append(
            Integral(mean, difference, abs(float(mean.sum()) - difference), n_nodes, False)
        )
    return integrals
