"""What rules gain on a set of layers fixed for all prompts, and what they save, in words."""

from typing import TYPE_CHECKING

from interp.analyses.layer_routers.testing import CONTROLS, FULL, PATHS
from interp.figures.words import by_sign, points
from interp.numerals import number
from interp.result import Compared, Finding
from interp.stats.shares import share

if TYPE_CHECKING:
    from interp.analyses.layer_routers.result import LayerRoutersResult

NAMES = {"supervised": "supervised routers", "gated": "gates"}
_NOTABLE = 0.1  # a loss of accuracy that an interval has to exclude
_FIXED = "a fixed set of as many layers"


def findings_of(result: "LayerRoutersResult") -> tuple[Finding, ...]:
    """Return what each rule gains on a fixed set, and what the first saves net of its own cost."""
    first, *more = result.rules
    return (_gain(result, first), _saving(result, first), *(_gain(result, rule) for rule in more))


def _gain(result: "LayerRoutersResult", rule: str) -> Finding:
    gain, name, groups = result.above_fixed(rule), NAMES[rule], result.test_groups
    subject, rate = f"Layers chosen by {name}", result.runs(rule).mean() / result.n_layers
    full = Compared("the full model", share(result.scores(FULL), groups=groups))
    has_set = rate <= 1  # no set has more layers than there are
    fixed = Compared(_FIXED, share(result.fixed(rule), groups=groups)) if has_set else full
    whose = "both" if has_set else "compared with the full model's 100 %"
    claim = by_sign(
        gain,
        above=f"{subject} give more right answers than {fixed.name}: by {points(gain)}.",
        below=f"{subject} give fewer right answers than {fixed.name}: by {points(-gain)}.",
        unclear=f"{subject} are not shown to give more right answers than {fixed.name}:"
        f" {points(gain)}.",
    )
    if not gain.has_interval:
        claim = f"{subject} cannot be compared with {fixed.name}: too few prompts."
    return Finding(
        claim,
        gain,
        f"accuracy by {name}, above {_FIXED}",
        control=fixed,
        rival=full if has_set else None,
        kind="compares",
        note=f"test third of the groups; {number(rate, '.0%')} of the layer runs, {whose}",
    )


def _saving(result: "LayerRoutersResult", rule: str) -> Finding:
    saved, lost, name = result.estimate(result.saved(rule)), result.lost(rule), NAMES[rule]
    price = "where a loss of accuracy cannot be excluded"
    if lost.high < 0:
        price = "and lose accuracy"
    elif lost.low >= -_NOTABLE:
        price = "at no notable loss of accuracy"
    if not lost.has_interval:
        price = "with too few prompts to see a loss"
    elif not result.scores(FULL).any():
        price = "where the full model is never right"
    does = (
        f"save {saved:.1%} of the compute"
        if saved.value > 0
        else f"cost {number(-saved.value, '.1%')} more"
    )
    paths = result.estimate(1 - result.runs(PATHS) / result.n_layers)
    return Finding(
        f"{name.capitalize()} {does}, their own counted, {price}.",
        saved,
        f"share of multiply-adds saved by {name}, net of their own",
        rival=Compared("shortest right paths, known with hindsight", paths),
        note=f"accuracy less the full model's: {points(lost)}; fixed by {CONTROLS[0]}",
    )
