"""Whether layers share more than a low rank of their own would keep, in words."""

from typing import TYPE_CHECKING

import numpy as np

from interp.figures.words import costs_than, counted, halves_pick, how_picked
from interp.models.loops import SVD
from interp.numerals import number
from interp.result import Compared, Finding
from interp.stats.beyond import beyond
from interp.stats.estimate import Estimate, estimate
from interp.stats.picked import picked
from interp.stats.shares import share

if TYPE_CHECKING:
    from interp.analyses.recursion.result import RecursionResult


_BROKEN = 0.1  # of first tokens: where fewer stay, differences of KL are between broken models


def findings_of(result: "RecursionResult") -> tuple[Finding, ...]:
    """Return sharing beside a truncated SVD, the loop beside random ones, the layer hurt most.

    Where neither leaves anything of the model, that is said instead of their difference.
    """
    stay = [
        share(
            result.outcome(name, result.judged_rank, "same"),
            groups=result.prompt_groups,
        )
        for name in (result.analysis.inits[0], SVD)
    ]
    if max(each.value for each in stay) < _BROKEN:
        return _broken(result, *stay), _worst(result)
    is_random = result.random_draws.shape[1] > 1 and "average" in result.analysis.inits
    random = [_less_than_random(result)] if is_random else []
    return (_less_than_svd(result), *random, _worst(result))


def _less_than_svd(result: "RecursionResult") -> Finding:
    init, n_shared, rank = result.analysis.inits[0], result.numbers[0], result.judged_rank
    kept = number(result.kept(init, rank), ".0%")
    other = result.outcome(SVD, rank)
    gap = _estimate(result, result.outcome(init, rank) - other)
    control = Compared("a truncated SVD of each layer", _estimate(result, other))
    note = f"{init} of {counted(n_shared, 'shared layer')}, rank {rank}: {kept} of parameters"
    measure = f"{init}, KL in nats less that of truncated SVDs with as many parameters"
    twins = result.arrays["twins"][0]
    if len(twins) < 2:
        claim = f"At {kept} of parameters, sharing costs {gap:.2g} nats of KL more than SVDs"
        claim += " (below 0: less)."
        return Finding(claim, gap, measure, control, note=note)
    more = beyond(gap, twins)
    here, there = number(gap.value, ".2g"), number(float(twins.mean()), ".2g")
    return Finding(
        f"Sharing layers {costs_than(more)} truncating them to as many parameters,"
        f" beyond untrained models: {more:.2g} nats of KL.",
        more,
        f"{measure}, beyond untrained models",
        control=control,
        kind="compares",
        note=f"{here} here, {there} in untrained models; {note}",
    )


def _broken(result: "RecursionResult", shared: Estimate, truncated: Estimate) -> Finding:
    init, n_shared, rank = result.analysis.inits[0], result.numbers[0], result.judged_rank
    kept = number(result.kept(init, rank), ".0%")
    best, name = (shared, "shared") if shared.value > truncated.value else (truncated, "truncated")
    return Finding(
        "Hardly anything is left of the model where its layers share weights, or are truncated to"
        f" as many parameters: {best:.0%} of first tokens stay.",
        best,
        f"{init} or truncated SVDs with as many parameters: share of first tokens that stay,"
        " the larger one",
        note=f"{name} layers; {init} of {counted(n_shared, 'shared layer')}, rank {rank}:"
        f" {kept} of parameters; which of two broken models has more KL says nothing",
    )


def _less_than_random(result: "RecursionResult") -> Finding:
    """Compare the loop with random assignments, by how much those differ from each other too."""
    rank, draws = result.judged_rank, result.random_draws
    own, other = result.outcome("average", rank), draws.mean(1)
    gap = _estimate(result, own - other)
    more = beyond(gap, draws.mean(0) - draws.mean())
    n_shared = counted(result.numbers[0], "shared layer")
    return Finding(
        f"Averaging layers in a loop {costs_than(more)} averaging them at random:"
        f" {more:.2g} nats of KL.",
        more,
        "average, KL in nats less that of averages over random assignments",
        control=Compared("random assignments", _estimate(result, other)),
        kind="compares",
        note=f"{n_shared}, rank {rank}; {counted(draws.shape[1], 'random draw')}, mean",
    )


def _worst(result: "RecursionResult") -> Finding:
    values = result.alone[:, 0]
    worst = picked(values, groups=result.prompt_groups, seed=result.analysis.seed)
    others = np.delete(values, worst.index, axis=1).mean(1)
    n_shared = counted(result.numbers[0], "shared layer")
    claim = f"layer {worst.index} costs most: {worst.estimate:.2g} nats of KL."
    if not worst.is_stable:
        claim = "the one that costs most on half of the prompts costs"
        claim += f" {worst.estimate:.2g} nats of KL."
    return Finding(
        f"If one layer alone is shared, {claim}",
        worst.estimate,
        f"{result.analysis.inits[0]}, KL in nats of the layer that costs most when it alone shares",
        control=Compared("the other layers, mean", _estimate(result, others)),
        note=f"{n_shared}, no low-rank term; {how_picked(worst.estimate)}{halves_pick(worst)}",
    )


def _estimate(result: "RecursionResult", values: np.ndarray) -> Estimate:
    return estimate(values, groups=result.prompt_groups, seed=result.analysis.seed)
