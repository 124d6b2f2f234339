"""Whether a score's order costs less than the last layers first, in words."""

from typing import TYPE_CHECKING

import numpy as np

from interp.analyses.quantization_order.orders import LAST_FIRST, RANDOM
from interp.figures.words import costs_than, halves_pick, how_picked
from interp.numerals import number
from interp.result import Compared, Finding
from interp.stats.beyond import beyond
from interp.stats.estimate import Estimate, estimate
from interp.stats.picked import picked, widened

if TYPE_CHECKING:
    from interp.analyses.quantization_order.result import QuantizationOrderResult

_MEASURE = "KL in nats, mean over average bits, less that of"


def findings_of(result: "QuantizationOrderResult") -> tuple[Finding, ...]:
    """Return the first order less the last layers first, less random orders, the worst layer."""
    rivals = {"the last layers first": LAST_FIRST, "random orders": RANDOM}
    less = [_less(result, i, *each) for i, each in enumerate(rivals.items())]
    return (*less, _worst(result))


def _less(result: "QuantizationOrderResult", i: int, than: str, rival: str) -> Finding:
    order, other = result.analysis.orders[0], result.area(rival)
    gap = widened(_estimate(result, result.area(order) - other))
    measure, note = f"{order}: {_MEASURE} {than}", f"order {how_picked(gap)}"
    words = f"Ordering layers by {order}"
    if "twins" not in result.arrays:
        claim = f"{words} costs {gap:.2g} nats of KL more (or, below 0, less) than {than}."
        return Finding(claim, gap, measure, Compared(than, _estimate(result, other)), note=note)
    twins = result.arrays["twins"][0, :, i]
    more = beyond(gap, twins)
    here, there = number(gap.value, ".2g"), number(float(twins.mean()), ".2g")
    return Finding(
        f"{words} {costs_than(more)} {than}, beyond untrained models: {more:.2g} nats of KL.",
        more,
        f"{measure}, beyond untrained models",
        control=Compared(than, _estimate(result, other)),
        kind="compares",
        note=f"{here} here, {there} in untrained models; {note}",
    )


def _worst(result: "QuantizationOrderResult") -> Finding:
    values = result.arrays["alone.kl"]
    worst = picked(values, groups=result.prompt_groups, seed=result.analysis.seed)
    others = np.delete(values, worst.index, axis=1).mean(1)
    bits = result.analysis.bits
    claim = (
        f"Alone at {bits} bits, layer {worst.index} costs most: {worst.estimate:.2g} nats of KL."
    )
    if not worst.is_stable:
        claim = f"Alone at {bits} bits, the layer that costs most on half of the prompts costs"
        claim += f" {worst.estimate:.2g} nats of KL."
    return Finding(
        claim,
        worst.estimate,
        "KL in nats of the one layer that costs most when quantised alone",
        control=Compared("the other layers, mean", _estimate(result, others)),
        note=f"{how_picked(worst.estimate)}{halves_pick(worst)}",
    )


def _estimate(result: "QuantizationOrderResult", values: np.ndarray) -> Estimate:
    return estimate(values, groups=result.prompt_groups, seed=result.analysis.seed)
