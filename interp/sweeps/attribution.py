"""Scores of all nodes from a few passes: the change of an activation times its coefficient.

A node's effect is what the metric of the base run would gain if the node had its value from the
source run. To first order that is (source - base) times the derivative of the metric; methods
differ in where, and by which rules, it is taken.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from interp.activations import Activations
from interp.backward import GRADIENT, Rules, rules_named
from interp.errors import AnalysisError
from interp.interventions import NO_INTERVENTION, Patch, Plan
from interp.models import Model
from interp.models.gradients import graph, slopes
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sites import Site, SiteKind
from interp.sweeps.exact_patching import NODE_KINDS
from interp.sweeps.node_scores import by_kind
from interp.sweeps.twins import Twins
from interp.tasks.batch import TokenBatch

Method = Literal[
    "relevance",  # coefficients of the base run under backward rules (RelP, arXiv 2508.21258)
    "attribution",  # gradients of the base run (attribution patching)
    "average",  # gradients of both runs, averaged
    "integrated_gradients",  # along one site's activations (Marks et al., arXiv 2403.19647)
    "integrated_gradients_inputs",  # along the embeddings (EAP-IG, arXiv 2403.17806)
]
Coefficients = dict[Site, Tensor]


def n_passes(methods: Sequence[Method], *, n_sites: int, steps: int) -> int:
    """Return how many forward and backward passes the methods take besides the source run."""
    passes = {
        "average": 2,
        "integrated_gradients": n_sites * steps,
        "integrated_gradients_inputs": steps,
    }
    return sum(passes.get(method, 1) for method in methods)


def numbers_held(model: Model, shard: TokenBatch, *, n_kinds: int) -> int:
    """Return how many numbers the graph of a pass and the activations of both runs take."""
    n, n_pos = shard.tokens.shape
    each = model.d_model * (8 + 4 * n_kinds) + 3 * model.n_heads * n_pos
    return n * (n_pos * model.n_layers * each + 3 * model.d_vocab)


def check_methods(methods: Sequence[str], nodes: Sequence[str], *, rules: str) -> None:
    """Raise AnalysisError for no methods, no nodes, or rules that do not exist."""
    for what, chosen, known in (
        ("method", methods, get_args(Method)),
        ("node", nodes, NODE_KINDS),
    ):
        if not chosen:
            raise AnalysisError(f"no {what} given; there is {', '.join(known)}")
    rules_named(rules)


def check_nodes(
    model: Model, methods: Sequence[str], nodes: Sequence[SiteKind], *, rules: str
) -> None:
    """Raise SiteError for nodes that a model does not have, or rules that it cannot honour."""
    for kind in nodes:
        model.refuse(Site(kind, 0))
    if "relevance" in methods:
        model.refuse_rules(rules_named(rules))


class Attribution:
    """The base and source runs of prompts and their twins, and the coefficients at all sites.

    Every pass is run once, when it is first needed.
    """

    def __init__(self, recording: Recording, twins: Twins, sites: Sequence[Site]) -> None:
        self.recording, self.sites = recording, [*sites]
        self._passes: dict[tuple[str, Rules], tuple[Activations, Coefficients]] = {}
        with torch.no_grad():
            where = twins.clean.predicting
            sites_and_start = {*sites, Site("resid_pre", 0)}
            source = recording.forward(twins.source, capture=sites_and_start, positions=where)
            self.source = source.activations
            clean = source.logits
            if twins.metric == "kl" and twins.direction == "noise":
                clean = recording.forward(twins.clean.tokens, positions=where).logits
            if twins.direction == "denoise" or twins.metric == "kl":
                twins = twins.with_reference(clean)
        self.twins = twins
        self.source_value = twins.value(source.logits)
        self._base_value: Tensor | None = None

    @property
    def base_value(self) -> Tensor:
        """Return the metric of the base run [batch]."""
        if self._base_value is None:
            self._run("base", GRADIENT)
        return cast("Tensor", self._base_value)

    def scores(self, method: Method, *, rules: Rules, steps: int) -> dict[Site, Tensor]:
        """Return each site's scores in fp32 [batch pos]; [batch pos unit] at "z" and "mlp_post"."""
        base, coefficients = self.coefficients(method, rules=rules, steps=steps)
        changes = {site: self.source[site].float() - base[site].float() for site in self.sites}
        return {site: _product(coefficients[site], changes[site], site) for site in self.sites}

    def all_scores(
        self, methods: Sequence[Method], kinds: Sequence[SiteKind], *, rules: Rules, steps: int
    ) -> Tensors:
        """Return the scores "METHOD KIND" [batch layer pos (unit)] on the CPU."""
        scores: Tensors = {}
        for method in methods:
            of_site = self.scores(method, rules=rules, steps=steps)
            stacked = by_kind(of_site.__getitem__, kinds, n_layers=self.recording.n_layers)
            scores |= {f"{method} {kind}": values for kind, values in stacked.items()}
        return scores

    def coefficients(
        self, method: Method, *, rules: Rules, steps: int
    ) -> tuple[Activations, Coefficients]:
        """Return the base run's activations and a method's coefficients, of every site's shape."""
        base, plain = self._run("base", rules if method == "relevance" else GRADIENT)
        match method:
            case "relevance" | "attribution":
                return base, plain
            case "average":
                other = self._run("source", GRADIENT)[1]
                return base, {site: (plain[site] + other[site]) / 2 for site in self.sites}
            case "integrated_gradients_inputs":
                return base, self._along([Site("resid_pre", 0)], self.sites, steps)
            case "integrated_gradients":
                return base, {site: self._along([site], [site], steps)[site] for site in self.sites}

    def _along(self, moved: Sequence[Site], wanted: Sequence[Site], steps: int) -> Coefficients:
        """Return the mean coefficients on the path from base to source, including the base."""
        base = self._run("base", GRADIENT)[0]
        total: Coefficients = {}
        for k in range(steps):
            plan = [
                Patch(site, torch.lerp(base[site].float(), self.source[site].float(), k / steps))
                for site in moved
            ]
            _, coefficients = self._pass(self.twins.base, wanted, GRADIENT, plan)
            for site in wanted:
                total[site] = total.get(site, 0.0) + coefficients[site] / steps
        return total

    def _run(
        self, which: Literal["base", "source"], rules: Rules
    ) -> tuple[Activations, Coefficients]:
        key = (which, rules)
        if key not in self._passes:
            tokens = self.twins.base if which == "base" else self.twins.source
            self._passes[key] = self._pass(tokens, self.sites, rules, NO_INTERVENTION)
        return self._passes[key]

    def _pass(
        self, tokens: Tensor, sites: Iterable[Site], rules: Rules, plan: Plan
    ) -> tuple[Activations, Coefficients]:
        wanted = sorted({*sites, Site("resid_pre", 0)})
        run = self.recording.forward(
            tokens,
            capture=wanted,
            plan=plan,
            backward=rules,
            positions=self.twins.clean.predicting,
        )
        with graph():
            value = self.twins.value(run.logits)
            derivatives = slopes(value, [run.activations[site] for site in wanted])
        if tokens is self.twins.base and not plan:
            self._base_value = value.detach()
        kept = Activations({site: run.activations[site].detach() for site in wanted})
        return kept, {site: slope.detach() for site, slope in zip(wanted, derivatives, strict=True)}


def _product(coefficient: Tensor, difference: Tensor, site: Site) -> Tensor:
    product = coefficient * difference
    return product if site.kind == "mlp_post" else product.sum(-1)
