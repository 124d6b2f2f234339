"""How well do cheap scores agree with exact activation patching?

RelP (arXiv 2508.21258) reports one Pearson correlation per kind of node. A single entry can decide
a correlation, so there are other measures too, on scores averaged over prompts and prompt by
prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analysis import Analysis, Cost
from interp.backward import rules_named
from interp.figures.plots import scatters_with_diagonal
from interp.metrics import Metric
from interp.models import Model
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.result import Compared, Finding, Result
from interp.shapes import Tensors
from interp.sites import Site, SiteKind
from interp.stats.agreement import MEASURES, agreement
from interp.stats.bootstrap import QUANTILES
from interp.stats.estimate import Estimate
from interp.sweeps.attribution import (
    Attribution,
    Method,
    check_methods,
    check_nodes,
    n_passes,
    numbers_held,
)
from interp.sweeps.exact_patching import all_effects, clean_runs, forwards_of
from interp.sweeps.node_scores import NodeScores, join_scores, n_units
from interp.sweeps.twins import Direction, check_gradient, check_twins, twins_of
from interp.tasks.batch import TokenBatch

LEVELS = ("averaged over prompts", "prompt by prompt")
_RESAMPLES = 100


@dataclass(frozen=True)
class PatchingAgreement(Analysis):
    """Compare `methods` with exact patching at every node of some kinds.

    `top_k` is how many of the largest nodes are compared; other fields are those of
    relevance_patching.
    """

    methods: tuple[Method, ...] = ("relevance", "attribution")
    nodes: tuple[SiteKind, ...] = ("resid_pre", "attn_out", "z", "mlp_out")
    rules: str = "relp"
    metric: Metric = "logit_diff"
    direction: Direction = "denoise"
    steps: Annotated[int, AtLeast(1)] = 10
    top_k: Annotated[int, AtLeast(1)] = 10
    seed: int = 0
    question: ClassVar[str] = "How well do cheap scores of components agree with exact patching?"
    how: ClassVar[str] = (
        "Cheap scores of all nodes (relevance patching, attribution patching, integrated gradients)"
        " are correlated with exact patching of every node, over means and prompt by prompt."
    )
    caveat: ClassVar[str] = (
        "One large entry can decide a correlation; the table has it without that entry and by rank."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_methods(self.methods, self.nodes, rules=self.rules)
        check_gradient(self.metric, self.direction)

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise TaskError for twins that cannot be compared, SiteError for rules out of reach."""
        check_twins(model, shard, metric=self.metric)
        check_nodes(model, self.methods, self.nodes, rules=self.rules)

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return scores "METHOD NODE" and exact effects "exact NODE" [batch layer pos (unit)]."""
        rows, groups = [], []
        sites = [Site(kind, layer) for kind in self.nodes for layer in range(recording.n_layers)]
        for twins in twins_of(recording, shard, metric=self.metric, direction=self.direction):
            runs = Attribution(recording, twins, sites)
            twins, base, source, values = clean_runs(recording, twins)
            scores = runs.all_scores(
                self.methods, self.nodes, rules=rules_named(self.rules), steps=self.steps
            )
            exact = all_effects(twins, base, source, self.nodes)
            rows.append(twins.clean.rows.cpu())
            groups.append(values | scores | {f"exact {kind}": exact[kind] for kind in exact})
        return join_scores(rows, groups, last=shard.last.cpu())

    def combine(self, parts: Sequence[Tensors]) -> "PatchingAgreementResult":
        """Return scores and exact effects, aligned at the prompts' ends."""
        names = [f"{method} {kind}" for method in (*self.methods, "exact") for kind in self.nodes]
        return PatchingAgreementResult(self, NodeScores.of(parts, names))

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return the passes of all methods, and at most the blocks behind every node."""
        passes = n_passes(self.methods, n_sites=len(self.nodes) * model.n_layers, steps=self.steps)
        exact = forwards_of(model, self.nodes, n_pos=shard.tokens.shape[1])
        n_nodes = model.n_layers * shard.tokens.numel() * n_units(model, self.nodes)
        held = numbers_held(model, shard, n_kinds=len(self.nodes))
        return Cost(3 + 2 * passes + exact, (1 + len(self.methods)) * n_nodes, held, is_bound=True)


@dataclass(frozen=True, repr=False)
class PatchingAgreementResult(Result):
    """Scores and exact effects of all nodes."""

    analysis: PatchingAgreement
    scores: NodeScores

    def _compare(self, method: str, kind: str, prompts: np.ndarray) -> dict[str, float]:
        """Return the agreement of the means over some prompts."""
        cheap, exact = (
            self.scores.mean(f"{name} {kind}", prompts).ravel() for name in (method, "exact")
        )
        gap = float((self.scores.source - self.scores.base)[prompts].mean())
        return agreement(cheap, exact, gap=gap, top_k=self.analysis.top_k)

    def to_frame(self) -> pd.DataFrame:
        """Return columns node, method, level, measure, value, low, high and n_prompts.

        Level "averaged over prompts" compares mean scores (interval: over resampled prompts);
        "prompt by prompt" is the mean over prompts of each one's agreement. Positions count from
        the prompts' ends.
        """
        rows = []
        for kind in self.analysis.nodes:
            for method in self.analysis.methods:
                for level, (values, resampled) in self._levels(method, kind).items():
                    for measure in MEASURES:
                        low, high = resampled[measure].quantile(QUANTILES)
                        rows.append((kind, method, level, measure, values[measure], low, high))
        columns = ["node", "method", "level", "measure", "value", "low", "high"]
        return pd.DataFrame(rows, columns=columns).assign(n_prompts=len(self.scores.base))

    def _levels(self, method: str, kind: str) -> dict[str, tuple[pd.Series, pd.DataFrame]]:
        """Return the agreement by measure at every level, and that of resampled prompts."""
        n = len(self.scores.base)
        rng = np.random.default_rng(self.analysis.seed)
        drawn = [rng.integers(0, n, n) for _ in range(_RESAMPLES)]
        whole = pd.Series(self._compare(method, kind, np.arange(n)))
        again = pd.DataFrame([self._compare(method, kind, prompts) for prompts in drawn])
        alone = pd.DataFrame([self._compare(method, kind, np.array([i])) for i in range(n)])
        means = pd.DataFrame([alone.iloc[prompts].mean() for prompts in drawn])
        return {LEVELS[0]: (whole, again), LEVELS[1]: (alone.mean(), means)}

    def plot(self) -> go.Figure:
        """Draw estimates against exact effects, means over prompts, one panel per kind of node."""
        frames = []
        for kind in self.analysis.nodes:
            exact = self.scores.mean(f"exact {kind}").ravel()
            for method in self.analysis.methods:
                cheap = self.scores.mean(f"{method} {kind}").ravel()
                frames.append(
                    pd.DataFrame(
                        {"exact": exact, "estimate": cheap, "method": method, "node": kind}
                    )
                )
        title = (
            f"Estimates against exact patching ({self.analysis.metric}, mean over prompts;"
            " one point a node)"
        )
        return scatters_with_diagonal(
            pd.concat(frames), x="exact", y="estimate", groups="method", panels="node", title=title
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return the correlation of up to three methods with exact patching, at the first node."""
        frame, kind, findings = self.to_frame(), self.analysis.nodes[0], []
        is_asked = (frame["node"] == kind) & (frame["level"] == LEVELS[0])
        rows = frame[is_asked & (frame["measure"] == "pearson")].set_index("method")
        numbers = rows[["value", "low", "high", "n_prompts"]].itertuples()
        by_method = {method: Estimate(*values) for method, *values in numbers}
        for method, correlation in by_method.items():
            others = [Compared(name, by_method[name]) for name in by_method if name != method]
            findings.append(
                Finding(
                    f"By {method},"
                    f" scores of {kind} correlate with exact patching at {correlation:.2f}.",
                    correlation,
                    f"Pearson correlation of {method} with exact patching ({kind})",
                    rival=max(others, key=lambda other: other.estimate.value, default=None),
                )
            )
        return tuple(findings[:3])
