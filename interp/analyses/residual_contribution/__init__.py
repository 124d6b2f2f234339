"""How much does each sublayer write, and does it write, erase or strengthen?

"Do Language Models Use Their Depth Efficiently?" (arXiv 2505.13898), section 3.1: norms of the
stream and of what is written to it, their ratios, and the cosine of each write with the stream to
which it is added (about 0: a new direction; negative: erasing; positive: strengthening).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import cosine_similarity

from interp.analyses.residual_contribution.result import ResidualContributionResult
from interp.analyses.residual_contribution.writes import MEASURES
from interp.analysis import Analysis, Cost
from interp.errors import TaskError
from interp.models import Model
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Tensors
from interp.sweeps.cosines import SMALLEST_NORM, Write, cosines_of, writes_of
from interp.sweeps.positions import FirstPosition, first_read
from interp.tasks.batch import TokenBatch

__all__ = ["MEASURES", "ResidualContribution", "ResidualContributionResult", "measures_of"]
_KEPT = ("mean", "max", "mean_without_first", "max_without_first", "n_pos")


@dataclass(frozen=True)
class ResidualContribution(Analysis):
    """Measure what each sublayer writes.

    Findings and figure leave out position 0, which is often a sink, unless `first_position` is
    "included", as published; the frame has both.
    """

    first_position: FirstPosition = "excluded"
    seed: int = 0
    rank: ClassVar[int] = 4
    page: ClassVar[str] = "residual"
    question: ClassVar[str] = (
        "How much does each sublayer write, and does it write, erase or strengthen?"
    )
    how: ClassVar[str] = (
        "What attention, MLP and whole layer add to the stream is compared with the stream in front"
        " of them: lengths, their ratio, and the cosine (about 0: a new direction; negative:"
        " erasing; positive: strengthening). Means over tokens."
    )
    caveat: ClassVar[str] = (
        "A long write is not a needed one; layer_skip measures what its absence costs."
    )

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return per prompt the mean and maximum over positions [batch layer measure].

        Both are given with and without position 0. "by_position" [batch layer pos measure] has
        every position, for a look at single prompts.
        """
        layers = [measures_of(writes_of(recording, layer)) for layer in range(recording.n_layers)]
        measures = torch.stack(layers, dim=1)
        rest = measures[:, :, 1:] if measures.shape[2] > 1 else torch.full_like(measures, torch.nan)
        return {
            "mean": measures.mean(2),
            "max": measures.amax(2),
            "mean_without_first": rest.mean(2),
            "max_without_first": rest.amax(2),
            "n_pos": torch.full((len(shard.prompts),), measures.shape[2]),
            "by_position": measures,
        }

    def combine(self, parts: Sequence[Tensors]) -> ResidualContributionResult:
        """Return the means and maxima of all prompts, with and without position 0."""
        of_all = joined([{key: part[key].double() for key in _KEPT} for part in parts])
        if first_read(self.first_position) and (of_all["n_pos"] < 2).all():
            raise TaskError("every prompt has 1 token; first_position='excluded' needs at least 2")
        return ResidualContributionResult(self, of_all)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Nothing beyond the clean pass."""
        return Cost(
            0.0, (4 * len(shard.prompts) + shard.tokens.numel()) * model.n_layers * len(MEASURES)
        )


def measures_of(writes: Sequence[Write]) -> Float[Tensor, "*tokens measure"]:
    """Return `MEASURES` of one layer from what attention, the MLP and the layer write, in fp32."""
    (attn, stream), (mlp, _), (write, _) = writes
    norms = [vector_norm(t, dim=-1) for t in (stream, attn, mlp)]
    ratios = [
        vector_norm(each, dim=-1) / vector_norm(before, dim=-1).clamp_min(SMALLEST_NORM)
        for each, before in writes
    ]
    in_and_out = cosine_similarity(stream, stream + write, dim=-1, eps=SMALLEST_NORM)
    lengths = torch.stack([*norms, *ratios], dim=-1)
    return torch.cat([lengths, cosines_of(writes), in_and_out[..., None]], dim=-1)
