"""How much does each sublayer write, and does it write, erase or strengthen?

"Do Language Models Use Their Depth Efficiently?" (arXiv 2505.13898), section 3.1: norms of the
stream and of what is written to it, their ratios, and the cosine of each write with the stream to
which it is added (about 0: a new direction; negative: erasing; positive: strengthening).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import cosine_similarity

from interp.analysis import Analysis, Cost
from interp.errors import TaskError
from interp.figures.plots import lines_over_depth
from interp.figures.words import layers_named
from interp.models import Model
from interp.replay import Recording
from interp.result import Finding, Result, joined
from interp.shapes import Tensors
from interp.stats.bootstrap import ends_of, resampled_means
from interp.stats.estimate import Estimate, estimate_of
from interp.sweeps.cosines import SMALLEST_NORM, Write, cosines_of, writes_of
from interp.sweeps.positions import FirstPosition, first_read, positions_read
from interp.tasks.batch import TokenBatch

_RATIO, _COSINE = "norm relative to the stream", "cosine with the stream"
MEASURES = (
    *(("norm", part) for part in ("stream", "attention", "MLP")),
    *((_RATIO, part) for part in ("attention", "MLP", "layer")),
    *((_COSINE, part) for part in ("attention", "MLP", "layer", "layer's output")),
)


@dataclass(frozen=True)
class ResidualContribution(Analysis):
    """Measure what each sublayer writes.

    `first_position` "excluded" leaves out position 0, which is often a sink.
    """

    first_position: FirstPosition = "included"
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

    def combine(self, parts: Sequence[Tensors]) -> "ResidualContributionResult":
        """Return token-weighted means with a bootstrap interval over prompts, and maxima."""
        suffix = "_without_first" if first_read(self.first_position) else ""
        keys = ("mean" + suffix, "max" + suffix, "n_pos")
        of_all = joined([{key: part[key].double() for key in keys} for part in parts])
        mean, maximum, n_tokens = (of_all[key] for key in keys)
        n_tokens = n_tokens - first_read(self.first_position)
        if not (has_tokens := n_tokens > 0).any():
            raise TaskError("every prompt has 1 token; first_position='excluded' needs at least 2")
        n_tokens, mean = n_tokens[has_tokens], mean[has_tokens]
        resampled = resampled_means(mean, weights=n_tokens, seed=self.seed)
        low, high = ends_of(resampled)
        average = np.average(mean, axis=0, weights=n_tokens)
        ratio = estimate_of(float(second_half(average)), second_half(resampled), n=len(mean))
        maxima = maximum[has_tokens].max(0)
        positions = positions_read(self.first_position)
        return ResidualContributionResult(average, low, high, maxima, ratio, positions)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Nothing beyond the clean pass."""
        return Cost(
            0.0, (4 * len(shard.prompts) + shard.tokens.numel()) * model.n_layers * len(MEASURES)
        )


def measures_of(writes: Sequence[Write]) -> Float[Tensor, "*tokens measure"]:
    """Return `MEASURES` of one layer from what attention, the MLP and the layer write, in fp32."""
    (attn, stream), (mlp, _), _ = writes
    norms = [vector_norm(t, dim=-1) for t in (stream, attn, mlp)]
    ratios = [
        vector_norm(write, dim=-1) / vector_norm(before, dim=-1).clamp_min(SMALLEST_NORM)
        for write, before in writes
    ]
    in_and_out = cosine_similarity(stream, stream + attn + mlp, dim=-1, eps=SMALLEST_NORM)
    lengths = torch.stack([*norms, *ratios], dim=-1)
    return torch.cat([lengths, cosines_of(writes), in_and_out[..., None]], dim=-1)


def second_half(mean: np.ndarray) -> np.ndarray:
    """Return the second half's mean write relative to the first's, from [... layer measure]."""
    ratio = mean[..., MEASURES.index((_RATIO, "layer"))]
    half = (ratio.shape[-1] + 1) // 2
    if half == ratio.shape[-1]:
        return np.full(ratio.shape[:-1], np.nan)
    return np.asarray(ratio[..., half:].mean(-1) / ratio[..., :half].mean(-1))


@dataclass(frozen=True, repr=False)
class ResidualContributionResult(Result):
    """Arrays [layer measure] over all prompts.

    `second_half` is what the second half of the layers writes, relative to the first.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    maximum: np.ndarray
    second_half: Estimate
    positions: str

    def to_frame(self) -> pd.DataFrame:
        """Return columns measure, component, layer, mean, low, high and max.

        Intervals are 95 % bootstraps over prompts, maxima are over all tokens.
        """
        arrays = {"mean": self.mean, "low": self.low, "high": self.high, "max": self.maximum}
        return pd.DataFrame(
            {"measure": measure, "component": component, "layer": layer}
            | {column: values[layer, i] for column, values in arrays.items()}
            for i, (measure, component) in enumerate(MEASURES)
            for layer in range(len(self.mean))
        )

    def plot(self) -> go.Figure:
        """Draw norms, ratios and cosines over depth."""
        return lines_over_depth(
            self.to_frame(),
            y="mean",
            groups="component",
            panels="measure",
            title=f"What each sublayer writes to the residual stream, mean over {self.positions}",
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return what the second half of the layers writes, and where layers erase."""
        ratio, cosine = (self.mean[:, MEASURES.index((of, "layer"))] for of in (_RATIO, _COSINE))
        erasing = np.flatnonzero(cosine < 0).tolist()
        who = layers_named(erasing, of=len(cosine))
        verb = "writes" if len(erasing) < 2 else "write"
        largest = int(ratio.argmax())
        most = self._estimate(largest, _RATIO)
        return (
            self._halves(),
            Finding(
                f"Layer {largest} writes most: {most:.2f} times the stream's length.",
                most,
                "write of the layer that writes most, relative to the stream",
            ),
            Finding(f"{who.capitalize()} {verb} against the stream (negative cosine)."),
        )

    def _estimate(self, layer: int, measure: str) -> Estimate:
        at = layer, MEASURES.index((measure, "layer"))
        return Estimate(self.mean[at], self.low[at], self.high[at], self.second_half.n)

    def _halves(self) -> Finding:
        if np.isnan(self.second_half.value):
            return Finding("The model has one layer, so there are no halves to compare.")
        return Finding(
            "Relative to the stream, the second half of the layers writes"
            f" {self.second_half:.2f} times as much as the first.",
            self.second_half,
            "writes of the second half of the layers, relative to those of the first half",
        )
