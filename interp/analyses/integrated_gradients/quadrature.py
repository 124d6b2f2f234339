"""Integrals along a straight path, component by component, in panels that are halved as needed.

The rule is Boole's on the two halves of a panel, nine nodes. It is checked twice: each component
against Boole's rule on the whole panel, whose five nodes are among the nine, and the components'
sum against the known difference of the panel's ends. The sum alone would not do: errors of
components cancel in it. Halves keep a panel's nodes, so nothing is evaluated twice, and nodes
gather where the integrand is steep.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

FEWEST_NODES = 9
FLOOR = 0.01  # a change below this, and a whole below it, are held to an absolute error
SMALL = 0.05  # a component below this share of the whole is held to that share
_HALVES = [w / 180 for w in (7, 32, 12, 32, 14, 32, 12, 32, 7)]
_WHOLE = [w / 90 for w in (7, 0, 32, 0, 12, 0, 32, 0, 7)]
_RULES = torch.tensor([_HALVES, _WHOLE], dtype=torch.float64)

# (which integral, where along its path) -> the function's value there, and the integrand's
# components
Evaluate = Callable[
    [Sequence[int], Sequence[float]], tuple[Float[Tensor, " node"], Float[Tensor, "node component"]]
]
Panel = tuple[float, float]


@dataclass(frozen=True)
class Integral:
    """The components' integrals, how well each is known and how well they add up.

    `component_error` estimates how far each is off: by how much a coarser rule on the same nodes
    differs, with a margin. `difference` is that of the ends, `n_nodes` the nodes used.
    """

    components: Float[Tensor, " component"]
    component_error: Float[Tensor, " component"]
    difference: float
    n_nodes: int
    is_capped: bool

    @property
    def error(self) -> float:
        """Return how far the components' sum is from the difference of the ends."""
        return abs(float(self.components.sum()) - self.difference)

    @property
    def worst_error(self) -> float:
        """Return the largest of the components' errors, relative to their `sizes`."""
        return float((self.component_error / sizes(self.components)).max())


def sizes(components: Float[Tensor, " component"]) -> Float[Tensor, " component"]:
    """Return what an error of each is relative to: its size, at least 5 % of all sizes together.

    Those count as 0.01 together where they are less.
    """
    size = components.abs()
    return size.clamp_min(SMALL * max(float(size.sum()), FLOOR))


class _Path:
    """One integral under way."""

    def __init__(self) -> None:
        self.values: dict[float, float] = {}
        self.slopes: dict[float, Tensor] = {}
        self.panels: list[Panel] = [(0.0, 1.0)]
        self.is_capped = False

    def missing(self) -> list[float]:
        return sorted({a for panel in self.panels for a in _at(panel)} - self.values.keys())

    @property
    def difference(self) -> float:
        return self.values[1.0] - self.values[0.0]

    def _apart(self, halves: Tensor, whole: Tensor) -> Float[Tensor, "panel component"]:
        """Return how far each panel's integrals may be off.

        The difference of the two rules is the coarser one's error, and far more than the finer
        one's where the path is smooth. In a wide panel a slope can swing between the nodes, and
        both rules miss it: hence a margin that grows with the width.
        """
        margins = torch.tensor([0.5 + 4 * (b - a) for a, b in self.panels], dtype=torch.float64)
        return margins[:, None] * (halves - whole).abs()

    def _rules(self) -> Float[Tensor, "rule panel component"]:
        """Return each panel's integrals by its halves, and as a whole."""
        nodes = torch.stack([torch.stack([self.slopes[a] for a in _at(p)]) for p in self.panels])
        widths = torch.tensor([b - a for a, b in self.panels], dtype=torch.float64)
        return torch.einsum("rn,pnc,p->rpc", _RULES, nodes, widths)

    def _too_coarse(self, tolerance: float) -> list[bool]:
        """Return which panels must go: without them, all errors are small enough."""
        halves, whole = self._rules()
        differences = [self.values[b] - self.values[a] for a, b in self.panels]
        miss = halves.sum(1) - torch.tensor(differences, dtype=torch.float64)
        errors = torch.column_stack([self._apart(halves, whole), miss.abs()])
        change = torch.tensor([max(abs(self.difference), FLOOR)], dtype=torch.float64)
        most = tolerance * torch.cat([sizes(halves.sum(0)), change])
        errors, order = errors.sort(dim=0)
        is_over = errors.cumsum(0) > most
        return [bool(row) for row in torch.zeros_like(is_over).scatter(0, order, is_over).any(1)]

    def refine(self, *, tolerance: float, max_nodes: int) -> bool:
        """Halve the panels that are too coarse; return whether nodes are missing now."""
        halved: list[Panel] = []
        for (a, b), is_coarse in zip(self.panels, self._too_coarse(tolerance), strict=True):
            middle = (a + b) / 2
            halved += [(a, middle), (middle, b)] if is_coarse else [(a, b)]
        before, self.panels = self.panels, halved
        if len(self.values) + len(self.missing()) > max_nodes:
            self.panels, self.is_capped = before, True
        return len(self.panels) > len(before)

    def integral(self) -> Integral:
        halves, whole = self._rules()
        apart = self._apart(halves, whole).sum(0)
        return Integral(halves.sum(0), apart, self.difference, len(self.values), self.is_capped)


def _at(panel: Panel) -> list[float]:
    a, b = panel
    return [a + (b - a) * i / 8 for i in range(9)]


def integrate(evaluate: Evaluate, n: int, *, tolerance: float, max_nodes: int) -> list[Integral]:
    """Return `n` integrals over [0, 1], each with as many nodes as it needs.

    Those are at least `FEWEST_NODES` and at most `max_nodes`.
    """
    paths = [_Path() for _ in range(n)]
    todo = list(range(n))
    while todo:
        asked = [(i, at) for i in todo for at in paths[i].missing()]
        values, components = evaluate([i for i, _ in asked], [at for _, at in asked])
        for (i, at), value, row in zip(asked, values.tolist(), components.double(), strict=True):
            paths[i].values[at], paths[i].slopes[at] = value, row
        todo = [i for i in todo if paths[i].refine(tolerance=tolerance, max_nodes=max_nodes)]
    return [path.integral() for path in paths]


def left_riemann(
    evaluate: Evaluate, n: int, *, n_nodes: int, ends: Sequence[float]
) -> list[Integral]:
    """Return `n` sums over `n_nodes` equal steps, each evaluated at its left end.

    `ends` are the functions' values at 1. The coarser rule takes two steps at once.
    """
    at, coarser = [step / n_nodes for step in range(n_nodes)], torch.arange(n_nodes) // 2 * 2
    integrals = []
    for i in range(n):
        values, slopes = evaluate([i] * n_nodes, at)
        mean, difference = slopes.double().mean(0), ends[i] - float(values[0])
        apart = (mean - slopes[coarser].double().mean(0)).abs()
        integrals.append(Integral(mean, apart, difference, n_nodes, False))
    return integrals
