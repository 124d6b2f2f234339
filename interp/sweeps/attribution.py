"""Scores of all nodes from a few passes: the change of an activation times its coefficient in a
backward pass.

A node's effect is what the metric of the base run would gain if the node had its value from the
source run. To first order that is (source - base) times the derivative of the metric; methods
differ in where, and by which rules, it is taken.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, cast

import torch
from torch import Tensor

from interp.activations import Activations
from interp.backward import GRADIENT, RULES, Rules
from interp.errors import AnalysisError, unknown
from interp.interventions import NO_INTERVENTION, Patch, Plan
from interp.models import Model
from interp.models.gradients import graph, slopes
from interp.replay import Recording
from interp.sites import Site, SiteKind
from interp.sweeps.exact_patching import NODE_KINDS
from interp.sweeps.twins import Pair

Method = Literal[
    "relevance", "attribution", "average", "integrated_gradients", "integrated_gradients_inputs"
]
METHODS: dict[str, str] = {
    "relevance": "coefficients of the base run under backward rules (RelP, arXiv 2508.21258)",
    "attribution": "gradients of the base run (attribution patching)",
    "average": "gradients of both runs, averaged",
    "integrated_gradients": (
        "gradients along the straight path of one site's activations (Marks et al., arXiv"
        " 2403.19647)"
    ),
    "integrated_gradients_inputs": (
        "gradients along the straight path of the embeddings (EAP-IG, arXiv 2403.17806)"
    ),
}
Coefficients = dict[Site, Tensor]


def method_passes(method: Method, *, n_sites: int, steps: int) -> int:
    """Return how many forward and backward passes a method takes beside the source run."""
    match method:
        case "relevance" | "attribution":
            return 1
        case "average":
            return 2
        case "integrated_gradients":
            return n_sites * steps
        case "integrated_gradients_inputs":
            return steps


def check_methods(methods: Sequence[str], nodes: Sequence[str], *, rules: str, steps: int) -> None:
    """Raise AnalysisError for no methods or nodes, rules that do not exist, and paths without a
    point.
    """
    for what, chosen, there_is in (("method", methods, METHODS), ("node", nodes, NODE_KINDS)):
        if not chosen:
            raise AnalysisError(f"no {what} given; there is {', '.join(there_is)}")
    if rules not in RULES:
        raise AnalysisError(unknown("set of rules", rules, RULES))
    if steps < 1:
        raise AnalysisError(f"steps={steps}; at least 1 is needed")


def check_model(
    model: Model, methods: Sequence[str], nodes: Sequence[SiteKind], *, rules: str
) -> None:
    """Raise SiteError for nodes that a model does not have, and for rules asked for that it cannot
    honour.
    """
    for kind in nodes:
        model.refuse(Site(kind, 0))
    if "relevance" in methods:
        model.refuse_rules(RULES[rules])


class Attribution:
    """The two runs of a pair, and the coefficients of all sites; every pass is run once, when it is
    first needed.
    """

    def __init__(self, recording: Recording, pair: Pair, sites: Sequence[Site]) -> None:
        self.recording, self.sites = recording, [*sites]
        self._runs: dict[tuple[str, Rules], tuple[Activations, Coefficients]] = {}
        with torch.no_grad():
            source = recording.forward(pair.source, capture={*sites, Site("resid_pre", 0)})
            self.source = source.activations
            clean = source.logits
            if pair.metric == "kl" and pair.direction == "noise":
                clean = recording.forward(pair.clean.tokens).logits
            self.pair = (
                pair.compared_with(clean)
                if pair.direction == "denoise" or pair.metric == "kl"
                else pair
            )
        self.source_value = self.pair.value(source.logits[:, pair.clean.predicting])
        self._base_value: Tensor | None = None

    @property
    def base(self) -> Tensor:
        """Return the metric of the base run [batch]."""
        if self._base_value is None:
            self._run("base", GRADIENT)
        return cast("Tensor", self._base_value)

    def scores(self, method: Method, *, rules: Rules, steps: int) -> dict[Site, Tensor]:
        """Return each site's scores, fp32: heads [batch pos head], neurons [batch pos d_mlp],
        otherwise [batch pos].
        """
        base, coefficients = self._coefficients(method, rules, steps)
        changes = {site: self.source[site].float() - base[site].float() for site in self.sites}
        return {site: _product(coefficients[site], changes[site], site) for site in self.sites}

    def _coefficients(
        self, method: Method, rules: Rules, steps: int
    ) -> tuple[Activations, Coefficients]:
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
        """Return the mean coefficients along the path from base to source, the base's end included."""
        base = self._run("base", GRADIENT)[0]
        total: Coefficients = {}
        for k in range(steps):
            plan = [
                Patch(site, torch.lerp(base[site].float(), self.source[site].float(), k / steps))
                for site in moved
            ]
            _, found = self._pass(self.pair.base, wanted, GRADIENT, plan)
            for site in wanted:
                total[site] = total.get(site, 0.0) + found[site] / steps
        return total

    def _run(
        self, which: Literal["base", "source"], rules: Rules
    ) -> tuple[Activations, Coefficients]:
        key = (which, rules)
        if key not in self._runs:
            self._runs[key] = self._pass(
                getattr(self.pair, which), self.sites, rules, NO_INTERVENTION
            )
        return self._runs[key]

    def _pass(
        self, tokens: Tensor, sites: Iterable[Site], rules: Rules, plan: Plan
    ) -> tuple[Activations, Coefficients]:
        wanted = sorted({*sites, Site("resid_pre", 0)})
        run = self.recording.forward(tokens, capture=wanted, plan=plan, backward=rules)
        with graph():
            value = self.pair.value(run.logits[:, self.pair.clean.predicting])
            found = slopes(value, [run.activations[site] for site in wanted])
        if tokens is self.pair.base and not plan:
            self._base_value = value.detach()
        kept = Activations({site: run.activations[site].detach() for site in wanted})
        return kept, {site: slope.detach() for site, slope in zip(wanted, found, strict=True)}


def _product(coefficient: Tensor, difference: Tensor, site: Site) -> Tensor:
    product = coefficient * difference
    return product if site.kind == "mlp_post" else product.sum(-1)
