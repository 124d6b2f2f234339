"""How well do cheap scores agree with exact activation patching?

RelP (arXiv 2508.21258) reports one Pearson correlation per kind of node. A single entry can decide
a correlation, so there are other measures too, on scores averaged over prompts and prompt by
prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from interp.analyses.patching_agreement.result import EDGES, PatchingAgreementResult
from interp.analysis import Analysis, Cost
from interp.backward import GRADIENT, rules_named
from interp.metrics import Metric
from interp.models import Model
from interp.models.quantised import Asked
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sites import Site, SiteKind
from interp.sweeps import paths as path_sweep
from interp.sweeps.attribution import (
    Attribution,
    Method,
    check_methods,
    check_nodes,
    n_passes,
    numbers_held,
)
from interp.sweeps.edges import edge_scores, few_at_once
from interp.sweeps.exact_patching import (
    all_distances,
    all_effects,
    clean_runs,
    forwards_inside,
    forwards_of,
)
from interp.sweeps.heads import z_reader_of
from interp.sweeps.node_scores import NodeScores, join_scores, n_units
from interp.sweeps.paths import Paths, check_paths
from interp.sweeps.twins import Direction, Twins, check_gradient, check_twins, twins_of
from interp.sweeps.wiring import Wiring
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

_OF_EDGES: tuple[Method, ...] = ("relevance", "attribution")


@dataclass(frozen=True)
class PatchingAgreement(Analysis):
    """Compare `methods` with exact patching at every node of some kinds.

    With `receivers` (named as in path_patching), edges into them are compared too, by "relevance"
    and "attribution": each sender's score with exact path patching, MLPs between frozen. `top_k` is
    how many of the largest nodes are compared; other fields are those of relevance_patching.
    """

    methods: tuple[Method, ...] = ("relevance", "attribution")
    nodes: tuple[SiteKind, ...] = ("resid_pre", "attn_out", "z", "mlp_out")
    receivers: tuple[str, ...] = ()
    rules: str = "relp"
    metric: Metric = "logit_diff"
    direction: Direction = "denoise"
    steps: Annotated[int, AtLeast(1)] = 10
    top_k: Annotated[int, AtLeast(1)] = 10
    seed: int = 0
    asks_of_weights: ClassVar[Asked | None] = "gradients"
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
        if self.receivers:
            wiring = Wiring.of(model)
            check_paths(wiring, wiring.senders[:1], self.receivers)
            z_reader_of(model.blocks[0])
            model.refuse_edges()

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return the model's wiring, if edges are compared."""
        return {"wiring": Wiring.of(model).numbers} if self.receivers else {}

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return "METHOD NODE", "exact NODE" and "distance NODE" [batch layer pos (unit)].

        They are scores, exact effects, and how far activations move between the runs. "METHOD
        edges" and "exact edges" are [batch edge], by receiver, senders in forward order.
        """
        rows, groups, edges = list[Tensor](), list[Tensors](), list[Tensors]()
        sites = [Site(kind, layer) for kind in self.nodes for layer in range(recording.n_layers)]
        for twins in twins_of(recording, shard, metric=self.metric, direction=self.direction):
            runs = Attribution(recording, twins, sites)
            twins, base, source, values = clean_runs(recording, twins)
            scores = runs.all_scores(
                self.methods, self.nodes, rules=rules_named(self.rules), steps=self.steps
            )
            exact = all_effects(twins, base, source, self.nodes)
            distances = all_distances(base, source, self.nodes)
            if self.receivers:
                wiring = Wiring.from_numbers(prepared["wiring"])
                edges.append(self._edges(twins, base, source, wiring))
            rows.append(twins.clean.rows.cpu())
            named = {f"exact {kind}": exact[kind] for kind in exact}
            named |= {f"distance {kind}": distances[kind] for kind in distances}
            groups.append(values | scores | named)
        order = torch.cat(rows).argsort()
        of_edges = {
            name: torch.cat([part[name] for part in edges])[order]
            for name in (edges[0] if edges else ())
        }
        return join_scores(rows, groups, last=shard.last.cpu()) | of_edges

    def _edges(self, twins: Twins, base: Recording, source: Recording, wiring: Wiring) -> Tensors:
        """Return scores and exact effects of all edges into the receivers [batch edge]."""
        ends = [(name, wiring.n_before(name)) for name in self.receivers]
        paths = Paths(twins, base, source, wiring, "frozen")
        exact = [paths.effects(wiring.senders[:n], [name]) for name, n in ends]
        edges = {"exact edges": torch.cat(exact, dim=1).cpu()}
        for method in {*self.methods} & {*_OF_EDGES}:
            rules = rules_named(self.rules) if method == "relevance" else GRADIENT
            scores = torch.cat(
                [
                    edge_scores(base, few, wiring, rules=rules)
                    for few in few_at_once(twins, wiring, d_model=base.resid(0).shape[-1])
                ]
            )
            at = [wiring.receivers.index(name) for name in self.receivers]
            own = [scores[:, i, :n] for i, (_, n) in zip(at, ends, strict=True)]
            edges[f"{method} edges"] = torch.cat(own, dim=1).cpu()
        return edges

    def combine(self, parts: Sequence[Tensors]) -> PatchingAgreementResult:
        """Return scores and exact effects, aligned at the prompts' ends."""
        every = (*self.methods, "exact", "distance")
        names = [f"{method} {kind}" for method in every for kind in self.nodes]
        names = [name for name in names if name in parts[0]]  # parts of interp 0.1 have no distance
        of_edges = [f"{method} {EDGES}" for method in (*_OF_EDGES, "exact")]
        edges = {
            name: np.concatenate([part[name].double().numpy() for part in parts])
            for name in of_edges
            if name in parts[0]
        }
        return PatchingAgreementResult(self, NodeScores.of(parts, names), edges)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return the passes of all methods, and at most the blocks after every node."""
        passes = n_passes(self.methods, n_sites=len(self.nodes) * model.n_layers, steps=self.steps)
        exact = forwards_of(model, self.nodes, shard) + self._forwards_of_edges(model)
        exact += forwards_inside(self.nodes)  # once more for the distances
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

    def _forwards_of_edges(self, model: Model) -> float:
        wiring = Wiring.of(model)
        each = [
            path_sweep.forwards_of(
                wiring, wiring.senders[: wiring.n_before(name)], [name], "frozen"
            )
            for name in self.receivers
        ]
        # what heads return in both runs, and for each method two passes there and one back
        methods = {*self.methods} & {*_OF_EDGES}
        return 2.0 + 4.0 * len(methods) + sum(each) if each else 0.0
