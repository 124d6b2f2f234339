"""What the order of layers matters for, in words."""

from typing import TYPE_CHECKING

import numpy as np

from interp.analyses.layer_order.variants import WINDOWED, Variant
from interp.figures.words import by_sign, counted, points
from interp.numerals import number
from interp.result import Compared, Finding
from interp.stats.beyond import beyond
from interp.stats.estimate import Estimate, ratio

if TYPE_CHECKING:
    from interp.analyses.layer_order.result import LayerOrderResult

KL, KEPT = "KL(clean‖variant), nats", "first token kept"
UNTRAINED = "untrained models of the same shape"
_LEAST = 1e-6  # nats of KL: less is rounding
_MOST = 3
WORDS = {
    "reverse": "in reverse",
    "shuffle": "in random order",
    "repeat": "as repeats of their middle layer",
    "parallel_sum": "side by side, summed",
    "parallel_mean": "side by side, averaged",
    "looped_parallel": "side by side, averaged in rounds",
    "duplicate": "twice",
    "loop": "in a loop",
    "damped_loop": "in a damped loop",
}


def findings_of(result: "LayerOrderResult") -> tuple[Finding, ...]:
    """Return what swaps of neighbours keep, whether order was learned, and swaps at a distance."""
    orders = result.orders
    found: list[Finding] = []
    if orders.adjacent:
        found.append(_kept(result))
        if len(result.twins):
            found.append(_learned(result))
    if orders.distant:
        found.append(_distant(result))
    for operation in WINDOWED:
        if len(found) < _MOST and (chosen := of_operation(orders.windowed, operation)):
            found.append(_windows(result, operation, chosen))
    return tuple(found[:_MOST]) or (_nothing(result),)


def of_operation(variants: list[Variant], operation: str) -> list[Variant]:
    """Return those variants of an operation whose windows have the first length."""
    chosen = [variant for variant in variants if variant.operation == operation]
    return [each for each in chosen if len(each.layers) == len(chosen[0].layers)]


def _kept(result: "LayerOrderResult") -> Finding:
    swaps, skips = _inner(result)
    kept = result.estimate(swaps, KEPT)
    ones = {layer: Variant("skip", (layer,)) for each in swaps for layer in each.layers}
    alone = result.estimate([*ones.values()], KEPT)
    notes = [_where(result), _of_twins(result), _of_texts(result)]
    return Finding(
        f"Swapping two neighbouring layers keeps {kept:.0%} of first tokens.",
        kept,
        "share of first tokens that stay when two neighbouring layers are swapped, mean over pairs",
        control=Compared("skipping both", result.estimate(skips, KEPT)),
        rival=Compared("skipping one of them", alone),
        note="; ".join(filter(None, notes)),
    )


def _learned(result: "LayerOrderResult") -> Finding:
    """Compare how much of removal's damage swaps do, with untrained twins."""
    swaps, skips = _inner(result)
    above, below = (result.values(each, KL) for each in (swaps, skips))
    measure = "KL of swapping neighbours, as a share of that of skipping both, beyond untrained"
    twins = result.twins[..., 0]
    if below.mean() < _LEAST or twins[:, 1].min() < _LEAST:
        return _unseen(result, measure)
    own = ratio(above, below, groups=result.prompt_groups, seed=result.analysis.seed)
    others = twins[:, 0] / twins[:, 1]
    more = beyond(own, others)
    costs = by_sign(
        more,
        above="costs a larger",
        below="costs a smaller",
        unclear="is not shown to cost a larger or smaller",
    )
    return Finding(
        f"Swapping neighbours {costs} share of what skipping both costs than in"
        f" untrained models: {points(more)}.",
        more,
        measure,
        control=Compared(UNTRAINED, Estimate(float(others.mean()))),
        rival=Compared("this model", own),
        kind="compares",
        note=f"{_where(result)}; 100 %: swapping two costs as much as skipping both",
    )


def _unseen(result: "LayerOrderResult", measure: str) -> Finding:
    n = len(result.arrays["changes"])
    return Finding(
        "Skipping two neighbours changes nothing, so that their order cannot be judged.",
        Estimate(np.nan, n=n),
        measure,
        control=Compared(UNTRAINED, Estimate(np.nan)),
        kind="compares",
    )


def _distant(result: "LayerOrderResult") -> Finding:
    of_swaps, of_skips = (by_distance(result, operation) for operation in ("swap", "skip"))
    longest = max(of_swaps)
    kept = result.estimate(of_swaps[longest], KEPT)
    return Finding(
        f"Swapping two layers that are {longest} apart keeps {kept:.0%} of first tokens.",
        kept,
        "share of first tokens that stay when two layers at the longest distance are swapped",
        control=Compared("skipping both", result.estimate(of_skips[longest], KEPT)),
        rival=Compared(
            "swapping neighbours at the same places", result.estimate(of_swaps[1], KEPT)
        ),
        note=f"mean over {counted(len(of_swaps[longest]), 'place')}",
    )


def by_distance(result: "LayerOrderResult", operation: str) -> dict[int, list[Variant]]:
    """Return swaps or skips of two layers at the common places, by distance."""
    grouped: dict[int, list[Variant]] = {}
    for each in result.orders.distant:
        if each.operation == operation:
            grouped.setdefault(each.layers[-1] - each.layers[0], []).append(each)
    return grouped


def _windows(result: "LayerOrderResult", operation: str, chosen: list[Variant]) -> Finding:
    kept, length = result.estimate(chosen, KEPT), len(chosen[0].layers)
    skips = [Variant("skip", layers) for layers in dict.fromkeys(each.layers for each in chosen)]
    return Finding(
        f"Windows of {counted(length, 'layer')} {WORDS[operation]} keep {kept:.0%} of first"
        " tokens.",
        kept,
        f"share of first tokens that stay where windows run {WORDS[operation]}, mean over windows",
        control=Compared("skipping the windows", result.estimate(skips, KEPT)),
        note=counted(len(skips), "window"),
    )


def _nothing(result: "LayerOrderResult") -> Finding:
    n, n_layers = len(result.arrays["changes"]), result.n_layers
    return Finding(
        f"There is no place for these operations in {counted(n_layers, 'layer')}.",
        Estimate(np.nan, n=n),
        "share of first tokens that stay",
    )


def _inner(result: "LayerOrderResult") -> tuple[list[Variant], list[Variant]]:
    pairs = result.orders.inner_pairs(result.n_layers)
    return pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]


def _where(result: "LayerOrderResult") -> str:
    pairs, ends = _inner(result)[0], {0, result.n_layers - 1}
    if not pairs:
        return ""
    is_inside = not any(ends & {*pair.layers} for pair in pairs)
    return counted(len(pairs), "pair") + " without the first and the last layer" * is_inside


def _of_texts(result: "LayerOrderResult") -> str:
    clean, (swapped, skipped) = result.texts(), map(result.texts, _inner(result))
    if clean is None:
        return ""
    return (
        f"texts hold the answer in {clean:.0%}, with neighbours swapped in {swapped:.0%}, with both"
        f" skipped in {skipped:.0%}"
    )


def _of_twins(result: "LayerOrderResult") -> str:
    if not len(result.twins):
        return ""
    swap, skip = result.twins[..., 1].mean(0)
    swapped, skipped = (number(kept, ".0%") for kept in (swap, skip))
    return f"untrained models keep {swapped}, skipping both {skipped}"
