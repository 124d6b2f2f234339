"""What does each component carry, exactly? Each node is patched alone, from the other run.

Exact activation patching (causal tracing, Meng et al., arXiv 2202.05262), through replayed blocks:
only the blocks after a node are run, and only for nodes that differ between the two runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import pandas as pd
import plotly.graph_objects as go

from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError
from interp.metrics import Metric
from interp.models import Model
from interp.replay import Recording
from interp.result import Finding, Result
from interp.shapes import Tensors
from interp.sites import Site, SiteKind
from interp.sweeps.behaviour import Behaviour
from interp.sweeps.carriers import carriers
from interp.sweeps.exact_patching import NODE_KINDS, all_effects, clean_runs, forwards_of
from interp.sweeps.node_scores import NodeScores, join_scores, n_units
from interp.sweeps.twins import DIRECTIONS, Direction, check_twins, twins_of
from interp.tasks.batch import TokenBatch


@dataclass(frozen=True)
class ActivationPatching(Analysis):
    """Patch every node on its own.

    `nodes` are sites, each at every layer and position ("z" per head, "mlp_post" per neuron).
    To "denoise", clean activations are put into the corrupted run; to "noise", the other way round.
    `metric` is as in relevance_patching.
    """

    nodes: tuple[SiteKind, ...] = ("resid_pre", "attn_out", "mlp_out")
    metric: Metric = "logit_diff"
    direction: Direction = "denoise"
    seed: int = 0
    rank: ClassVar[int] = 13
    page: ClassVar[str] = "circuit"
    question: ClassVar[str] = "What does each component carry, exactly?"
    how: ClassVar[str] = (
        "One node at a time takes its activation from the other prompt's run, and only the layers"
        " after it are run again."
        " The score is how far the metric moves between its values on the two prompts."
    )
    caveat: ClassVar[str] = (
        "A node patched alone says nothing about nodes that do the same work:"
        " back-ups hide one another."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.nodes:
            raise AnalysisError(f"no node given; there is {', '.join(NODE_KINDS)}")

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise TaskError for twins that cannot be compared, SiteError for nodes out of reach."""
        check_twins(model, shard, metric=self.metric)
        for kind in self.nodes:
            model.refuse(Site(kind, 0))

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return effects by node [batch layer pos (unit)] and the metric of both runs [batch]."""
        rows, groups = [], []
        for twins in twins_of(recording, shard, metric=self.metric, direction=self.direction):
            twins, base, source, values = clean_runs(recording, twins)
            rows.append(twins.clean.rows.cpu())
            groups.append(values | all_effects(twins, base, source, self.nodes))
        return join_scores(rows, groups, last=shard.last.cpu())

    def combine(self, parts: Sequence[Tensors]) -> "ActivationPatchingResult":
        """Return the effects, aligned at the prompts' ends."""
        return ActivationPatchingResult(self, NodeScores.of(parts, self.nodes))

    def coarser(self) -> "ActivationPatching | None":
        """Return the same for the stream alone, without the writes of single layers."""
        has_more = len(self.nodes) > 1 and "resid_pre" in self.nodes
        return replace(self, nodes=("resid_pre",)) if has_more else None

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return the blocks after every node, a bound: nodes equal in both runs are not run."""
        forwards = 2 + forwards_of(model, self.nodes, shard)
        n_nodes = model.n_layers * shard.tokens.numel() * n_units(model, self.nodes)
        at_once = max(model.tokens_at_once(), shard.tokens.numel())
        held = at_once * (12 * model.d_model + 2 * model.d_vocab // shard.tokens.shape[1])
        return Cost(forwards, n_nodes, held, is_bound=True, logits=n_nodes)


@dataclass(frozen=True, repr=False)
class ActivationPatchingResult(Result):
    """Effects of all nodes."""

    analysis: ActivationPatching
    scores: NodeScores

    @cached_property
    def behaviour(self) -> Behaviour:
        """Return the metric of clean and corrupted prompts: what there is to carry."""
        analysis, groups = self.analysis, self.prompt_groups
        return self.scores.behaviour(
            analysis.metric, analysis.direction, groups=groups, seed=analysis.seed
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row per node, layer, unit and position: statistics over prompts.

        Positions are from the prompt's end, "-1" is its last token. `mean` is in the metric's unit;
        its interval, low and high, is over groups of prompts. `share` (share_low, share_high) is of
        the gap, and NaN where there is no behaviour to explain. `exceeds` says whether the mean is
        other than 0 in a band over all nodes (max-statistic, 95 %).
        """
        keys: dict[str, dict[str, str]] = {kind: {"node": kind} for kind in self.analysis.nodes}
        return self.scores.to_frame(keys, self.behaviour)

    def plot(self) -> go.Figure:
        """Draw the effects by layer and position; those of heads and neurons are added up."""
        verb = DIRECTIONS[self.analysis.direction]
        title = f"What each node carries, patched alone ({verb}; {self.analysis.metric})"
        return self.scores.plot(self._names, title=title, colour="effect")

    @property
    def _names(self) -> dict[SiteKind, str]:
        return {kind: kind for kind in self.analysis.nodes}

    def findings(self) -> tuple[Finding, ...]:
        """Return what the largest components carry, or that there is no behaviour to explain."""
        by = "Patched alone"
        return carriers(self.scores, self._names, by=by, behaviour=self.behaviour)
