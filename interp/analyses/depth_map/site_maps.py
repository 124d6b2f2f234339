"""Maps from every site of one model to every site of another: fitted on streamed tokens, tested on
held-out prompts.

Sites are residuals (in front of every layer, and behind the last) or what each layer adds to them.
Target sites are done in groups that fit into memory; without a store, every group runs the models
again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm

from interp.analyses.depth_map.linear_maps import (
    RIDGES,
    Grams,
    LinearMap,
    Moments,
    choose_ridge,
    orthogonal_map,
    ridge_map,
)
from interp.errors import AnalysisError
from interp.models import Model
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sites import Site
from interp.tasks.batch import TokenBatch

What = Literal["residual", "contribution"]
Role = Literal["fit", "validation", "test"]
_AT_ONCE = 2**27  # numbers of cross moments held at once: 1 GiB
_EPS = 1e-6


def n_sites(model: Model, what: What) -> int:
    """Return how many sites a model has."""
    return model.n_layers + int(what == "residual")


def sites(recording: Recording, what: What) -> Float[Tensor, "site batch pos d_model"]:
    """Return a clean pass's residuals, or its layers' contributions in fp32."""
    layers = range(recording.n_layers)
    if what == "residual":
        return torch.stack([recording.resid(layer) for layer in (*layers, recording.n_layers)])
    writes = [
        [recording.clean(Site(kind, layer)).float() for kind in ("attn_out", "mlp_out")]
        for layer in layers
    ]
    return torch.stack([attn + mlp for attn, mlp in writes])


def pooled(
    recording: Recording, batch: TokenBatch, what: What
) -> Float[Tensor, "batch site d_model"]:
    """Return each site's mean over a prompt's positions, without padding and without position 0."""
    mask = batch.mask.clone()
    mask[:, 0] = False
    total = torch.einsum("sbpd,bp->bsd", sites(recording, what).float(), mask.float())
    return (total / mask.sum(1)[:, None, None]).cpu()


@dataclass(frozen=True)
class SiteMaps:
    """How one model's sites are mapped to another's, token by token; both must read the same
    tokens.

    `is_relative` weighs a token by 1 / ‖y‖², so that fitting minimises the mean square of what is
    judged.
    """

    source: Model
    target: Model
    what: What = "residual"
    is_orthogonal: bool = False
    is_relative: bool = False
    _grams: dict[int, Grams] = field(default_factory=dict, init=False, repr=False)

    def fit_and_test(self, batches: Mapping[Role, Sequence[TokenBatch]]) -> Tensors:
        """Fit all maps and sum, per held-out prompt [2 source+1 target], ‖y - ŷ‖ / ‖y‖ and ‖y - ŷ‖²
        over its tokens.

        The last source is the constant: the mean of the fitted tokens. Also "ridge" [source
        target], in units of trace / d. Raises AnalysisError for too few prompts or tokens.
        """
        self._refuse_too_few(batches)
        missed: dict[str, list[Tensor]] = {}
        ridges = []
        for chosen in self.groups():
            maps, ridge = self._solve(
                *(self._moments(batches[role], chosen) for role in ("fit", "validation"))
            )
            ridges.append(ridge)
            for batch in batches["test"]:
                for prompt, row in zip(
                    batch.prompts, self._misses(batch, chosen, maps), strict=True
                ):
                    missed.setdefault(f"prompt {prompt.id}", []).append(row)
        return {"ridge": torch.cat(ridges, 1)} | {
            key: torch.cat(rows, -1) for key, rows in missed.items()
        }

    def _refuse_too_few(self, batches: Mapping[Role, Sequence[TokenBatch]]) -> None:
        if not all(batches.values()):
            n_prompts = sum(len(batch.prompts) for part in batches.values() for batch in part)
            raise AnalysisError(
                f"{n_prompts} prompts given; at least 4 are needed to hold some out"
            )
        n_tokens = sum(
            batch.tokens[:, 1:].numel() for role in ("fit", "validation") for batch in batches[role]
        )
        if n_tokens <= self.source.d_model:
            raise AnalysisError(
                f"{n_tokens} tokens to fit maps from the {self.source.d_model} features of"
                f" {self.source.name}; at least {self.source.d_model + 1} are needed: give more"
                " prompts"
            )

    def groups(self) -> list[slice]:
        """Return which target sites are done together."""
        n_sources, n_targets, d1 = (
            n_sites(self.source, self.what),
            n_sites(self.target, self.what),
            self.source.d_model,
        )
        size = _AT_ONCE // (n_sources * d1 * (self.target.d_model + d1 * self.is_relative))
        size = max(1, min(n_targets, size))
        return [slice(first, min(first + size, n_targets)) for first in range(0, n_targets, size)]

    def held(self) -> int:
        """Return how many float64 numbers are held at once: moments and maps of a group,
        factorisations of all sources.
        """
        n_targets: int = self.groups()[0].stop
        n_sources, d1 = n_sites(self.source, self.what), self.source.d_model
        n_weightings = n_targets if self.is_relative else 1
        return n_sources * (
            3 * n_targets * d1 * self.target.d_model + (2 * n_weightings + 5) * d1 * d1
        )

    def _tokens(self, batch: TokenBatch, chosen: slice) -> tuple[Tensor, Tensor]:
        """Return all source sites and the chosen target sites of a batch [site token d], without
        position 0.
        """
        x = sites(self.source.record(batch), self.what)
        y = x if self.target is self.source else sites(self.target.record(batch), self.what)
        flat = "site batch pos d_model -> site (batch pos) d_model"
        return rearrange(x[:, :, 1:], flat), rearrange(y[chosen, :, 1:], flat)

    def _moments(self, batches: Sequence[TokenBatch], chosen: slice) -> Moments:
        """Return the sums over batches; those of sources alone only once, if all targets share
        them.
        """
        n_targets = chosen.stop - chosen.start
        n_weightings = n_targets if self.is_relative else 0 if self._grams else 1
        moments = Moments.zeros(
            (n_weightings, n_sites(self.source, self.what), n_targets),
            widths=(self.source.d_model, self.target.d_model),
            device=self.source.device,
        )
        for batch in batches:
            x, y = self._tokens(batch, chosen)
            norms = vector_norm(y.double(), dim=-1).clamp_min(_EPS)
            moments.add(x, y, norms**-2 if self.is_relative else torch.ones_like(norms[:1]))
        if not bool(moments.xy.isfinite().all() and moments.xx.isfinite().all()):
            raise AnalysisError(
                f"{self.source.name} or {self.target.name} has residuals that are not finite"
            )
        return moments

    def _solve(self, fit: Moments, held: Moments) -> tuple[list[list[LinearMap]], Tensor]:
        """Return maps [target][source], of fitted and validation tokens together, and their ridges
        [source target].

        With equal weights a source is factorised once for all targets, also of later groups.
        """
        n_sources, n_targets = fit.xy.shape[:2]
        maps: list[list[LinearMap]] = [[] for _ in range(n_targets)]
        ridges = torch.zeros(n_sources, n_targets)
        for source in range(n_sources):
            for target in range(n_targets):
                if self.is_relative or source not in self._grams:
                    at = (target if self.is_relative else 0, source)
                    self._grams[source] = Grams.of(fit.xx[at], held.xx[at])
                grams, xy, held_xy = (
                    self._grams[source],
                    fit.xy[source, target],
                    held.xy[source, target],
                )
                if self.is_orthogonal:
                    maps[target].append(
                        orthogonal_map(grams.both, grams.xx + grams.held_xx, xy + held_xy)
                    )
                    continue
                ridge = choose_ridge(grams, xy, held_xy, RIDGES)
                maps[target].append(
                    ridge_map(grams.both, grams.xx + grams.held_xx, xy + held_xy, ridge=ridge)
                )
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
            misses.append(torch.stack([norms / vector_norm(y, dim=-1).clamp_min(_EPS), norms**2]))
        pattern = "target kind source (batch pos) -> batch kind source target"
        summed: Tensor = reduce(torch.stack(misses), pattern, "sum", batch=len(batch.prompts))
        return summed.float().cpu()
