"""Which layer the output needs most, and how far later tokens need a layer, in words."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from interp.figures.words import PICKED, mlp_named, points
from interp.metrics import CHANGES, OUTCOMES
from interp.result import Compared, Finding
from interp.stats.estimate import estimate, ratio
from interp.stats.picked import Picked, picked, ranked
from interp.stats.shares import share, share_difference

if TYPE_CHECKING:
    from interp.analyses.layer_skip.result import LayerSkipResult

_PARTS = {"layer": "layer", "attention": "attention", "mlp": "MLP"}
_FEWEST_OF_HALVES = 3  # layers: after the last there is none to change
_OTHERS = "the other layers, on average"


def findings_of(result: "LayerSkipResult") -> tuple[Finding, ...]:
    """Return what the costliest skip costs, in nats and in right answers, and the future's part."""
    accuracy = _accuracy(result) if result.has_answers and _n_layers(result) > 1 else ()
    return (_costliest(result), *accuracy, *_future(result))


def _n_layers(result: "LayerSkipResult") -> int:
    return int(result.costs.shape[1])


def _pick(result: "LayerSkipResult", values: np.ndarray, *, rank: int = 0) -> Picked:
    """Pick the costliest layer (or that of a rank) on each half of the prompts.

    What is measured are the values [prompt layer] of the layer picked on the other half.
    """
    choose = ranked(result.costs, rank)
    return picked(values, choose=choose, groups=result.prompt_groups, seed=result.analysis.seed)


def _others(values: np.ndarray) -> np.ndarray:
    """Return for every layer the mean over all others [prompt layer]."""
    total = values.sum(1, keepdims=True)
    return np.asarray((total - values) / (values.shape[1] - 1))


def _named(result: "LayerSkipResult", layer: int) -> str:
    part = result.analysis.part
    if part == "mlp":
        return mlp_named(layer)
    return f"layer {layer}'s attention" if part == "attention" else f"layer {layer}"


def _note(result: "LayerSkipResult") -> str:
    return f"skipped at {result.shown['all']}; {PICKED}"


def _costliest(result: "LayerSkipResult") -> Finding:
    costs, part = result.costs, _PARTS[result.analysis.part]
    most = _pick(result, costs)
    skipped = _named(result, most.index)
    if result.has_answers:
        cost = f"{most.estimate:.2f} nats of the answer's log-probability"
        is_needed = most.estimate.excludes() or not most.estimate.has_interval
        claim = f"Skipping {skipped} costs most: {cost}."
        if not is_needed:
            claim = f"No {part} is clearly needed: skipping the costliest, {skipped}, costs {cost}."
        measure = f"loss of {OUTCOMES['log_prob']}"
    else:
        claim = f"Skipping {skipped} changes the probabilities most: by {most.estimate:.2f} (L2)."
        measure = CHANGES["l2"]
    control = rival = None
    if _n_layers(result) > 1:
        control = Compared(_OTHERS, _pick(result, _others(costs)).estimate)
        next_most = _pick(result, costs, rank=1)
        rival = Compared(f"{_named(result, next_most.index)}, the next", next_most.estimate)
    measure = f"{measure} without the {part} that the output needs most"
    return Finding(claim, most.estimate, measure, control=control, rival=rival, note=_note(result))


def _accuracy(result: "LayerSkipResult") -> Iterator[Finding]:
    """Yield how many fewer answers are right without the costliest layer than without another."""
    after, groups = result.arrays["all.accuracy"].astype(np.float64), result.prompt_groups
    without, part = _pick(result, after), _PARTS[result.analysis.part]
    others = _pick(result, _others(after)).measured
    fewer = share_difference(others, without.measured, groups=groups)
    than = "without another layer" if part == "layer" else f"without another layer's {part}"
    how = f"the accuracy is {points(fewer)} lower than {than}."
    if not fewer.excludes() or fewer.value < 0:
        how = f"the accuracy is no lower than {than}: {points(fewer)}."
    yield Finding(
        f"Without {_named(result, without.index)}, {how}",
        fewer,
        f"{OUTCOMES['accuracy']} {than}, less that without the {part} that the output needs most",
        control=Compared(f"the accuracy {than}, on average", share(others, groups=groups)),
        rival=Compared("nothing skipped", share(result.arrays["clean.accuracy"], groups=groups)),
        kind="compares",
        note=_note(result),
    )


def _future(result: "LayerSkipResult") -> Iterator[Finding]:
    """Yield how much less later tokens need the second half of the layers than the first."""
    n_layers = _n_layers(result)
    if "future" not in result.scopes or n_layers < _FEWEST_OF_HALVES:
        return
    changes = result.change_of_later_tokens
    first, second = changes[:, : n_layers // 2].mean(1), changes[:, n_layers // 2 :].mean(1)
    groups, seed = result.prompt_groups, result.analysis.seed
    less = ratio(second, first, groups=groups, seed=seed)
    whole = estimate(changes.mean(1), groups=groups, seed=seed)
    yield Finding(
        "Skipping a layer of the second half changes later tokens"
        f" {less:.2f} times as much as one of the first.",
        less,
        "relative change of later layers' writes at tokens after the skip: second half of the"
        " layers over the first",
        note=f"a skipped layer changes them by {whole:.2f} of their size, on average",
    )
