"""What leaving layers out costs, in words."""

from typing import TYPE_CHECKING, Any

import numpy as np

from interp.analyses.layer_removal.scores import ACCURACY, CHOICE, GENERATED
from interp.figures.words import PICKED, by_sign, points
from interp.result import Compared, Finding
from interp.stats.estimate import Estimate, estimate, estimate_of
from interp.stats.picked import picked, ranked, widened
from interp.stats.shares import share, share_difference

if TYPE_CHECKING:
    from interp.analyses.layer_removal.result import LayerRemovalResult

_LAST = "last first"
_BOTH_PICKED = f"{PICKED}, and so are the orders' importances"


def findings_of(result: "LayerRemovalResult") -> tuple[Finding, ...]:
    """Return what the best order saves, how many layers can go, and what choices hide."""
    more = (_removable(result), _hidden(result))
    return (_saved(result), *[finding for finding in more if finding is not None])


def _saved(result: "LayerRemovalResult") -> Finding:
    """Compare the accuracy that the best order keeps with that of random orders."""
    groups, area = result.prompt_groups, result.curves(ACCURACY).mean(2)
    kept = widened(
        share_difference(result.best.measured, area[:, -1], groups=groups), between=(-1.0, 1.0)
    )
    name = f" ({result.names[result.best.index]})" * result.best.is_stable
    order = f"The best order of removal{name}"
    over = f"over up to {result.counts[-1]} of {result.n_layers} layers"
    claim = by_sign(
        kept,
        above=f"{order} keeps accuracy {points(kept)} above random orders, {over}.",
        below=f"{order} keeps accuracy {points(-kept)} below random orders, {over}.",
        unclear="No order of removal is shown to keep more accuracy than random ones:"
        f" {points(kept)}, {over}.",
    )
    return Finding(
        claim,
        kept,
        "accuracy under the best order of removal less that under random orders, mean over steps",
        control=Compared("random orders", share(area[:, -1], groups=groups)),
        rival=_rival(result, area[:, :-1]),
        kind="compares",
        note=f"{_BOTH_PICKED}; the answer's first token",
    )


def _rival(result: "LayerRemovalResult", area: np.ndarray) -> Compared | None:
    """Return the accuracy kept where the last layers go first or, if that is best, by the next."""
    names, best = result.names, result.best.index
    if len(names) < 2:
        return None
    if _LAST in names and names[best] != _LAST:
        return Compared(_LAST, share(area[:, names.index(_LAST)], groups=result.prompt_groups))
    how: dict[str, Any] = {"groups": result.prompt_groups, "seed": result.analysis.seed}
    following = picked(area, choose=ranked(area, 1), **how)
    name = f"{names[following.index]}, " * following.is_stable
    return Compared(f"{name}the next", following.estimate)


def _removable(result: "LayerRemovalResult") -> Finding | None:
    """Say how many layers can go; nothing where there is no accuracy to lose."""
    if not _has(result, ACCURACY):
        return None
    drop = f"{100 * result.analysis.drop:.0f} points"
    curves = result.curves(ACCURACY)
    n, random = (_crossing(result, kept) for kept in (result.crossed(curves), curves[:, -1]))
    claim = f"In the best order, {n:.1f} layers can go before accuracy falls by {drop}."
    if n.value >= result.counts[-1]:
        claim = f"In the best order, accuracy falls by less than {drop} at {n:.0f} layers."
    return Finding(
        claim,
        n,
        f"layers left out in the best order until accuracy falls by {drop}",
        rival=Compared("random orders", random),
        note=f"{_BOTH_PICKED}; interpolated between steps, at most {result.counts[-1]}",
    )


def _crossing(result: "LayerRemovalResult", kept: np.ndarray) -> Estimate:
    """Return at how many layers accuracy [prompt step] has fallen by `drop`."""
    counts = np.array([0, *result.counts], np.float64)

    def crossing(mean: np.ndarray) -> float:
        lost = mean[0] - mean - result.analysis.drop
        below = np.flatnonzero(lost > 0)
        if not len(below):
            return float(counts[-1])
        end = int(below[0])
        part = lost[end - 1] / (lost[end - 1] - lost[end])
        return float(counts[end - 1] + part * (counts[end] - counts[end - 1]))

    values = np.concatenate([result.clean(ACCURACY)[:, None], kept], axis=1)
    how: dict[str, Any] = {"groups": result.prompt_groups, "seed": result.analysis.seed}
    return estimate_of(crossing, values, **how)


def _hidden(result: "LayerRemovalResult") -> Finding | None:
    """Compare what choices keep, above chance, with what texts keep; nothing without either."""
    if not {CHOICE, GENERATED} <= {*result.scores} or not _has(result, GENERATED):
        return None
    steps = [result.counts.index(count) for count in result.counts_of(GENERATED)]
    right = (result.clean(CHOICE) == 1) & (result.clean(GENERATED) == 1)
    if not right.any():
        return None
    chance = result.arrays["chance"][right, None]
    choices = result.crossed(result.curves(CHOICE))[right][:, steps]
    choices = ((choices - chance) / (1 - chance)).mean(1)
    texts = result.crossed(result.curves(GENERATED))[right].mean(1)
    how: dict[str, Any] = {"groups": result.groups_of(right), "seed": result.analysis.seed}
    hidden = widened(estimate(choices - texts, **how))
    than = "of the answers than texts without layers"
    claim = by_sign(
        hidden,
        above=f"Choices keep {points(hidden)} more {than}.",
        below=f"Choices keep {points(-hidden)} less {than}.",
        unclear=f"Choices are not shown to hide what texts lose without layers: {points(hidden)}.",
    )
    return Finding(
        claim,
        hidden,
        "answers kept by choice, above chance, less those kept in greedy texts, mean over steps",
        control=Compared("greedy texts", estimate(texts, **how)),
        rival=Compared("choices, above chance", estimate(choices, **how)),
        kind="compares",
        note=f"prompts that the whole model answers both ways; {_BOTH_PICKED}",
    )


def _has(result: "LayerRemovalResult", score: str) -> bool:
    """Tell whether the whole model surely has more of a score than what it may lose."""
    whole = share(result.clean(score), groups=result.prompt_groups)
    return whole.low > result.analysis.drop
