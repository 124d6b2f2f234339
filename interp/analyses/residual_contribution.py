"""How much does each sublayer write, and does it write, erase or strengthen?

"Do Language Models Use Their Depth Efficiently?" (arXiv 2505.13898), section 3.1: norms of the
stream and of what is written to it, their ratios, and the cosine of each write with the stream it
is added to (about 0: a new direction; negative: erasing; positive: strengthening).
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

from interp.analysis import Analysis, Cost, Finding, Result
from interp.errors import TaskError
from interp.figures.plots import lines_over_depth
from interp.models import Model
from interp.replay import Recording
from interp.result import old_finding
from interp.shapes import Tensors
from interp.sites import Site
from interp.stats.bootstrap import interval_of, resampled_means
from interp.tasks.batch import TokenBatch

_EPS = 1e-6
MEASURES = (
    ("norm", "stream"), ("norm", "attention"), ("norm", "MLP"),
    ("norm relative to the stream", "attention"), ("norm relative to the stream", "MLP"),
    ("norm relative to the stream", "layer"),
    ("cosine with the stream", "attention"), ("cosine with the stream", "MLP"), ("cosine with the stream", "layer"),
    ("cosine with the stream", "layer's output"),
)  # fmt: skip


def written(
    resid_pre: Float[Tensor, "*tokens d_model"],
    *,
    attn: Float[Tensor, "*tokens d_model"],
    mlp: Float[Tensor, "*tokens d_model"],
    is_parallel: bool,
) -> Float[Tensor, "*tokens measure"]:
    """Return `MEASURES` of one layer, in fp32; in a parallel block the MLP reads and is added to
    `resid_pre`.
    """
    pre, attn, mlp = resid_pre.float(), attn.float(), mlp.float()
    pairs = ((attn, pre), (mlp, pre if is_parallel else pre + attn), (attn + mlp, pre))
    norms = [vector_norm(t, dim=-1) for t in (pre, attn, mlp)]
    ratios = [
        vector_norm(write, dim=-1) / vector_norm(stream, dim=-1).clamp_min(_EPS)
        for write, stream in pairs
    ]
    cosines = [cosine_similarity(write, stream, dim=-1, eps=_EPS) for write, stream in pairs]
    return torch.stack(
        [*norms, *ratios, *cosines, cosine_similarity(pre, pre + attn + mlp, dim=-1, eps=_EPS)],
        dim=-1,
    )


@dataclass(frozen=True)
class ResidualContribution(Analysis):
    """Measure what each sublayer writes; `first_position` False leaves position 0 (often a sink)
    out.
    """

    first_position: bool = True
    seed: int = 0
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
        """Return per prompt the mean and maximum over positions [batch layer measure], with and
        without position 0.

        "by_position" [batch layer pos measure] is what they are of, for those who look at single
        prompts.
        """
        layers = [
            written(
                recording.resid(layer),
                attn=recording.clean(Site("attn_out", layer)),
                mlp=recording.clean(Site("mlp_out", layer)),
                is_parallel=recording.blocks[layer].is_parallel,
            )
            for layer in range(recording.n_layers)
        ]
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
        suffix = "" if self.first_position else "_without_first"
        n_tokens = torch.cat([part["n_pos"] for part in parts]).double().numpy() - (
            0 if self.first_position else 1
        )
        mean, maximum = (
            torch.cat([part[f"{name}{suffix}"] for part in parts]).double().numpy()
            for name in ("mean", "max")
        )
        if not (is_there := n_tokens > 0).any():
            raise TaskError(
                "every prompt is one token; with first_position=false there is none left"
            )
        n_tokens, mean, maximum = n_tokens[is_there], mean[is_there], maximum[is_there].max(0)
        means = resampled_means(mean, weights=n_tokens, seed=self.seed)
        low, high = np.quantile(means, [0.025, 0.975], axis=0)
        return ResidualContributionResult(
            np.average(mean, axis=0, weights=n_tokens),
            low,
            high,
            maximum,
            interval_of(second_half(means)),
            len(mean),
        )

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Nothing beyond the clean pass."""
        return Cost(
            0.0, (4 * len(shard.prompts) + shard.tokens.numel()) * model.n_layers * len(MEASURES)
        )


def second_half(mean: np.ndarray) -> np.ndarray:
    """Return what the second half of the layers writes, relative to the first half, from means [...
    layer measure].
    """
    ratio = mean[..., MEASURES.index(("norm relative to the stream", "layer"))]
    half = (ratio.shape[-1] + 1) // 2
    if half == ratio.shape[-1]:
        return np.full(ratio.shape[:-1], np.nan)
    return np.asarray(ratio[..., half:].mean(-1) / ratio[..., :half].mean(-1))


@dataclass(frozen=True, repr=False)
class ResidualContributionResult(Result):
    """Arrays [layer measure] over all prompts, and the 95 % interval of what the second half of the
    layers writes.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    maximum: np.ndarray
    second_half_interval: tuple[float, float]
    n_prompts: int

    def to_frame(self) -> pd.DataFrame:
        """Return columns measure, component, layer, mean, low, high (95 % bootstrap over prompts),
        max over all tokens.
        """
        return pd.DataFrame(
            {
                "measure": measure, "component": component, "layer": layer, "mean": self.mean[layer, i],
                "low": self.low[layer, i], "high": self.high[layer, i], "max": self.maximum[layer, i],
            }
            for i, (measure, component) in enumerate(MEASURES)
            for layer in range(len(self.mean))
        )  # fmt: skip

    def plot(self) -> go.Figure:
        """Draw norms, ratios and cosines over depth."""
        return lines_over_depth(
            self.to_frame(),
            y="mean",
            groups="component",
            panels="measure",
            title="What each sublayer writes to the residual stream",
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return what the second half of the layers writes, compared with the first."""
        measure = "writes of the second half of the layers, relative to those of the first half"
        value = float(second_half(self.mean))
        return (
            old_finding(self.summary(), value, measure, *self.second_half_interval, self.n_prompts),
        )

    def summary(self) -> str:
        """Say which layer writes most, relative to the stream, and where writes erase."""
        ratio = self.mean[:, MEASURES.index(("norm relative to the stream", "layer"))]
        cosine = self.mean[:, MEASURES.index(("cosine with the stream", "layer"))]
        half = (len(ratio) + 1) // 2
        erasing = [str(layer) for layer in np.flatnonzero(cosine < 0)]
        told = (
            f"Layers {', '.join(erasing)} write"
            if len(erasing) > 1
            else f"Layer {''.join(erasing)} writes"
        )
        return (
            f"Layer {ratio.argmax()} writes most, {ratio.max():.2f} of the stream's norm; the mean"
            f" is {ratio[:half].mean():.2f} in the first half and {ratio[half:].mean():.2f} in the"
            " second. "
            + (
                f"{told} against the stream (negative cosine)"
                if erasing
                else "No layer writes against the stream"
            )
            + f" ({self.n_prompts} prompts)."
        )
