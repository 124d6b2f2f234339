"""A loop's weights with a low-rank term per layer: W' + U_r U_rᵀ (W - W'), and their parameters.

U_r are the first eigenvectors of (W - W')(W - W')ᵀ, on the smaller side: this is the truncated SVD
of W - W' without its other side, which costs several times less.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from interp.models import Model
from interp.models.loops import Loop, matrices_of, vectors_of
from interp.replay import Block
from interp.shapes import Tensors

ENERGIES = (0.5, 0.75, 0.9, 0.95, 0.99)  # shares of squared singular values
Shape = tuple[int, int]


@dataclass(frozen=True)
class TermSize:
    """How large low-rank terms are: of one `rank`, or with a `share` of every matrix's numbers."""

    rank: int = 0
    share: float | None = None

    def of(self, shape: Shape) -> int:
        """Return the rank for a matrix, at most its full one; full from a share of 1 on."""
        n, m = shape
        if self.share is None:
            return min(self.rank, n, m)
        return min(n, m) if self.share >= 1 else int(self.share * n * m / (n + m))

    def numbers(self, shape: Shape) -> int:
        """Return how many numbers the term has; a full matrix at most."""
        n, m = shape
        return min(self.of(shape) * (n + m), n * m)


@dataclass(frozen=True)
class RelaxedLoop:
    """A loop with terms of a size; `rank` is that of the terms, or of those it is compared with."""

    loop: Loop
    n_shared: int
    rank: int
    size: TermSize

    def kept(self, shapes: Sequence[Sequence[Shape]]) -> float:
        """Return the parameters of shared layers and terms, as a share of all layers' matrices.

        `shapes` are of the matrices of each layer. Gains and biases are not counted.
        """
        loop, whole = self.loop, sum(n * m for n, m in chain(*shapes))
        users = [shapes[loop.position.index(k)] for k in range(loop.n_shared)]
        shared = sum(n * m for n, m in chain(*users))
        terms = [of for layer, of in enumerate(shapes) if not loop.keeps(layer)]
        return (shared + sum(self.size.numbers(shape) for shape in chain(*terms))) / whole


def shapes_of(blocks: Sequence[Block]) -> list[list[Shape]]:
    """Return the shapes of every layer's matrices."""
    return [[(p.shape[0], p.shape[1]) for p in matrices_of(block).values()] for block in blocks]


class Term:
    """The low-rank terms of one matrix: of every rank up to `most`, decomposed once."""

    def __init__(self, residue: Float[Tensor, "output input"], most: int) -> None:
        self.is_tall = residue.shape[0] > residue.shape[1]
        flat = residue.T if self.is_tall else residue
        energies, vectors = torch.linalg.eigh(flat @ flat.T)
        self.energies: Tensor = energies.flip(0).clamp_min(0).double()
        self.vectors = vectors.flip(1)[:, :most].contiguous()
        self.rest = self.vectors.T @ flat

    def negative(self) -> "Term":
        """Return the terms of the residue times -1."""
        other = copy(self)
        other.rest = -self.rest
        return other

    def of(self, rank: int) -> Float[Tensor, "output input"]:
        """Return the best approximation of the residue of a rank."""
        flat = self.vectors[:, :rank] @ self.rest[:rank]
        turned: Tensor = flat.T if self.is_tall else flat
        return turned

    def ranks_for(self, shares: Sequence[float]) -> Float[Tensor, " share"]:
        """Return the ranks that hold shares of the energy, as shares of the full rank."""
        sums = self.energies.cumsum(0)
        if not float(sums[-1]):
            return torch.zeros(len(shares))
        wanted = torch.tensor(shares, dtype=sums.dtype, device=sums.device) * sums[-1]
        ranks = torch.searchsorted(sums, wanted * (1 - 1e-9)) + 1
        return (ranks / len(sums)).float().cpu()

    def left(self, rank: int) -> float:
        """Return the squared Frobenius norm of what a rank does not hold."""
        return float(self.energies[rank:].sum())


class LoopWeights:
    """The weights of a model whose layers share those of a loop, for several sizes of terms.

    `source` has the shared layers (the model itself, or a twin). Gains and biases are shared too if
    `shares_vectors`. Holds the factors of all layers, up to the largest rank that is not full, and
    averages over layers, each made once.
    """

    def __init__(
        self,
        model: Model,
        loop: Loop,
        sizes: Sequence[TermSize],
        *,
        source: Model | None = None,
        shares_vectors: bool = False,
    ) -> None:
        self.model, self.loop, self.shares_vectors = model, loop, shares_vectors
        self.blocks, self.shared = model.blocks, (source or model).blocks
        self.averages: dict[tuple[int, str], Tensor] = {}
        self.terms: list[dict[str, Term]] = []
        for layer in range(model.n_layers):
            self.terms.append({} if loop.keeps(layer) else self._terms(layer, sizes))

    def _terms(self, layer: int, sizes: Sequence[TermSize]) -> dict[str, Term]:
        first = self.loop.opposite_of(layer)
        if first is not None:
            return {name: term.negative() for name, term in self.terms[first].items()}
        terms = {}
        for name, own in matrices_of(self.blocks[layer]).items():
            n, m = own.shape
            ranks = [size.of((n, m)) for size in sizes]
            most = max((rank for rank in ranks if rank < min(n, m)), default=0)
            terms[name] = Term(own.float() - self._base(layer, name), most)
        return terms

    def _base(self, layer: int, name: str) -> Tensor:
        key = self.loop.position[layer], name
        base = self.averages.get(key)
        if base is None:
            base = self.loop.base(layer, name, self.shared)
            if len(self.loop.sources_of(layer)) > 1:
                self.averages[key] = base
        return base.to(self.blocks[layer].module.get_parameter(name).device)

    def at(self, size: TermSize) -> Tensors:
        """Return the weights of all layers by name, in the model's type."""
        weights: Tensors = {}
        for layer, block in enumerate(self.blocks):
            for name, term in self.terms[layer].items():
                own = block.module.get_parameter(name)
                n, m = own.shape
                rank = size.of((n, m))
                if rank == min(n, m):
                    continue  # nothing of the layer is lost
                base = self._base(layer, name)
                if rank:
                    base = base + term.of(rank)
                weights[f"{block.name}.{name}"] = base.to(own.dtype)
            if self.shares_vectors and self.terms[layer]:
                weights |= self._vectors(layer)
        return weights

    def _vectors(self, layer: int) -> Tensors:
        block, own = self.blocks[layer], self.blocks[layer].module
        return {
            f"{block.name}.{name}": self._base(layer, name).to(own.get_parameter(name).dtype)
            for name in vectors_of(block)
        }

    def error(self, size: TermSize) -> float:
        """Return ‖W - W'‖ / ‖W‖ over all layers' matrices."""
        left = whole = 0.0
        for block, terms in zip(self.blocks, self.terms, strict=True):
            for name, own in matrices_of(block).items():
                whole += float(own.float().square().sum())
                rank = size.of((own.shape[0], own.shape[1]))
                left += terms[name].left(rank) if name in terms else 0.0
        return float((left / whole) ** 0.5)

    def ranks_for_energies(self) -> Float[Tensor, "layer matrix energy"]:
        """Return which share of the full rank holds `ENERGIES` of what layers do not share.

        0 for layers that are their own shared layer; NaN where a layer has fewer matrices.
        """
        most = max(len(matrices_of(block)) for block in self.blocks)
        ranks = torch.full((len(self.blocks), most, len(ENERGIES)), torch.nan)
        for layer, block in enumerate(self.blocks):
            for i, name in enumerate(matrices_of(block)):
                term = self.terms[layer].get(name)
                ranks[layer, i] = 0.0 if term is None else term.ranks_for(ENERGIES)
        return ranks
