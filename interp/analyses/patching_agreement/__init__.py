"""How well do cheap scores agree with exact activation patching?

RelP (arXiv 2508.21258) reports one Pearson correlation per kind of node. A single entry can decide
a correlation, so there are other measures too, on scores averaged over prompts and prompt by
prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from interp.analyses.patching_agreement.result import PatchingAgreementResult
from interp.analysis import Analysis, Cost
from interp.backward import rules_named
from interp.metrics import Metric
from interp.models import Model
from interp.parameters import AtLeast
from interp.replay import Recording
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
from interp.sweeps.exact_patching import all_distances, all_effects, clean_runs, forwards_of
from interp.sweeps.node_scores import NodeScores, join_scores, n_units
from interp.sweeps.twins import Direction, check_gradient, check_twins, twins_of
from interp.tasks.batch import TokenBatch


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
        """Return "METHOD NODE", "exact NODE" and "distance NODE" [batch layer pos (unit)].

        They are scores, exact effects, and how far activations move between the runs.
        """
        rows, groups = [], []
        sites = [Site(kind, layer) for kind in self.nodes for layer in range(recording.n_layers)]
        for twins in twins_of(recording, shard, metric=self.metric, direction=self.direction):
            runs = Attribution(recording, twins, sites)
            twins, base, source, values = clean_runs(recording, twins)
            scores = runs.all_scores(
                self.methods, self.nodes, rules=rules_named(self.rules), steps=self.steps
            )
            exact = all_effects(twins, base, source, self.nodes)
            distances = all_distances(base, source, self.nodes)
            rows.append(twins.clean.rows.cpu())
            named = {f"exact {kind}": exact[kind] for kind in exact}
            named |= {f"distance {kind}": distances[kind] for kind in distances}
            groups.append(values | scores | named)
        return join_scores(rows, groups, last=shard.last.cpu())

    def combine(self, parts: Sequence[Tensors]) -> PatchingAgreementResult:
        """Return scores and exact effects, aligned at the prompts' ends."""
        every = (*self.methods, "exact", "distance")
        names = [f"{method} {kind}" for method in every for kind in self.nodes]
        names = [name for name in names if name in parts[0]]  # parts of interp 0.1 have no distance
        return PatchingAgreementResult(self, NodeScores.of(parts, names))

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return the passes of all methods, and at most the blocks behind every node."""
        passes = n_passes(self.methods, n_sites=len(self.nodes) * model.n_layers, steps=self.steps)
        exact = forwards_of(model, self.nodes, shard)
        n_nodes = model.n_layers * shard.tokens.numel() * n_units(model, self.nodes)
        held = numbers_held(model, shard, n_kinds=len(self.nodes))
        return Cost(
            3 + 2 * passes + exact,
            (2 + len(self.methods)) * n_nodes,
            held,
            is_bound=True,
            backwards=float(passes),
            logits=n_nodes,
        )
