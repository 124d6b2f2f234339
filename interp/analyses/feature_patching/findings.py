"""What patched features let one claim."""

from typing import TYPE_CHECKING

from interp.figures.words import by_sign, listed
from interp.metrics import WORDS
from interp.result import Compared, Finding
from interp.stats.estimate import Estimate
from interp.sweeps.twins import DIRECTIONS

if TYPE_CHECKING:
    from interp.analyses.feature_patching.result import FeaturePatchingResult

_RANDOM = "as many random features that are as active"
_DISTANCE = "how far each feature moves its site"
_SHOWN = 3  # features that a note names


def findings_of(result: "FeaturePatchingResult") -> tuple[Finding, ...]:
    """Return what the largest features carry, against random ones, and how scores agree.

    Without a behaviour, the only finding is that there is none to explain.
    """
    if result.behaviour.is_absent:
        return (result.behaviour.finding(),)
    return (_carried(result), _beyond_random(result), _agreement(result))


def _carried(result: "FeaturePatchingResult") -> Finding:
    analysis, share = result.analysis, result.share("largest")
    exact = abs(result.values["exact"].mean(0))
    features = [i for i in (-exact).argsort().tolist() if result.kinds[i] != "error"][:_SHOWN]
    what = WORDS[analysis.metric]
    return Finding(
        f"By {analysis.methods[0]}, the {analysis.top_k} largest features carry {share:.0%} of the"
        f" gap in {what}.",
        share,
        f"share of the gap that the {analysis.top_k} largest features carry together",
        control=Compared(_RANDOM, result.share("random")),
        rival=Compared("the errors of all dictionaries", result.share("errors")),
        note=f"{result.behaviour} Patched {DIRECTIONS[analysis.direction]}, {_chosen(share)}."
        f" Alone, {listed([result.named(i) for i in features])} move it most. All"
        f" features of the dictionaries carry {result.share('features'):.0%}.",
    )


def _beyond_random(result: "FeaturePatchingResult") -> Finding:
    beyond = result.beyond_random
    claim = by_sign(
        beyond,
        above=f"That is {beyond:.0%} of the gap more than {_RANDOM}.",
        below=f"That is {-beyond:.0%} of the gap less than {_RANDOM}.",
        unclear=f"They are not shown to carry more or less than {_RANDOM}:"
        f" {beyond:.0%} of the gap.",
    )
    return Finding(
        claim,
        beyond,
        "share of the gap that the largest features carry beyond random ones",
        control=Compared(_RANDOM, result.share("random")),
        kind="compares",
        note=f"Mean over {result.analysis.draws} draws, {_chosen(beyond)}.",
    )


def _chosen(estimate: Estimate) -> str:
    crossed = "on prompts that did not choose them"
    return "on the prompts that chose them" if estimate.n_groups == 1 else crossed


def _agreement(result: "FeaturePatchingResult") -> Finding:
    first, *others = result.analysis.methods
    control = result.agreement["distance"].estimate("pearson")
    known = {name: result.agreement[name].estimate("pearson") for name in (first, *others)}
    rival = Compared(others[0], known[others[0]]) if others else None
    return Finding(
        f"By {first}, scores of features correlate with exact patching at {known[first]:.2f}.",
        known[first],
        f"Pearson correlation of {first} with exact patching, over features",
        control=Compared(_DISTANCE, control),
        rival=rival,
        note="Over the largest features by any method and as many random ones.",
    )
