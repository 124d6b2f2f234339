"""How does the stream grow with depth, and are there massive activations?

"Peri-LN" (arXiv 2502.02732): the variance of the stream over its dimensions grows linearly with
depth where writes are normed; in a pre-norm model it grows linearly at the start of training and
exponentially after it. Both laws are fitted here. "Massive Activations in Large Language Models"
(arXiv 2402.17762): single values above 100 and 1,000 times the median of the hidden state, mostly
at the first token; so everything is given with and without position 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.analyses.stream_statistics.result import POSITIONS, STATISTICS, StreamStatisticsResult
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError
from interp.models import Model
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Resid, Tensors
from interp.sweeps.massive import massive_activations, median_size
from interp.tasks.batch import TokenBatch

_SMALLEST_MEDIAN = 1e-6


@dataclass(frozen=True)
class StreamStatistics(Analysis):
    """Measure the stream at every tap; growth is fitted from tap `fit_from` on.

    A massive activation is above `massive_above` and at least `massive_ratio` times the median of
    the prompt's hidden state (`sweeps.massive`).
    """

    massive_above: Annotated[float, AtLeast(0)] = 100.0
    massive_ratio: Annotated[float, AtLeast(0)] = 1000.0
    fit_from: Annotated[int, AtLeast(0)] = 0
    seed: int = 0
    question: ClassVar[str] = (
        "How does the stream grow with depth, and are there massive activations?"
    )
    how: ClassVar[str] = (
        "The variance of the stream over its dimensions is measured before every layer and"
        " after the last, with and without position 0, and laws of growth are fitted. Single"
        " values far above the others are counted as massive."
    )
    caveat: ClassVar[str] = (
        "The norm before each layer takes the stream's scale out, so growth alone does not say"
        " that late layers matter less."
    )

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise AnalysisError for too few taps to fit, and for prompts of a single token."""
        if model.n_layers + 1 - self.fit_from < 3:
            raise AnalysisError(
                f"fit_from={self.fit_from};"
                f" the model has taps 0 to {model.n_layers}, and a fit needs 3"
            )
        if shard.tokens.shape[1] < 2:
            raise AnalysisError(
                f"prompt {shard.prompts[0].id!r} has 1 token; at least 2 are needed"
            )

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return statistics [batch tap positions statistic], and where |h| is largest.

        "where" [batch tap positions 2] holds position and dimension; "n_pos" [batch] counts tokens.
        """
        rule: dict[str, Any] = {"above": self.massive_above, "ratio": self.massive_ratio}
        statistics, where = [], []
        for tap in range(recording.n_layers + 1):
            resid = recording.resid(tap)
            n_massive = massive_activations(resid, **rule).sum(-1)
            for start in (0, 1):
                statistics.append(statistics_of(resid[:, start:], n_massive[:, start:]).cpu())
                where.append(where_largest(resid[:, start:]).cpu() + torch.tensor([start, 0]))
        shape = (len(shard.prompts), recording.n_layers + 1, len(POSITIONS), -1)
        return {
            "statistics": torch.stack(statistics, dim=1).reshape(shape),
            "where": torch.stack(where, dim=1).reshape(shape).to(torch.int32),
            "n_pos": torch.full((len(shard.prompts),), recording.n_pos),
        }

    def combine(self, parts: Sequence[Tensors]) -> StreamStatisticsResult:
        """Return means over prompts (variance and mean: over tokens), maxima and where they are."""
        whole = joined(parts)
        statistics = whole["statistics"].astype(np.float64)
        return StreamStatisticsResult(self, statistics, whole["where"], whole["n_pos"])

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Nothing beyond the clean pass."""
        numbers = len(shard.prompts) * (model.n_layers + 1) * len(POSITIONS) * (len(STATISTICS) + 2)
        return Cost(0.0, numbers, 3 * shard.tokens.numel() * model.d_model)


def statistics_of(
    resid: Resid, n_massive: Int[Tensor, "rows pos"]
) -> Float[Tensor, "rows statistic"]:
    """Return `STATISTICS` of each prompt's hidden state, in fp32.

    The variance is over d_model, then averaged over positions; maximum, median and number of
    massive activations (of which each position has `n_massive`) are over all of a prompt's
    positions and dimensions.
    """
    resid = resid.float()
    size, median = resid.abs().flatten(1), median_size(resid)
    top, variance = size.amax(1), resid.var(dim=-1, correction=0).mean(1)
    share = top / median.clamp_min(_SMALLEST_MEDIAN)
    return torch.stack([variance, size.mean(1), top, share, n_massive.sum(1).float()], dim=1)


def where_largest(resid: Resid) -> Int[Tensor, "rows 2"]:
    """Return the position and dimension of each prompt's largest |h|."""
    largest = resid.float().abs().flatten(1).argmax(1)
    return torch.stack([largest // resid.shape[-1], largest % resid.shape[-1]], dim=1)
