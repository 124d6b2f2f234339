"""How well do cheap scores agree with exact activation patching?

RelP (arXiv 2508.21258) reports one Pearson correlation per kind of node; there, one entry can
decide it, so other measures stand beside it, on scores averaged over prompts and prompt by prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from interp.analysis import Analysis, Cost, Finding, Result
from interp.backward import RULES
from interp.errors import AnalysisError
from interp.figures.plots import scatters_with_diagonal
from interp.metrics import Metric
from interp.models import Model
from interp.replay import Recording
from interp.result import old_finding
from interp.shapes import Tensors
from interp.sites import Site, SiteKind
from interp.stats.agreement import MEASURES, agreement
from interp.sweeps.attribution import Attribution, Method, check_methods, check_model, method_passes
from interp.sweeps.exact_patching import blocks_run, patch_effects, run_values
from interp.sweeps.node_scores import NodeScores, join_scores
from interp.sweeps.twins import Direction, check_gradient, check_pairs, pairs
from interp.tasks.batch import TokenBatch

LEVELS = ("averaged over prompts", "prompt by prompt")
_RESAMPLES = 100


@dataclass(frozen=True)
class PatchingAgreement(Analysis):
    """Compare `methods` with exact patching at every node of some kinds; fields as in
    relevance_patching.

    `top_k`: how many of the largest nodes are compared.
    """

    methods: tuple[Method, ...] = ("relevance", "attribution")
    nodes: tuple[SiteKind, ...] = ("resid_pre", "attn_out", "z", "mlp_out")
    rules: str = "relp"
    metric: Metric = "logit_diff"
    direction: Direction = "denoise"
    steps: int = 10
    top_k: int = 10
    seed: int = 0
    question: ClassVar[str] = "How well do cheap scores of components agree with exact patching?"
    how: ClassVar[str] = (
        "Cheap scores of all nodes (relevance patching, attribution patching, integrated gradients)"
        " are correlated with exact patching of every node, over means and prompt by prompt."
    )
    caveat: ClassVar[str] = (
        "One large entry can decide a correlation; the table has it without that entry, and by rank."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_methods(self.methods, self.nodes, rules=self.rules, steps=self.steps)
        check_gradient(self.metric, self.direction)
        if self.top_k < 1:
            raise AnalysisError(f"top_k={self.top_k}; at least 1 is needed")

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise TaskError for pairs that cannot be compared, SiteError for rules that the model
        cannot honour.
        """
        check_pairs(model, shard, metric=self.metric)
        check_model(model, self.methods, self.nodes, rules=self.rules)

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return per prompt scores "METHOD NODE" and exact effects "exact NODE" [batch layer pos
        (unit)].
        """
        rows, groups = [], []
        layers = range(recording.n_layers)
        sites = [Site(kind, layer) for kind in self.nodes for layer in layers]
        for pair in pairs(recording, shard, metric=self.metric, direction=self.direction):
            runs = Attribution(recording, pair, sites)
            exact_pair, base, source, found = run_values(recording, pair)
            for method in self.methods:
                scores = runs.scores(method, rules=RULES[self.rules], steps=self.steps)
                for kind in self.nodes:
                    found[f"{method} {kind}"] = torch.stack(
                        [scores[Site(kind, layer)].cpu() for layer in layers], dim=1
                    )
            for kind in self.nodes:
                effects = [
                    patch_effects(exact_pair, base, source, Site(kind, layer)).cpu()
                    for layer in layers
                ]
                found[f"exact {kind}"] = torch.stack(effects, dim=1)
            rows.append(pair.clean.rows.cpu())
            groups.append(found)
        return join_scores(rows, groups, last=shard.last.cpu())

    def combine(self, parts: Sequence[Tensors]) -> "PatchingAgreementResult":
        """Return scores and exact effects, aligned at the prompts' ends."""
        names = [f"{method} {kind}" for method in (*self.methods, "exact") for kind in self.nodes]
        return PatchingAgreementResult(self, NodeScores.of(parts, names))

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return the passes of all methods, and at most the blocks behind every node."""
        width = {"z": model.n_heads, "mlp_post": 4 * model.d_model}
        n_pos, n_layers = shard.tokens.shape[1], model.n_layers
        blocks = sum(
            blocks_run(kind, n_layers=n_layers, n_nodes=n_pos * width.get(kind, 1))
            for kind in self.nodes
        )
        n_sites = len(self.nodes) * n_layers
        n_passes = sum(
            method_passes(method, n_sites=n_sites, steps=self.steps) for method in self.methods
        )
        one = n_layers * shard.tokens.numel() * sum(width.get(kind, 1) for kind in self.nodes)
        held = shard.tokens.numel() * (
            n_layers * model.d_model * (30 + 4 * len(self.nodes)) + 3 * model.d_vocab
        )
        return Cost(
            3 + 2 * n_passes + blocks / n_layers, (1 + len(self.methods)) * one, held, is_bound=True
        )


@dataclass(frozen=True, repr=False)
class PatchingAgreementResult(Result):
    """Scores and exact effects of all nodes."""

    analysis: PatchingAgreement
    scores: NodeScores

    def _compare(self, method: str, kind: str, prompts: np.ndarray) -> dict[str, float]:
        """Return the agreement of the means over some prompts."""
        estimate, exact = (
            self.scores.mean(f"{name} {kind}", prompts).ravel() for name in (method, "exact")
        )
        gap = float((self.scores.source - self.scores.base)[prompts].mean())
        return agreement(estimate, exact, gap=gap, top_k=self.analysis.top_k)

    def to_frame(self) -> pd.DataFrame:
        """Return columns node, method, level, measure, value, low, high and n_prompts.

        Level "averaged over prompts" compares mean scores (interval: over resampled prompts);
        "prompt by prompt" is the mean over prompts of each one's agreement. Positions count from
        the prompts' ends.
        """
        n = len(self.scores.base)
        rng = np.random.default_rng(self.analysis.seed)
        drawn = [rng.integers(0, n, n) for _ in range(_RESAMPLES)]
        rows = []
        for kind in self.analysis.nodes:
            for method in self.analysis.methods:
                whole = self._compare(method, kind, np.arange(n))
                again = pd.DataFrame([self._compare(method, kind, prompts) for prompts in drawn])
                alone = pd.DataFrame(
                    [self._compare(method, kind, np.array([prompt])) for prompt in range(n)]
                )
                means = pd.DataFrame([alone.iloc[prompts].mean() for prompts in drawn])
                found = ((LEVELS[0], pd.Series(whole), again), (LEVELS[1], alone.mean(), means))
                for level, values, resampled in found:
                    for measure in MEASURES:
                        low, high = resampled[measure].quantile([0.025, 0.975])
                        rows.append((kind, method, level, measure, values[measure], low, high, n))
        columns = ["node", "method", "level", "measure", "value", "low", "high", "n_prompts"]
        return pd.DataFrame(rows, columns=columns)

    def plot(self) -> go.Figure:
        """Draw estimates against exact effects, each averaged over prompts, one panel per kind of
        node.
        """
        frames = []
        for kind in self.analysis.nodes:
            exact = self.scores.mean(f"exact {kind}").ravel()
            for method in self.analysis.methods:
                estimate = self.scores.mean(f"{method} {kind}").ravel()
                frames.append(
                    pd.DataFrame(
                        {"exact": exact, "estimate": estimate, "method": method, "node": kind}
                    )
                )
        title = (
            f"Estimates against exact patching ({self.analysis.metric}, mean over prompts; one"
            " point a node)"
        )
        return scatters_with_diagonal(
            pd.concat(frames), x="exact", y="estimate", groups="method", panels="node", title=title
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return the correlation of every method with exact patching, at the first kind of node."""
        frame, kind, found = self.to_frame(), self.analysis.nodes[0], list[Finding]()
        rows = frame[
            (frame["node"] == kind)
            & (frame["level"] == LEVELS[0])
            & (frame["measure"] == "pearson")
        ]
        for row in rows.to_dict("records"):
            claim = f"{row['method']} agrees with exact patching by {row['value']:.2f} (Pearson)."
            numbers = (
                float(row["value"]),
                f"Pearson correlation of {row['method']} with exact patching ({kind})",
            )
            low, high = float(row["low"]), float(row["high"])
            found.append(
                old_finding(
                    claim if found else self.summary(), *numbers, low, high, len(self.scores.base)
                )
            )
        return tuple(found)

    def summary(self) -> str:
        """Say for every kind of node how well each method agrees, and by how much its scale is off."""
        frame = (
            self.to_frame().set_index(["node", "method", "level", "measure"])["value"].sort_index()
        )
        told = []
        for kind in self.analysis.nodes:
            each = []
            for method in self.analysis.methods:
                whole, alone = (frame[kind, method, level] for level in LEVELS)
                each.append(
                    f"{method} {whole['pearson']:.2f} (prompt by prompt {alone['pearson']:.2f};"
                    f" {whole['slope']:.1f}×)"
                )
            told.append(f"{kind}: {', '.join(each)}")
        return (
            f"Pearson correlation with exact patching over {len(self.scores.base)} prompts, and by"
            f" how much exact effects exceed the scores: {'; '.join(told)}. One large entry can"
            " decide a correlation: the table also has it without that entry."
        )
