"""How much does a layer turn the stream, and which layers would go first?

Block Influence (ShortGPT, arXiv 2403.03853): BI = 1 - E cos(h_in, h_out), the mean over tokens.
Siblings: LIM = -E cos (Layer-Wise Quantization, arXiv 2406.17415), and the same with a prompt's
tokens flattened to one vector; ZD, the share of a layer's weights with z-score above 1 (the same
paper; needs no data); the relative magnitude ||f(x)|| / ||x + f(x)||; the angular distance
arccos(cos) / pi of the last token over a span of layers (arXiv 2403.17887); and the BI that the
lengths alone would give if every write were orthogonal to the stream.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import cosine_similarity

from interp.analysis import Analysis, Cost, Finding, Result
from interp.errors import AnalysisError
from interp.figures.plots import grid_below, lines_over_depth
from interp.models import Model
from interp.replay import Recording
from interp.result import old_finding
from interp.shapes import Tensors
from interp.stats.bootstrap import bootstrap_interval
from interp.sweeps.cosines import MEASURES, influence
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

_EPS = 1e-6


def share_of_large_weights(weights: Sequence[Tensor]) -> float:
    """Return ZD: the share of all weights, taken together, that lie more than one standard
    deviation above their mean.
    """
    sizes = np.array([tensor.numel() for tensor in weights], dtype=np.float64)
    moments = np.array(
        [[float(m) for m in torch.var_mean(tensor.float(), correction=0)] for tensor in weights]
    )
    mean = np.average(moments[:, 1], weights=sizes)
    variance = np.average(moments[:, 0] + (moments[:, 1] - mean) ** 2, weights=sizes)
    threshold = float(mean + variance**0.5)
    return float(sum(int((tensor > threshold).sum()) for tensor in weights) / sizes.sum())


@dataclass(frozen=True)
class BlockInfluence(Analysis):
    """Measure how far every layer, and every span of layers, turns the stream; `first_position`
    False leaves 0 out.
    """

    first_position: bool = True
    seed: int = 0
    question: ClassVar[str] = (
        "How much does a layer turn the stream, and which layers would go first?"
    )
    how: ClassVar[str] = (
        "The angle between the stream in front of a layer and behind it, as 1 - cosine, averaged"
        " over tokens; beside it its published relatives, one of which looks at weights only."
    )
    caveat: ClassVar[str] = (
        "A layer that turns the stream little can still be needed; layer_skip measures what its"
        " absence costs."
    )

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise AnalysisError for prompts without a position to average."""
        if shard.tokens.shape[1] < 2 and not self.first_position:
            raise AnalysisError(
                f"prompt {shard.prompts[0].id!r} has 1 token; first_position=False needs at least 2"
            )

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return ZD of every layer, over its weight matrices: a norm's gains, near 1, would decide
        the deviation.
        """
        blocks = model.record(model.tokenize(task.prompts[:1])).blocks
        matrices = [
            [weight for weight in block.module.parameters() if weight.ndim > 1] for block in blocks
        ]
        return {
            "large_weights": torch.tensor([share_of_large_weights(weights) for weights in matrices])
        }

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return per prompt means over positions [batch layer measure], and cosines between sites
        [batch site site].
        """
        start, n = 0 if self.first_position else 1, len(shard.prompts)
        stream = [recording.resid(layer)[:, start:] for layer in range(recording.n_layers + 1)]
        pairs = list(pairwise(stream))
        flat = [
            cosine_similarity(a.float().flatten(1), b.float().flatten(1), dim=-1, eps=_EPS)
            for a, b in pairs
        ]
        last = torch.stack([resid[:, -1].float() for resid in stream], dim=1)
        last = last / vector_norm(last, dim=-1, keepdim=True).clamp_min(_EPS)
        return {
            "means": torch.stack([influence(a, b).mean(1) for a, b in pairs], dim=1).cpu(),
            "flat_cosine": torch.stack(flat, dim=1).cpu(),
            "last_cosine": (last @ last.mT).cpu(),
            "large_weights": prepared["large_weights"].expand(n, -1).clone(),
            "n_pos": torch.full((n,), stream[0].shape[1]),
        }

    def combine(self, parts: Sequence[Tensors]) -> "BlockInfluenceResult":
        """Return token-weighted means (angles and flattened cosines: means over prompts), with
        intervals over prompts.
        """
        joined = {
            key: torch.cat([part[key] for part in parts]).double().numpy() for key in parts[0]
        }
        return BlockInfluenceResult(joined, seed=self.seed)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Nothing beyond the clean pass."""
        sites = model.n_layers + 1
        return Cost(
            0.0,
            len(shard.prompts) * (sites**2 + 5 * sites),
            4 * shard.tokens.numel() * model.d_model,
        )


@dataclass(frozen=True, repr=False)
class BlockInfluenceResult(Result):
    """Per-prompt arrays: means [prompt layer measure], flat_cosine and large_weights [prompt
    layer], last_cosine.
    """

    arrays: dict[str, np.ndarray]
    seed: int = 0

    @property
    def n_layers(self) -> int:
        """Return the number of layers."""
        return len(self.arrays["flat_cosine"][0])

    @property
    def angles(self) -> np.ndarray:
        """Return the last token's angular distance [prompt site site] between sites, in half turns;
        0 on the diagonal.
        """
        angles: np.ndarray = np.arccos(self.arrays["last_cosine"].clip(-1, 1)) / np.pi
        return np.where(np.eye(self.n_layers + 1, dtype=bool), 0.0, angles)

    def of(self, measure: str) -> np.ndarray:
        """Return one of `MEASURES` for every layer, the token-weighted mean."""
        means = self.arrays["means"][..., MEASURES.index(measure)]
        averages: np.ndarray = np.average(means, axis=0, weights=self.arrays["n_pos"])
        return averages

    def to_frame(self) -> pd.DataFrame:
        """Return columns measure, layer, span, mean, low, high (95 % bootstrap over prompts).

        Measures: those of `MEASURES`, "LIM" (BI - 1), "LIM, flattened" and "ZD" of one layer;
        "angular distance" of the last token, in half turns, over `span` layers from `layer` on.
        """
        return pd.concat([*self._layer_rows(), *self._span_rows()], ignore_index=True)

    def _layer_rows(self) -> Iterator[pd.DataFrame]:
        means = np.moveaxis(self.arrays["means"], -1, 0)
        for measure, values in zip(MEASURES, means, strict=True):
            yield self._rows(measure, values, weights=self.arrays["n_pos"])
        lim = self._rows("LIM", means[0], weights=self.arrays["n_pos"])
        yield lim.assign(**{column: lim[column] - 1 for column in ("mean", "low", "high")})
        yield self._rows("LIM, flattened", -self.arrays["flat_cosine"])
        yield self._rows("ZD", self.arrays["large_weights"])

    def _span_rows(self) -> Iterator[pd.DataFrame]:
        for span in range(1, self.n_layers + 1):
            yield self._rows(
                "angular distance", np.diagonal(self.angles, span, axis1=1, axis2=2), span=span
            )

    def _rows(
        self, measure: str, values: np.ndarray, *, weights: np.ndarray | None = None, span: int = 1
    ) -> pd.DataFrame:
        low, high = bootstrap_interval(values, weights=weights, seed=self.seed)
        keys = {"measure": measure, "layer": np.arange(values.shape[1]), "span": span}
        return pd.DataFrame(
            keys | {"mean": np.average(values, axis=0, weights=weights), "low": low, "high": high}
        )

    def plot(self) -> go.Figure:
        """Draw BI beside what lengths alone would give, its siblings, and the angular distance of
        every span.
        """
        panels = {name: "Block Influence (LIM + 1)" for name in MEASURES[:2]}
        panels |= {name: name for name in ("relative magnitude", "LIM, flattened", "ZD")}
        frame = pd.concat(self._layer_rows(), ignore_index=True)
        frame["panel"] = frame["measure"].map(panels)
        title = (
            "How far each layer turns the stream; below, how far the spans of layers turn the last"
            " token"
        )
        figure = lines_over_depth(
            frame.dropna(subset="panel"), y="mean", groups="measure", panels="panel", title=title
        )
        mean = self.angles.mean(0)
        spans = range(1, self.n_layers + 1)
        grid = np.full((self.n_layers, self.n_layers), np.nan)
        for span in spans:
            grid[span - 1, : self.n_layers + 1 - span] = np.diagonal(mean, span)
        return grid_below(
            figure,
            grid,
            x="first layer of the span",
            y="layers in the span",
            of="half turns",
            y_first=1,
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return the BI of the layer that turns the stream least."""
        rows = self._rows("BI", self.arrays["means"][..., 0], weights=self.arrays["n_pos"])
        least = rows.iloc[int(rows["mean"].argmin())]
        numbers = (float(least["mean"]), "BI of the layer that turns the stream least")
        return (
            old_finding(
                self.summary(),
                *numbers,
                float(least["low"]),
                float(least["high"]),
                len(self.angles),
            ),
        )

    def summary(self) -> str:
        """Say which layers would be removed first, how far lengths alone explain it, and what the
        siblings say.
        """
        bi, orthogonal = self.of("BI"), self.of("BI if writes were orthogonal")
        order, zd = bi.argsort(), self.arrays["large_weights"][0]
        rows = self._rows("BI", self.arrays["means"][..., 0], weights=self.arrays["n_pos"])
        least, most = order[0], order[-1]
        return (
            f"Layer {least} turns the stream least, BI {bi[least]:.3f} (95 % interval"
            f" {rows['low'][least]:.3f} to {rows['high'][least]:.3f}, {len(self.angles)} prompts),"
            f" and layer {most} most, {bi[most]:.3f}; removed by BI or LIM, layers would go in the"
            f" order {', '.join(map(str, order))}, by relative magnitude"
            f" {', '.join(map(str, self.of('relative magnitude').argsort()))}, and by weights alone"
            f" (ZD) {', '.join(map(str, (-zd).argsort()))}. If every write were orthogonal to the"
            f" stream, BI would be {orthogonal[least]:.3f} and {orthogonal[most]:.3f} there: the"
            " rest is direction, not length."
        )
