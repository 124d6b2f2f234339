"""What does each component carry, exactly? One run per node: its activation is replaced by that of
the other run.

Exact activation patching (causal tracing, Meng et al., arXiv 2202.05262), through replayed blocks:
only the blocks behind a node are run, and nodes that are equal in both runs are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import plotly.graph_objects as go
import torch

from interp.analysis import Analysis, Cost, Finding, Result
from interp.errors import AnalysisError
from interp.figures.plots import grids_over_positions
from interp.metrics import Metric
from interp.models import Model
from interp.replay import Recording
from interp.result import old_finding
from interp.shapes import Tensors
from interp.sites import Site, SiteKind
from interp.sweeps.exact_patching import NODE_KINDS, blocks_run, patch_effects, run_values
from interp.sweeps.node_scores import NodeScores, join_scores
from interp.sweeps.twins import Direction, check_pairs, pairs
from interp.tasks.batch import TokenBatch


@dataclass(frozen=True)
class ActivationPatching(Analysis):
    """Patch every node alone: `nodes` are sites, each at every layer and position ("z" per head,
    "mlp_post" per neuron).

    To "denoise", clean activations are put into the corrupted run; to "noise", the other way round.
    `metric` as in relevance_patching.
    """

    nodes: tuple[SiteKind, ...] = ("resid_pre", "attn_out", "mlp_out")
    metric: Metric = "logit_diff"
    direction: Direction = "denoise"
    seed: int = 0
    question: ClassVar[str] = "What does each component carry, exactly?"
    how: ClassVar[str] = (
        "One node at a time takes its activation from the other prompt's run, and only the layers"
        " behind it are run again. The score is how far the metric moves between its values on the"
        " two prompts."
    )
    caveat: ClassVar[str] = (
        "A node patched alone says nothing about nodes that do the same work: back-ups hide one"
        " another."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.nodes:
            raise AnalysisError(f"no node given; there is {', '.join(NODE_KINDS)}")

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise TaskError for pairs that cannot be compared, SiteError for nodes that the model
        does not have.
        """
        check_pairs(model, shard, metric=self.metric)
        for kind in self.nodes:
            model.refuse(Site(kind, 0))

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return per prompt effects by node [batch layer pos (unit)] and the metric of both runs
        [batch].
        """
        rows, groups = [], []
        for pair in pairs(recording, shard, metric=self.metric, direction=self.direction):
            pair, base, source, found = run_values(recording, pair)
            for kind in self.nodes:
                layers = [
                    patch_effects(pair, base, source, Site(kind, layer)).cpu()
                    for layer in range(recording.n_layers)
                ]
                found[kind] = torch.stack(layers, dim=1)
            rows.append(pair.clean.rows.cpu())
            groups.append(found)
        return join_scores(rows, groups, last=shard.last.cpu())

    def combine(self, parts: Sequence[Tensors]) -> "ActivationPatchingResult":
        """Return the effects, aligned at the prompts' ends."""
        return ActivationPatchingResult(self, NodeScores.of(parts, self.nodes))

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return at most the blocks behind every node: nodes that are equal in both runs are not
        patched.
        """
        width = {"z": model.n_heads, "mlp_post": 4 * model.d_model}
        n_pos, n_layers = shard.tokens.shape[1], model.n_layers
        blocks = sum(
            blocks_run(kind, n_layers=n_layers, n_nodes=n_pos * width.get(kind, 1))
            for kind in self.nodes
        )
        numbers = n_layers * shard.tokens.numel() * sum(width.get(kind, 1) for kind in self.nodes)
        return Cost(
            2 + blocks / n_layers,
            numbers,
            4096 * 12 * model.d_model + 4096 * model.d_vocab,
            is_bound=True,
        )


@dataclass(frozen=True, repr=False)
class ActivationPatchingResult(Result):
    """Effects of all nodes."""

    analysis: ActivationPatching
    scores: NodeScores

    def to_frame(self) -> pd.DataFrame:
        """Return one row per node, layer, unit and position (from the last token, 0): statistics
        over prompts.

        `mean` is in the metric's unit; `share` relates it to the mean difference between source and
        base run.
        """
        frames = [
            self.scores.to_frame(kind, seed=self.analysis.seed).assign(node=kind)
            for kind in self.analysis.nodes
        ]
        columns = ["node", "layer", "unit", "position", "mean", "low", "high", "share", "n_prompts"]
        return pd.concat(frames, ignore_index=True)[columns]

    def plot(self) -> go.Figure:
        """Draw the effects by layer and position; those of heads and neurons are added up."""
        frame = pd.concat(
            [self.scores.summed(kind).assign(panel=kind) for kind in self.analysis.nodes],
            ignore_index=True,
        )
        verb = (
            "clean into corrupted"
            if self.analysis.direction == "denoise"
            else "corrupted into clean"
        )
        title = f"What each node carries, patched alone ({verb}; {self.analysis.metric})"
        return grids_over_positions(
            frame, panels="panel", y="layer", title=title, colour="effect", is_signed=True
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return the share of the difference that the largest node carries alone."""
        largest = self.scores.largest_share(self.analysis.nodes, seed=self.analysis.seed)
        measure = "share of the difference that the largest node carries"
        return (
            old_finding(
                self.summary(), largest.share, measure, largest.low, largest.high, largest.n
            ),
        )

    def summary(self) -> str:
        """Say how large the difference is, and which nodes restore most of it alone."""
        scores = self.scores
        told = [f"{kind} " + ", ".join(scores.largest(kind, n=3)) for kind in self.analysis.nodes]
        return (
            f"{scores.ends(self.analysis.metric)}. Alone, these nodes move it furthest from one to"
            f" the other, with the share of the difference: {'; '.join(told)}."
        )
