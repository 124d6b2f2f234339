"""How much does a layer turn the stream, and which layers would go first?

Block Influence (ShortGPT, arXiv 2403.03853): BI = 1 - E cos(h_in, h_out), the mean over tokens.
Siblings: LIM = -E cos (Layer-Wise Quantization, arXiv 2406.17415), and the same with a prompt's
tokens flattened to one vector; ZD, the share of a layer's weights with z-score above 1 (the same
paper; needs no data); the relative magnitude ||f(x)|| / ||x + f(x)||; the angular distance
arccos(cos) / pi of the last token over a span of layers (arXiv 2403.17887); and the BI that the
lengths alone would give if every write were orthogonal to the stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch.linalg import vector_norm
from torch.nn.functional import cosine_similarity

from interp.analyses.block_influence.result import BlockInfluenceResult
from interp.analysis import Analysis, Cost
from interp.models import Model
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Tensors
from interp.sweeps.cosines import MEASURES, SMALLEST_NORM, influence
from interp.sweeps.large_weights import large_weights, share_of_large_weights
from interp.sweeps.positions import (
    FirstPosition,
    first_read,
    positions_read,
    require_positions,
)
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

__all__ = [
    "MEASURES",
    "BlockInfluence",
    "BlockInfluenceResult",
    "influence",
    "share_of_large_weights",
]


@dataclass(frozen=True)
class BlockInfluence(Analysis):
    """Measure how far every layer, and every span of layers, turns the stream.

    Findings and figure leave position 0, often a sink, out of every mean, unless `first_position`
    is "included", as published; the frame has the means over tokens both ways.
    """

    first_position: FirstPosition = "excluded"
    seed: int = 0
    question: ClassVar[str] = (
        "How much does a layer turn the stream, and which layers would go first?"
    )
    how: ClassVar[str] = (
        "The angle between the stream before a layer and after it, as 1 - cosine, averaged"
        " over tokens; with its published relatives, one of which looks at weights only."
    )
    caveat: ClassVar[str] = (
        "A layer that turns the stream little can still be needed;"
        " layer_skip measures what its absence costs."
    )

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise AnalysisError for prompts without a position to average."""
        require_positions(shard, first_position=self.first_position)

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return every layer's ZD over its matrices: a norm's gains, near 1, would decide it."""
        return {"large_weights": large_weights(model.blocks)}

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return per prompt means over positions [batch layer measure], and cosines between taps.

        Those are of the last token, [batch tap tap]. "other_means" are those with position 0 where
        it is excluded, and without where it is included; NaN where there is no other position.
        """
        start, n = first_read(self.first_position), len(shard.prompts)
        whole = [recording.resid(layer) for layer in range(recording.n_layers + 1)]
        by_token = torch.stack([influence(a, b) for a, b in pairwise(whole)], dim=1)
        stream = [resid[:, start:] for resid in whole]
        flat = [
            cosine_similarity(a.float().flatten(1), b.float().flatten(1), dim=-1, eps=SMALLEST_NORM)
            for a, b in pairwise(stream)
        ]
        last = torch.stack([resid[:, -1].float() for resid in stream], dim=1)
        last = last / vector_norm(last, dim=-1, keepdim=True).clamp_min(SMALLEST_NORM)
        return {
            "means": by_token[:, :, start:].mean(2).cpu(),
            "other_means": by_token[:, :, 1 - start :].mean(2).cpu(),
            "flat_cosine": torch.stack(flat, dim=1).cpu(),
            "last_cosine": (last @ last.mT).cpu(),
            "large_weights": prepared["large_weights"].expand(n, -1).clone(),
            "n_pos": torch.full((n,), stream[0].shape[1]),
        }

    def combine(self, parts: Sequence[Tensors]) -> BlockInfluenceResult:
        """Return token-weighted means; of angles and flattened cosines, means over prompts."""
        arrays = joined([{key: value.double() for key, value in part.items()} for part in parts])
        return BlockInfluenceResult(arrays, self.seed, positions_read(self.first_position))

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Nothing beyond the clean pass."""
        taps = model.n_layers + 1
        numbers = len(shard.prompts) * (taps**2 + 5 * taps)
        return Cost(0.0, numbers, 4 * shard.tokens.numel() * model.d_model)
