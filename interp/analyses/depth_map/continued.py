"""A source's state after i layers, mapped and continued at layer j of the target: does it answer?

Maps are fitted on the prompts that are not held out, from all positions, with one weight a token:
1 / (its mean norm in the source · that in the target). Controls are the same from an untrained twin
of the source, and with maps fitted on permuted tokens; the source continued in itself, under maps
fitted all the same, says how far a state reaches where both are one model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm

from interp.analyses.depth_map.split import Role
from interp.metrics import outcomes
from interp.models import Model
from interp.models.untrained import twins_of
from interp.replay import Recording
from interp.shapes import Resid, Tensors
from interp.sweeps.cosines import SMALLEST_NORM
from interp.sweeps.entering import ends_of_entering, n_blocks
from interp.sweeps.layers import every_nth
from interp.sweeps.linear_maps import (
    Gram,
    LinearMap,
    Moments,
    orthogonal_map,
    ridge_map,
    second_moments,
)
from interp.sweeps.patches import logits_at_the_end
from interp.tasks.batch import TokenBatch

RIDGE = 1e-4  # of the source's mean eigenvalue, of maps that are no rotations
GRIDS = ("measured", "permuted", "untrained")


@dataclass(frozen=True)
class Onward:
    """States of `source` at every `every`-th tap, continued at those of `target`."""

    source: Model
    target: Model
    is_orthogonal: bool
    every: int
    seed: int

    def taps(self, model: Model) -> list[int]:
        """Return before which layers states are read, or enter; the last is after all."""
        return every_nth(model.n_layers + 1, self.every)

    def by_prompt(self, batches: dict[Role, list[TokenBatch]], *, control: bool) -> Tensors:
        """Return of every held-out prompt whether it is answered, by its id.

        "onward ID" [grid source target] of `GRIDS` (only the first two without a twin), "itself ID"
        [source source], and "own ID" [2], the source's and the target's own answers.
        """
        fit, test = [*batches["fit"], *batches["validation"]], batches["test"]
        pairs = [(self.source, False), (self.source, True)]
        if control and (twin := next(twins_of(self.source, seed=self.seed), None)):
            pairs.append((twin, False))
        grids = [
            self._answered(model, self.target, fit, test, is_permuted=is_permuted)
            for model, is_permuted in pairs
        ]
        itself = self._answered(self.source, self.source, fit, test, is_permuted=False)
        own = [self._own(model, test) for model in (self.source, self.target)]
        ids = [prompt.id for batch in test for prompt in batch.prompts]
        found: Tensors = {}
        for row, key in enumerate(ids):
            found[f"onward {key}"] = torch.stack([grid[row] for grid in grids])
            found[f"itself {key}"] = itself[row]
            found[f"own {key}"] = torch.stack([each[row] for each in own])
        return found

    def _own(self, model: Model, test: Sequence[TokenBatch]) -> Float[Tensor, " prompt"]:
        answered = []
        for batch in test:
            recording = model.record(batch)
            ends = recording.resid(model.n_layers)[None, :, -1]
            answered.append(_is_answered(recording, ends, batch)[0])
        return torch.cat(answered)

    def _answered(
        self,
        source: Model,
        target: Model,
        fit: Sequence[TokenBatch],
        test: Sequence[TokenBatch],
        *,
        is_permuted: bool,
    ) -> Float[Tensor, "prompt source target"]:
        maps = self._fitted(source, target, fit, is_permuted=is_permuted)
        rows = []
        for batch in test:
            ours, theirs = source.record(batch), target.record(batch)
            by_source = []
            for i, of_targets in zip(self.taps(source), maps, strict=True):
                stream = ours.resid(i)
                entries = [
                    (j, _mapped(stream, to, dtype=theirs.resid(0).dtype))
                    for j, to in zip(self.taps(target), of_targets, strict=True)
                ]
                by_source.append(_is_answered(theirs, ends_of_entering(theirs, entries), batch))
            rows.append(rearrange(torch.stack(by_source), "source target n -> n source target"))
        return torch.cat(rows)

    def _fitted(
        self, source: Model, target: Model, fit: Sequence[TokenBatch], *, is_permuted: bool
    ) -> list[list[LinearMap]]:
        """Return maps [source][target]."""
        sources, targets = self.taps(source), self.taps(target)
        counts, widths = (1, len(sources), len(targets)), (source.d_model, target.d_model)
        moments = Moments.zeros(counts, widths=widths, device=source.device)
        for batch in fit:
            x, y = (
                _tokens(model.record(batch), taps)
                for model, taps in ((source, sources), (target, targets))
            )
            weights = 1 / (_norms(x) * _norms(y))
            if is_permuted:
                generator = torch.Generator().manual_seed(self.seed)
                y = y[:, torch.randperm(y.shape[1], generator=generator).to(y.device)]
            moments.add(x, y, weights[None])
        return [
            [self._fit(moments.xx[0, s], moments.xy[s, t]) for t in range(len(targets))]
            for s in range(len(sources))
        ]

    def _fit(self, xx: Tensor, xy: Tensor) -> LinearMap:
        if not self.is_orthogonal:
            return ridge_map(Gram.of(xx), xx, xy, ridge=RIDGE)
        mean = xx[0, 1:] / xx[0, 0]
        sizes = second_moments(xx, mean).diagonal()  # a rotation needs but their sum
        return orthogonal_map(Gram(mean, sizes, sizes.new_empty(0)), xx, xy)

    def forwards(self, *, control: bool) -> float:
        """Return passes, of the source's length, for every held-out prompt."""
        sources, targets = self.taps(self.source), self.taps(self.target)
        n_grids, n_layers = 2 + control, self.source.n_layers
        onward = n_grids * len(sources) * n_blocks(self.target.n_layers, targets)
        itself = len(sources) * n_blocks(n_layers, sources)
        return (onward + itself) / n_layers


def _mapped(stream: Resid, to: LinearMap, *, dtype: torch.dtype) -> Resid:
    """Return a stream [batch pos d_model] in the target's frame."""
    return (to.y_mean + (stream.double() - to.x_mean) @ to.weight).to(dtype)


def _tokens(recording: Recording, taps: Sequence[int]) -> Float[Tensor, "tap token d_model"]:
    streams = torch.stack([recording.resid(tap) for tap in taps])
    flat: Tensor = rearrange(streams, "tap batch pos d_model -> tap (batch pos) d_model")
    return flat.double()


def _norms(tokens: Float[Tensor, "tap token d_model"]) -> Float[Tensor, " token"]:
    norms: Tensor = vector_norm(tokens, dim=-1).mean(0).clamp_min(SMALLEST_NORM)
    return norms


def _is_answered(
    recording: Recording, ends: Float[Tensor, "entry batch d_model"], batch: TokenBatch
) -> Float[Tensor, "entry batch"]:
    """Return 1 where the first token of the answer is the most probable next one, else 0."""
    assert batch.answer is not None  # `DepthMap.check`
    answer: Any = batch.answer
    answered = [outcomes(logits_at_the_end(recording, end[None]), answer) for end in ends]
    found: Tensor = torch.cat([each["accuracy"] for each in answered]).float().cpu()
    return found
