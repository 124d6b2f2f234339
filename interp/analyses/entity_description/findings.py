"""How much more often a vector says its entities than another's, and from which layer on."""

from typing import TYPE_CHECKING

import numpy as np

from interp.figures.words import how_often
from interp.result import Compared, Finding
from interp.stats.estimate import estimate_of
from interp.stats.shares import share, share_difference
from interp.sweeps.two_hop import answer_groups, enough, nothing_compared

if TYPE_CHECKING:
    from interp.analyses.entity_description.result import EntityDescriptionResult

FROM = {"subject": "first-hop token", "last": "last token"}


def findings_of(result: "EntityDescriptionResult") -> tuple[Finding, ...]:
    """Return how often vectors say the bridge, and the answer, and from which layer on."""
    groups = list(enough(answer_groups(result.arrays), result.prompt_groups))
    if not groups:
        return (Finding(nothing_compared(result.arrays)),)
    first, *more = result.drawn
    asked = [first, *more[::-1][:1]]
    return *(_finding(result, groups[0], *each) for each in asked), _since(
        result, groups[0], *asked[-1]
    )


def _finding(result: "EntityDescriptionResult", group: str, position: str, entity: str) -> Finding:
    own, other = result.is_said(group, position, entity)
    whose = f"With {group}, the {FROM[position]}'s vector"
    groups = result.groups_of(result.chosen(group, entity))
    said, of_other = (each.any((1, 2)) for each in (own, other))
    gain = share_difference(said, of_other, groups=groups)
    if not gain.has_interval:
        anyway = f"in most prompts, the target prompt says the {entity} anyway"
        return Finding(f"{whose} cannot be judged: {anyway}.")
    often = how_often(gain, f"another prompt's {entity}")
    return Finding(
        f"{whose} says the {entity} {often}.",
        gain,
        f"share of prompts with {group} whose {FROM[position]}'s vector says the {entity},"
        " above another prompt's",
        control=Compared("another prompt's entity", share(of_other, groups=groups)),
        kind="compares",
        note="any pair of layers, for both",
    )


def _since(result: "EntityDescriptionResult", group: str, position: str, entity: str) -> Finding:
    """Return from which layer on half of the vectors say the entity."""
    said = result.is_said(group, position, entity)[0].any(2)
    whose = f"With {group}, half of the {FROM[position]}'s vectors say the {entity}"
    since = estimate_of(
        _half_from,
        said,
        groups=result.groups_of(result.chosen(group, entity)),
        seed=result.analysis.seed,
    )
    if not np.isfinite(since.value):
        return Finding(f"{whose} at no layer.")
    return Finding(
        f"{whose} from layer {since:.0f} on.",
        since,
        f"first layer at which half of the {FROM[position]}'s vectors say the {entity}, {group}",
    )


def _half_from(rates: np.ndarray) -> float:
    """Return the first layer with a rate of at least a half; infinite where there is none."""
    return float(np.argmax(rates >= 0.5)) if (rates >= 0.5).any() else np.inf
