"""What a gradient sees: the rules for nonlinearities in a backward pass.

Layer-wise relevance propagation, written as a gradient: the relevance of an activation a is a times
its *coefficient*, which is what the ordinary backward pass would give if some operations had
another derivative. A rule names an operation and that derivative; forward values never change.
Which derivatives are right is a convention, not a theorem. Sources: LN and AH, Ali et al. 2022
(arXiv 2202.07304); Identity and Half, Jafari et al. 2024 (arXiv 2406.07592), Half also Arras et al.
2019; their use for patching, RelP (arXiv 2508.21258).

A forward pass with rules keeps its graph, from the first residual on; parameters need no gradient.
"""

from dataclasses import dataclass
from typing import TypeVar

from interp.errors import AnalysisError, SiteError, unknown


@dataclass(frozen=True)
class LN:
    """Normalisations divide by a constant: y = (x - mean) / sg(scale).

    Centring keeps its derivative. `qk_norms`: also the norms of queries and keys, where there are.
    """

    qk_norms: bool = False


@dataclass(frozen=True)
class Identity:
    """An activation function passes relevance on as it is: y = x sg(phi(x) / x), phi'(0) at 0.

    `stabiliser` above 0 divides by x + stabiliser sign(x) instead, and gives 0 at 0, as the
    official RelP code does (1e-6).
    """

    stabiliser: float = 0.0


@dataclass(frozen=True)
class Half:
    """A gated MLP's product gives each factor half: y = a sg(b) / 2 + sg(a) b / 2."""


@dataclass(frozen=True)
class DetachedGate:
    """A gated MLP's product gives all to the branch without activation: y = sg(phi(g)) u."""


@dataclass(frozen=True)
class AH:
    """Attention patterns are constants: queries and keys get nothing."""


@dataclass(frozen=True)
class ScaledAttention:
    """Coefficients at queries, keys and values are divided by these numbers."""

    q: float = 4.0
    k: float = 4.0
    v: float = 2.0


Rule = LN | Identity | Half | DetachedGate | AH | ScaledAttention
R = TypeVar("R", LN, Identity, Half, DetachedGate, AH, ScaledAttention)


@dataclass(frozen=True)
class Rules:
    """A named set of rules, at most one of a kind; the empty set is the ordinary gradient."""

    name: str
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        kinds = [type(rule).__name__ for rule in self.rules]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise SiteError(f"rules {self.name!r} name {kind} twice; one is possible")
        if {"Half", "DetachedGate"} <= {*kinds}:
            raise SiteError(
                f"rules {self.name!r} name Half and DetachedGate; a product follows one of them"
            )

    def get(self, kind: type[R]) -> R | None:
        """Return the rule of a kind, if this set has one."""
        return next((rule for rule in self.rules if isinstance(rule, kind)), None)


GRADIENT = Rules("gradient")
RELP = Rules("relp", (LN(), Identity(), Half()))
RELP_AH = Rules("relp_ah", (LN(), Identity(), Half(), AH()))
ATTN_LRP = Rules("attn_lrp", (LN(qk_norms=True), Identity(), Half(), ScaledAttention()))
CP_LRP = Rules("cp_lrp", (LN(qk_norms=True), Identity(), DetachedGate(), AH()))
RULES = {rules.name: rules for rules in (GRADIENT, RELP, RELP_AH, ATTN_LRP, CP_LRP)}


def rules_named(name: str) -> Rules:
    """Return a set of rules; raise AnalysisError if none has this name."""
    if name not in RULES:
        raise AnalysisError(unknown("set of rules", name, RULES))
    return RULES[name]
