"""Until which layer does each token matter for the answer?

"Do Language Models Use Their Depth Efficiently?" (arXiv 2505.13898), section 3.3: integrated
gradients of the probability of the answer's tokens (summed over them), F, with respect to what a
layer hands on, S, from a baseline B without information, S's mean over the prompt's positions:

    A[l, t] = sum_d (S - B)[t, d] * integral over a in [0, 1] of dF/dS (B + a (S - B)) [t, d]

The attributions of all positions add up to F(S) - F(B), which is known; nodes are added until they
do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor

from interp.analyses.integrated_gradients.quadrature import (
    FEWEST_NODES,
    FLOOR,
    Evaluate,
    Integral,
    integrate,
    left_riemann,
)
from interp.analysis import Analysis, Cost, Finding, Result
from interp.errors import AnalysisError
from interp.figures.plots import grids_over_positions
from interp.models import Model
from interp.models.gradients import graph, slopes
from interp.replay import Recording
from interp.result import old_finding
from interp.shapes import Tensors
from interp.sites import Site
from interp.stats.align import Aligned, align
from interp.stats.bootstrap import bootstrap_interval, interval_of, resampled_means
from interp.sweeps.answers import Answered, answered, answered_sizes, probability, require_answers
from interp.sweeps.staircase import Part
from interp.tasks.batch import TokenBatch

Nodes = Literal["adaptive", "published"]
_CHUNK_TOKENS = 2048


@dataclass(frozen=True)
class IntegratedGradients(Analysis):
    """Integrate from a mean residual to the clean one, at every layer.

    `nodes` "adaptive" places them until the attributions add up within `tolerance` (relative, but
    absolute where the difference is below 0.01), at most `max_nodes` of them; "published" takes
    `max_nodes` equal steps, each at its left end. `part`: what is varied, the layer's output or
    what its attention or MLP writes. `first_position` False leaves position 0 out of the baseline;
    `whole_answer` True counts the answer's last token in, as published, at the price of a clean
    pass.
    """

    part: Part = "layer"
    nodes: Nodes = "adaptive"
    tolerance: float = 0.01
    max_nodes: int = 256
    first_position: bool = True
    whole_answer: bool = False
    seed: int = 0
    question: ClassVar[str] = "Until which layer does each token matter for the answer?"
    how: ClassVar[str] = (
        "The answer's probability is differentiated at points on the way from a mean stream to the"
        " clean one, at every layer. Points are added until the attributions add up to the known"
        " change of the probability."
    )
    caveat: ClassVar[str] = (
        "Attributions depend on the stream that stands for “no information”; another baseline"
        " shares them out differently."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        fewest = FEWEST_NODES if self.nodes == "adaptive" else 1
        if self.max_nodes < fewest:
            raise AnalysisError(f"max_nodes={self.max_nodes}; at least {fewest} are needed")
        if not self.tolerance > 0:
            raise AnalysisError(f"tolerance={self.tolerance}; more than 0 is needed")

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise TaskError where answers are missing, AnalysisError for prompts too short for a
        baseline.
        """
        require_answers(shard)
        n_pos, fewest = shard.tokens.shape[1], 2 if self.first_position else 3
        if n_pos < fewest:
            raise AnalysisError(
                f"prompt {shard.prompts[0].id!r} has {n_pos} tokens; a baseline needs at least"
                f" {fewest}"
            )

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return per prompt attributions [batch layer pos], and how each sum came about [batch
        layer].
        """
        n, layers = len(shard.prompts), recording.n_layers
        sizes = answered_sizes(shard, whole=self.whole_answer)
        parts: Tensors = {
            "attribution": torch.zeros(n, layers, max(size.n_pos for size in sizes)),
            "difference": torch.zeros(n, layers),
            "error": torch.zeros(n, layers),
            "nodes": torch.zeros(n, layers, dtype=torch.int32),
            "capped": torch.zeros(n, layers, dtype=torch.int32),
            "n_pos": torch.zeros(n, dtype=torch.int64),
            "last": shard.last.cpu(),
        }
        for group in answered(recording, shard, whole=self.whole_answer):
            n_pos = group.recording.n_pos
            parts["n_pos"][group.rows.cpu()] = n_pos
            for layer in range(layers):
                for row, integral in zip(
                    group.rows.tolist(), self._integrals(group, layer), strict=True
                ):
                    parts["attribution"][row, layer, :n_pos] = integral.components.cpu()
                    parts["difference"][row, layer] = integral.difference
                    parts["error"][row, layer] = integral.error
                    parts["nodes"][row, layer] = integral.n_nodes
                    parts["capped"][row, layer] = integral.is_capped
        return parts

    def _integrals(self, group: Answered, layer: int) -> list[Integral]:
        evaluate, n = self._slopes(group, layer), len(group.rows)
        if self.nodes == "adaptive":
            return integrate(evaluate, n, tolerance=self.tolerance, max_nodes=self.max_nodes)
        recording = group.recording
        logits = recording.logits(recording.resid(recording.n_layers), positions=group.predicting)
        ends = probability(logits, group.answer).tolist()
        return left_riemann(evaluate, n, n_nodes=self.max_nodes, ends=ends)

    def _slopes(self, group: Answered, layer: int) -> Evaluate:
        """Return what evaluates F, and how it changes along the path at each position, for any
        prompts and nodes.
        """
        recording = group.recording
        source = self._varied(recording, layer)
        read = source if self.first_position else source[:, 1:]
        baseline = read.float().mean(1, keepdim=True)
        path = source.float() - baseline

        def some(which: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
            rows, work = recording.of(group.tokens[which]), recording.work
            before = work.block_tokens
            with graph():
                varied = (
                    (baseline[which] + at[:, None, None] * path[which])
                    .to(source.dtype)
                    .requires_grad_()
                )
                resid = self._behind(recording, rows, which, layer, varied)
                resid = rows.chain(range(layer + 1, rows.n_layers), resid)
                value = probability(
                    rows.logits(resid, positions=group.predicting), group.answer[which]
                )
                (slope,) = slopes(value, [varied])
            work.add(work.block_tokens - before)  # the way back costs about what the way there did
            return value.detach(), (slope * path[which]).sum(-1)

        def evaluate(which: Sequence[int], at: Sequence[float]) -> tuple[Tensor, Tensor]:
            size = max(1, _CHUNK_TOKENS // recording.n_pos)
            prompts = torch.split(torch.tensor(which, device=source.device), size)
            nodes = torch.split(torch.tensor(at, device=source.device), size)
            done = [some(*chunk) for chunk in zip(prompts, nodes, strict=True)]
            return (
                torch.cat([value for value, _ in done]).cpu(),
                torch.cat([slope for _, slope in done]).cpu(),
            )

        return evaluate

    def _varied(self, recording: Recording, layer: int) -> Tensor:
        """Return what the path ends at [batch pos d_model]."""
        match self.part:
            case "layer":
                return recording.resid(layer + 1)
            case "attention":
                return recording.clean(Site("attn_out", layer))
            case "mlp":
                return recording.clean(Site("mlp_out", layer))

    def _behind(
        self, clean: Recording, rows: Recording, which: Tensor, layer: int, varied: Tensor
    ) -> Tensor:
        """Return the residual behind `layer` where its part has written something else."""
        if self.part == "layer":
            return varied
        pre = clean.resid(layer)[which]
        if self.part == "mlp":
            return pre + clean.clean(Site("attn_out", layer))[which] + varied
        if clean.blocks[layer].is_parallel:
            return pre + varied + clean.clean(Site("mlp_out", layer))[which]
        return pre + varied + rows.mlp(layer, pre + varied)

    def combine(self, parts: Sequence[Tensors]) -> "IntegratedGradientsResult":
        """Return attributions aligned at the prompts' ends, and the errors of all sums."""
        arrays = [{key: value.numpy() for key, value in part.items()} for part in parts]
        keys = ("attribution", "last", "n_pos")
        attribution, last, n_pos = ([part[key] for part in arrays] for key in keys)
        joined = {
            key: np.concatenate([part[key] for part in arrays])
            for key in arrays[0]
            if key not in keys
        }
        return IntegratedGradientsResult(self, align(attribution, last=last, n_pos=n_pos), joined)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return `max_nodes` times there and back through the blocks behind each layer: at most,
        unless as published.
        """
        layers, n_tokens = model.n_layers, shard.tokens.numel()
        blocks = (
            sum(range(layers)) + {"layer": 0.0, "attention": 0.5 * layers, "mlp": 0.0}[self.part]
        )
        sizes = answered_sizes(shard, whole=self.whole_answer)
        there_and_back = (
            2 * self.max_nodes * blocks * sum(size.n_prompts * size.n_pos for size in sizes)
        )
        clean = sum(size.passed for size in sizes) * layers
        longest = max(size.n_pos for size in sizes)
        numbers = len(shard.prompts) * layers * (longest + 4)
        held = max(_CHUNK_TOKENS, longest) * (16 * layers * model.d_model + 3 * model.d_vocab)
        forwards = (there_and_back + clean) / (layers * n_tokens)
        return Cost(
            forwards, numbers, held, is_bound=self.nodes == "adaptive" or self.part == "attention"
        )


def taken_over(share: np.ndarray) -> int | None:
    """Return the first layer from which on the last token holds more than half, from its shares
    [layer]; None if never.
    """
    less = np.flatnonzero(share <= 0.5)
    first = int(less[-1]) + 1 if len(less) else 0
    return first if first < len(share) else None


@dataclass(frozen=True, repr=False)
class IntegratedGradientsResult(Result):
    """Attributions [prompt layer column], and `arrays` [prompt layer]: difference, error, nodes,
    capped.
    """

    analysis: IntegratedGradients
    attribution: Aligned
    arrays: dict[str, np.ndarray]

    @property
    def relative_error(self) -> np.ndarray:
        """Return by how much the attributions miss F(S) - F(B) [prompt layer], relative to it (to
        0.01, if it is less).
        """
        relative: np.ndarray = self.arrays["error"] / np.maximum(
            np.abs(self.arrays["difference"]), FLOOR
        )
        return relative

    @property
    def share_of_last(self) -> np.ndarray:
        """Return the last token's share of the absolute attribution [prompt layer], position 0 left
        out.
        """
        size = np.abs(self.attribution.values[:, :, 1:])
        last = size[:, :, list(self.attribution.offsets).index(0)]
        share: np.ndarray = last / np.maximum(np.nansum(size, axis=2), 1e-12)
        return share

    def to_frame(self) -> pd.DataFrame:
        """Return one row per measure and layer, and for attributions per position; statistics over
        prompts.

        Measures: "attribution" (in probability; `position` counts from the prompt's last token, 0),
        and of every sum "share of the last token", "difference" F(S) - F(B), "nodes", "relative
        error" and "capped" (1: more nodes were wanted than allowed).
        """
        frames = [self.attribution.to_frame(seed=self.analysis.seed).assign(measure="attribution")]
        measures = {
            "share of the last token": self.share_of_last, "difference": self.arrays["difference"],
            "nodes": self.arrays["nodes"], "relative error": self.relative_error, "capped": self.arrays["capped"],
        }  # fmt: skip
        for name, values in measures.items():
            per_prompt = values.astype(np.float64)
            low, high = bootstrap_interval(per_prompt, seed=self.analysis.seed)
            numbers = {
                "mean": per_prompt.mean(0),
                "low": low,
                "high": high,
                "max": per_prompt.max(0),
            }
            layers = {
                "layer": np.arange(per_prompt.shape[1]),
                "position": None,
                "n_prompts": len(per_prompt),
            }
            frames.append(pd.DataFrame({"measure": name} | layers | numbers))
        columns = ["measure", "layer", "position", "mean", "low", "high", "max", "n_prompts"]
        return pd.concat(
            [frame.astype({"position": "string"}) for frame in frames], ignore_index=True
        )[columns]

    def plot(self) -> go.Figure:
        """Draw the mean attribution by layer and position; colours do not depend on the first
        token.
        """
        frame = self.attribution.to_frame(seed=self.analysis.seed).assign(panel="")
        what = {
            "layer": "each layer's output",
            "attention": "each attention's write",
            "mlp": "each MLP's write",
        }
        title = (
            f"How much the answer's probability owes to {what[self.analysis.part]} at each token"
            " (integrated gradients)"
        )
        return grids_over_positions(
            frame, panels="panel", y="layer", title=title, colour="probability", is_signed=True
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return from which share of the depth on the last token holds most of the attribution."""
        share = self.share_of_last
        resampled = resampled_means(share.astype(np.float64), seed=self.analysis.seed)
        taken, *others = (taken_over(mean) for mean in (share.mean(0), *resampled))
        if taken is None:
            return (old_finding(self.summary()),)
        n, n_layers = share.shape
        low, high = interval_of(
            np.inf if layer is None else (layer + 1) / n_layers for layer in others
        )
        measure = "share of layers until the last token holds most of the attribution"
        return (old_finding(self.summary(), (taken + 1) / n_layers, measure, low, high, n),)

    def summary(self) -> str:
        """Say where the last token takes over, and how well the attributions add up."""
        share = self.share_of_last.mean(0)
        taken = taken_over(share)
        shares = ", ".join(f"{value:.2f}" for value in share)
        where = "At no layer up to the last" if taken is None else f"From layer {taken} on"
        verb = "does the last token hold" if taken is None else "the last token holds"
        nodes, error = self.arrays["nodes"], self.relative_error
        n_capped = int(self.arrays["capped"].sum())
        return (
            f"{where} {verb} most of the attribution, the first token left out (its share by layer:"
            f" {shares}; {len(nodes)} prompts). The attributions add up to the change in"
            f" probability within {np.median(error):.1%} in the median and {error.max():.1%} at"
            f" worst ({np.median(nodes):.0f} nodes in the median, {nodes.max()} at most; {n_capped}"
            f" of {nodes.size} cases wanted more than {self.analysis.max_nodes})."
        )
