"""Which components carry the difference between a prompt and its corrupted twin?

RelP (arXiv 2508.21258): score(node) = sum over features of coefficient(base run) * (source - base),
where the coefficient is a derivative taken under relevance-propagation rules; with the plain
gradient this is attribution patching. All nodes cost two forward passes and one backward pass
together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import pandas as pd
import plotly.graph_objects as go

from interp.analysis import Analysis, Cost
from interp.backward import rules_named
from interp.metrics import Metric
from interp.models import Model
from interp.models.quantised import Asked
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.result import Finding, Result
from interp.shapes import Tensors
from interp.sites import Site, SiteKind
from interp.sweeps.attribution import (
    Attribution,
    Method,
    check_methods,
    check_nodes,
    n_passes,
    numbers_held,
)
from interp.sweeps.behaviour import Behaviour
from interp.sweeps.carriers import carriers
from interp.sweeps.node_scores import NodeScores, join_scores, n_units
from interp.sweeps.twins import DIRECTIONS, Direction, check_gradient, check_twins, twins_of
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
    steps: Annotated[int, AtLeast(1)] = 10
    seed: int = 0
    rank: ClassVar[int] = 8
    asks_of_weights: ClassVar[Asked | None] = "gradients"
    page: ClassVar[str] = "circuit"
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
        check_methods(self.methods, self.nodes, rules=self.rules)
        check_gradient(self.metric, self.direction)

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise TaskError for twins that cannot be compared, SiteError for rules out of reach."""
        check_twins(model, shard, metric=self.metric)
        check_nodes(model, self.methods, self.nodes, rules=self.rules)

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return scores "METHOD NODE" [batch layer pos (unit)] and the metric of both runs."""
        rows, groups = [], []
        sites = [Site(kind, layer) for kind in self.nodes for layer in range(recording.n_layers)]
        for twins in twins_of(recording, shard, metric=self.metric, direction=self.direction):
            runs = Attribution(recording, twins, sites)
            scores = runs.all_scores(
                self.methods, self.nodes, rules=rules_named(self.rules), steps=self.steps
            )
            rows.append(twins.clean.rows.cpu())
            groups.append(
                scores | {"base": runs.base_value.cpu(), "source": runs.source_value.cpu()}
            )
        return join_scores(rows, groups, last=shard.last.cpu())

    def combine(self, parts: Sequence[Tensors]) -> "RelevancePatchingResult":
        """Return the scores, aligned at the prompts' ends."""
        keys = [f"{method} {kind}" for method in self.methods for kind in self.nodes]
        return RelevancePatchingResult(self, NodeScores.of(parts, keys))

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return one forward pass, and two for every backward pass."""
        passes = n_passes(self.methods, n_sites=len(self.nodes) * model.n_layers, steps=self.steps)
        n_nodes = model.n_layers * shard.tokens.numel() * n_units(model, self.nodes)
        held = numbers_held(model, shard, n_kinds=len(self.nodes))
        return Cost(
            1.0 + 2 * passes,
            len(self.methods) * n_nodes,
            held,
            backwards=float(passes),
            logits=len(shard.prompts) * (2 + passes),
        )


@dataclass(frozen=True, repr=False)
class RelevancePatchingResult(Result):
    """Scores of all nodes by all methods."""

    analysis: RelevancePatching
    scores: NodeScores

    @cached_property
    def behaviour(self) -> Behaviour:
        """Return the metric of clean and corrupted prompts: what there is to carry."""
        analysis, groups = self.analysis, self.prompt_groups
        return self.scores.behaviour(
            analysis.metric, analysis.direction, groups=groups, seed=analysis.seed
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row per method, node, layer, unit and position: statistics over prompts.

        Positions are from the prompt's end, "-1" is its last token. `mean` is in the metric's unit;
        its interval, low and high, is over groups of prompts. `share` (share_low, share_high) is of
        the gap, and NaN where there is no behaviour to explain. `exceeds` says whether the mean is
        other than 0 in a band over all nodes of a method (max-statistic, 95 %).
        """
        keys = {
            f"{method} {kind}": {"method": method, "node": kind}
            for method in self.analysis.methods
            for kind in self.analysis.nodes
        }
        return self.scores.to_frame(keys, self.behaviour)

    def plot(self) -> go.Figure:
        """Draw the first method's scores by layer and position; heads and neurons are added up."""
        method, verb = self.analysis.methods[0], DIRECTIONS[self.analysis.direction]
        title = f"What each node carries by {method} ({verb}; {self.analysis.metric})"
        return self.scores.plot(self._names, title=title, colour="score")

    @property
    def _names(self) -> dict[SiteKind, str]:
        return {kind: f"{self.analysis.methods[0]} {kind}" for kind in self.analysis.nodes}

    def findings(self) -> tuple[Finding, ...]:
        """Return what the largest components carry, or that there is no behaviour to explain."""
        by = f"By {self.analysis.methods[0]}"
        return carriers(self.scores, self._names, by=by, behaviour=self.behaviour)
