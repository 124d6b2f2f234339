"""Which components carry the difference between a prompt and its corrupted twin?

RelP (arXiv 2508.21258): score(node) = sum over features of coefficient(base run) * (source - base),
where the coefficient is a derivative taken under relevance-propagation rules; with the plain
gradient this is attribution patching. All nodes cost two forward passes and one backward pass
together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import plotly.graph_objects as go
import torch

from interp.analysis import Analysis, Cost, Finding, Result
from interp.backward import RULES
from interp.figures.plots import grids_over_positions
from interp.metrics import Metric
from interp.models import Model
from interp.replay import Recording
from interp.result import old_finding
from interp.shapes import Tensors
from interp.sites import Site, SiteKind
from interp.sweeps.attribution import Attribution, Method, check_methods, check_model, method_passes
from interp.sweeps.node_scores import NodeScores, join_scores
from interp.sweeps.twins import Direction, check_gradient, check_pairs, pairs
from interp.tasks.batch import TokenBatch


@dataclass(frozen=True)
class RelevancePatching(Analysis):
    """Score every node by one or more methods.

    `nodes`: sites, each at every layer and position ("z" per head, "mlp_post" per neuron). `rules`
    names the rules of method "relevance". To "denoise", clean activations are put into the
    corrupted run; to "noise", the other way round. `steps` is the number of points on the path of
    integrated gradients. `metric` logit_diff asks for a wrong answer; log_prob sums over the
    answer's tokens; kl is minus the divergence from the clean run's prediction (its gradient is 0
    in the clean run, so it cannot be used to noise).
    """

    methods: tuple[Method, ...] = ("relevance", "attribution")
    nodes: tuple[SiteKind, ...] = ("resid_pre", "attn_out", "z", "mlp_out")
    rules: str = "relp"
    metric: Metric = "logit_diff"
    direction: Direction = "denoise"
    steps: int = 10
    seed: int = 0
    question: ClassVar[str] = (
        "Which components carry the difference between a prompt and its corrupted twin?"
    )
    how: ClassVar[str] = (
        "The score of a node is the difference of its activations between the two prompts times a"
        " derivative of the metric, taken under relevance-propagation rules; two forward and one"
        " backward pass serve all nodes."
    )
    caveat: ClassVar[str] = (
        "Scores are first-order estimates; patching_agreement says how far exact patching agrees."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_methods(self.methods, self.nodes, rules=self.rules, steps=self.steps)
        check_gradient(self.metric, self.direction)

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise TaskError for pairs that cannot be compared, SiteError for rules that the model
        cannot honour.
        """
        check_pairs(model, shard, metric=self.metric)
        check_model(model, self.methods, self.nodes, rules=self.rules)

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return per prompt scores "METHOD NODE" [batch layer pos (unit)] and the metric of both
        runs [batch].
        """
        rows, groups = [], []
        sites = [Site(kind, layer) for kind in self.nodes for layer in range(recording.n_layers)]
        for pair in pairs(recording, shard, metric=self.metric, direction=self.direction):
            runs = Attribution(recording, pair, sites)
            found: Tensors = {}
            for method in self.methods:
                scores = runs.scores(method, rules=RULES[self.rules], steps=self.steps)
                for kind in self.nodes:
                    layers = [
                        scores[Site(kind, layer)].cpu() for layer in range(recording.n_layers)
                    ]
                    found[f"{method} {kind}"] = torch.stack(layers, dim=1)
            found |= {"base": runs.base.cpu(), "source": runs.source_value.cpu()}
            rows.append(pair.clean.rows.cpu())
            groups.append(found)
        return join_scores(rows, groups, last=shard.last.cpu())

    def combine(self, parts: Sequence[Tensors]) -> "RelevancePatchingResult":
        """Return the scores, aligned at the prompts' ends."""
        keys = [f"{method} {kind}" for method in self.methods for kind in self.nodes]
        return RelevancePatchingResult(self, NodeScores.of(parts, keys))

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return one forward pass, and two for every backward pass."""
        n_sites = len(self.nodes) * model.n_layers
        n_passes = sum(
            method_passes(method, n_sites=n_sites, steps=self.steps) for method in self.methods
        )
        n_tokens = shard.tokens.numel()
        width = {"z": model.n_heads, "mlp_post": 4 * model.d_model}
        numbers = (
            len(self.methods)
            * model.n_layers
            * n_tokens
            * sum(width.get(kind, 1) for kind in self.nodes)
        )
        held = n_tokens * (
            model.n_layers * model.d_model * (30 + 4 * len(self.nodes)) + 3 * model.d_vocab
        )
        return Cost(1.0 + 2 * n_passes, numbers, held)


@dataclass(frozen=True, repr=False)
class RelevancePatchingResult(Result):
    """Scores of all nodes by all methods."""

    analysis: RelevancePatching
    scores: NodeScores

    def to_frame(self) -> pd.DataFrame:
        """Return one row per method, node, layer, unit and position (from the last token, 0):
        statistics over prompts.

        `mean` is in the metric's unit; `share` relates it to the mean difference between source and
        base run.
        """
        frames = []
        for method in self.analysis.methods:
            for kind in self.analysis.nodes:
                frame = self.scores.to_frame(f"{method} {kind}", seed=self.analysis.seed)
                frames.append(frame.assign(method=method, node=kind))
        columns = [
            "method",
            "node",
            "layer",
            "unit",
            "position",
            "mean",
            "low",
            "high",
            "share",
            "n_prompts",
        ]
        return pd.concat(frames, ignore_index=True)[columns]

    def plot(self) -> go.Figure:
        """Draw the first method's scores by layer and position; heads and neurons are added up."""
        method = self.analysis.methods[0]
        frame = pd.concat(
            [
                self.scores.summed(f"{method} {kind}").assign(panel=kind)
                for kind in self.analysis.nodes
            ],
            ignore_index=True,
        )
        verb = (
            "clean into corrupted"
            if self.analysis.direction == "denoise"
            else "corrupted into clean"
        )
        title = f"What each node carries by {method} ({verb}; {self.analysis.metric})"
        return grids_over_positions(
            frame, panels="panel", y="layer", title=title, colour="score", is_signed=True
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return the share of the difference that the largest node gets by the first method."""
        names = [f"{self.analysis.methods[0]} {kind}" for kind in self.analysis.nodes]
        largest = self.scores.largest_share(names, seed=self.analysis.seed)
        measure = "share of the difference that the largest node carries"
        return (
            old_finding(
                self.summary(), largest.share, measure, largest.low, largest.high, largest.n
            ),
        )

    def summary(self) -> str:
        """Say how large the difference is, and which nodes get most of it by the first method."""
        scores, method = self.scores, self.analysis.methods[0]
        told = [
            f"{kind} " + ", ".join(scores.largest(f"{method} {kind}", n=3))
            for kind in self.analysis.nodes
        ]
        return (
            f"{scores.ends(self.analysis.metric)}. By {method}, these nodes carry most of the"
            f" difference, with their share of it: {'; '.join(told)}. Such scores are first-order"
            " estimates; exact patching stands beside them in patching_agreement."
        )
