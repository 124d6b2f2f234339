"""Maps from every tap of one model to every tap of another, fitted and tested token by token.

Target taps are done in groups that fit into memory; without a store, every group runs the models
again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm

from interp.analyses.depth_map.split import Role
from interp.analyses.depth_map.taps import What, n_taps, taps
from interp.errors import AnalysisError
from interp.models import Model
from interp.shapes import Tensors
from interp.sweeps.cosines import SMALLEST_NORM
from interp.sweeps.linear_maps import (
    RIDGES,
    Grams,
    LinearMap,
    Moments,
    choose_ridge,
    orthogonal_map,
    ridge_map,
)
from interp.tasks.batch import TokenBatch

_AT_ONCE = 2**26  # numbers of cross moments held at once: 512 MiB


@dataclass(frozen=True)
class TapMaps:
    """How one model's taps are mapped to another's, token by token; both read the same tokens.

    `is_relative` weighs a token by 1 / ‖y‖², so that fitting minimises the mean square of what is
    judged. Positions before `begin` are left out.
    """

    source: Model
    target: Model
    what: What = "residual"
    is_orthogonal: bool = False
    is_relative: bool = False
    begin: int = 1

    def fit_and_test(self, batches: Mapping[Role, Sequence[TokenBatch]]) -> Tensors:
        """Fit all maps; return what they miss on every held-out prompt [2 source+1 target].

        That is ‖y - ŷ‖ / ‖y‖ and ‖y - ŷ‖², summed over the prompt's tokens. The last source is a
        constant, the mean of the fitted tokens. Also "ridge" [source target] in units of trace / d.
        Raises AnalysisError for too few prompts or tokens.
        """
        self.refuse_too_few(batches)
        missed: dict[str, list[Tensor]] = {}
        ridges, shared = list[Tensor](), list[Grams]()
        for chosen in self.groups():
            maps, ridge = self._fitted(batches, chosen, shared)
            ridges.append(ridge)
            for batch in batches["test"]:
                misses = self._misses(batch, chosen, maps)
                for prompt, row in zip(batch.prompts, misses, strict=True):
                    missed.setdefault(f"prompt {prompt.id}", []).append(row)
            del maps  # before the next ones are made
        return {"ridge": torch.cat(ridges, 1)} | {
            key: torch.cat(rows, -1) for key, rows in missed.items()
        }

    def _fitted(
        self, batches: Mapping[Role, Sequence[TokenBatch]], chosen: slice, shared: list[Grams]
    ) -> tuple[list[list[LinearMap]], Tensor]:
        """Return maps and ridges of chosen targets; fill `shared` if it is still empty."""
        fit, held = (
            self.moments(batches[role], chosen, is_first=not shared)
            for role in ("fit", "validation")
        )
        if not shared:
            shared += self.shared_grams(fit, held)
        return self.solve(fit, held, shared)

    def refuse_too_few(self, batches: Mapping[Role, Sequence[TokenBatch]]) -> None:
        """Raise AnalysisError for too few prompts or tokens."""
        if not all(batches.values()):
            n_prompts = sum(len(batch.prompts) for part in batches.values() for batch in part)
            raise AnalysisError(
                f"{n_prompts} prompts given; at least 4 are needed to hold some out"
            )
        n_tokens = sum(
            batch.tokens[:, self.begin :].numel()
            for role in ("fit", "validation")
            for batch in batches[role]
        )
        if n_tokens <= self.source.d_model:
            raise AnalysisError(
                f"{n_tokens} tokens to fit maps from the {self.source.d_model} features of"
                f" {self.source.name};"
                f" at least {self.source.d_model + 1} are needed: give more prompts"
            )

    def groups(self) -> list[slice]:
        """Return which target taps are done together."""
        n_sources, n_targets = (n_taps(model, self.what) for model in (self.source, self.target))
        d1 = self.source.d_model
        size = _AT_ONCE // (n_sources * d1 * (self.target.d_model + d1 * self.is_relative))
        size = max(1, min(n_targets, size))
        return [slice(first, min(first + size, n_targets)) for first in range(0, n_targets, size)]

    def held(self) -> int:
        """Return how many float64 numbers are held at once: moments, maps and factorisations."""
        n_targets: int = self.groups()[0].stop
        n_sources, d1 = n_taps(self.source, self.what), self.source.d_model
        n_weightings = n_targets if self.is_relative else 1
        return n_sources * (
            3 * n_targets * d1 * self.target.d_model + (2 * n_weightings + 5) * d1 * d1
        )

    def _tokens(self, batch: TokenBatch, chosen: slice) -> tuple[Tensor, Tensor]:
        """Return source and chosen target taps of a batch [tap token d], from `begin` on."""
        x = taps(self.source.record(batch), self.what)
        y = x if self.target is self.source else taps(self.target.record(batch), self.what)
        flat = "tap batch pos d_model -> tap (batch pos) d_model"
        return rearrange(x[:, :, self.begin :], flat), rearrange(y[chosen, :, self.begin :], flat)

    def moments(self, batches: Sequence[TokenBatch], chosen: slice, *, is_first: bool) -> Moments:
        """Return the sums over batches; `xx` of shared weights for the first group only."""
        n_targets = chosen.stop - chosen.start
        n_weightings = n_targets if self.is_relative else int(is_first)
        moments = Moments.zeros(
            (n_weightings, n_taps(self.source, self.what), n_targets),
            widths=(self.source.d_model, self.target.d_model),
            device=self.source.device,
        )
        for batch in batches:
            x, y = self._tokens(batch, chosen)
            norms = vector_norm(y.double(), dim=-1).clamp_min(SMALLEST_NORM)
            moments.add(x, y, norms**-2 if self.is_relative else torch.ones_like(norms[:1]))
        if not bool(moments.xy.isfinite().all() and moments.xx.isfinite().all()):
            raise AnalysisError(
                f"{self.source.name} or {self.target.name} has residuals that are not finite"
            )
        return moments

    def shared_grams(self, fit: Moments, held: Moments) -> list[Grams]:
        """Return every source's factorisation for all targets; none if each weighs its own."""
        if self.is_relative:
            return []
        return [Grams.of(xx, held_xx) for xx, held_xx in zip(fit.xx[0], held.xx[0], strict=True)]

    def solve(
        self, fit: Moments, held: Moments, shared: Sequence[Grams]
    ) -> tuple[list[list[LinearMap]], Tensor]:
        """Return maps [target][source] of fitted and validation tokens, and ridges [source target].

        `shared` are the sources' factorisations; without them each uses its target's weights.
        """
        n_sources, n_targets = fit.xy.shape[:2]
        maps: list[list[LinearMap]] = [[] for _ in range(n_targets)]
        ridges = torch.zeros(n_sources, n_targets)
        for source, target in product(range(n_sources), range(n_targets)):
            pair = (target, source)
            grams = shared[source] if shared else Grams.of(fit.xx[pair], held.xx[pair])
            xx, xy = grams.xx + grams.held_xx, fit.xy[source, target] + held.xy[source, target]
            if self.is_orthogonal:
                maps[target].append(orthogonal_map(grams.both, xx, xy))
                continue
            sums = fit.xy[source, target], held.xy[source, target]
            ridge = choose_ridge(grams, *sums, RIDGES)
            maps[target].append(ridge_map(grams.both, xx, xy, ridge=ridge))
            ridges[source, target] = ridge
        return maps, ridges

    def _misses(
        self, batch: TokenBatch, chosen: slice, maps: Sequence[Sequence[LinearMap]]
    ) -> Float[Tensor, "batch 2 source_1 target"]:
        xs, ys = self._tokens(batch, chosen)
        misses = []
        for y, by_source in zip(ys.double(), maps, strict=True):
            missed = [
                vector_norm(y - fitted(x), dim=-1) for x, fitted in zip(xs, by_source, strict=True)
            ]
            norms = torch.stack([*missed, vector_norm(y - by_source[0].y_mean, dim=-1)])
            misses.append(
                torch.stack([norms / vector_norm(y, dim=-1).clamp_min(SMALLEST_NORM), norms**2])
            )
        pattern = "target kind source (batch pos) -> batch kind source target"
        summed: Tensor = reduce(torch.stack(misses), pattern, "sum", batch=len(batch.prompts))
        return summed.float().cpu()
