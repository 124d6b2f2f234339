"""How often the first hop is resolved, and how much later in wrong answers, in words."""

from typing import TYPE_CHECKING

import numpy as np

from interp.figures.words import by_sign, how_often
from interp.result import MOST_FINDINGS, Compared, Finding
from interp.stats.estimate import Estimate
from interp.stats.shares import share, share_difference
from interp.sweeps.two_hop import RIGHT, answer_groups, enough, nothing_compared

if TYPE_CHECKING:
    from interp.analyses.hop_stages.result import HopStagesResult

FIRST_HOP, IN_THE_LENS = "1 first hop resolved", "bridge in the lens at the first hop"
SAID = "answer before bridge, as said"
_CONTROL = "another prompt's bridge"


def findings_of(result: "HopStagesResult") -> tuple[Finding, ...]:
    """Return how often the first hop is resolved, by group, and how much later in failures.

    Where there is room, also how often the answer is read before the bridge.
    """
    members = enough(answer_groups(result.arrays), result.prompt_groups)
    if not members:
        return (Finding(nothing_compared(result.arrays)),)
    groups = enough({group: result.chosen(group) for group in members}, result.prompt_groups)
    if not groups:
        anyway = "in most prompts, the target prompt says the entities anyway"
        return (Finding(f"Nothing to judge: {anyway}."),)
    resolved = tuple(_first_hop(result, group) for group in groups)
    later = _later_by_the_lens(result)
    found = resolved if later is None else (*resolved, later)
    known = [group for group in groups if result.inversion(group, SAID).above_chance.has_interval]
    return (*found, *(_inversion(result, group) for group in known))[:MOST_FINDINGS]


def _inversion(result: "HopStagesResult", group: str) -> Finding:
    inversion = result.inversion(group, SAID)
    more = inversion.above_chance
    often = how_often(more, "by chance")
    return Finding(
        f"With {group}, the answer is said from an earlier layer than the bridge {often}.",
        more,
        f"share of prompts with {group} whose answer is said before the bridge, above chance",
        control=Compared("one prompt's answer, another's bridge", Estimate(inversion.chance)),
        kind="compares",
        note=f"{inversion.share:.0%} of those in which both are said",
    )


def _first_hop(result: "HopStagesResult", group: str) -> Finding:
    groups = result.groups_of(result.chosen(group))
    own, other = (
        ~np.isnan(layers)
        for layers in (
            result.layers(group, FIRST_HOP),
            result.layers(group, FIRST_HOP, kind="control"),
        )
    )
    gain = share_difference(own, other, groups=groups)
    return Finding(
        f"With {group}, the first hop is resolved {how_often(gain, _CONTROL)}.",
        gain,
        f"share of prompts with {group} whose first hop is resolved, above another prompt's",
        control=Compared(_CONTROL, share(other, groups=groups)),
        kind="compares",
        note="at any layer, for both",
    )


def _later_by_the_lens(result: "HopStagesResult") -> Finding | None:
    later = result.difference(IN_THE_LENS)
    if later is None or not later.has_interval:
        return None
    than = "in wrong answers than in right ones"
    how = by_sign(
        later,
        above=f"{later:.1f} layers later {than}.",
        below=f"{-later:.1f} layers earlier {than}.",
        unclear=f"not measurably later {than}: {later:.1f}.",
    )
    return Finding(
        f"By the lens, the bridge is at the first hop {how}",
        later,
        "layers by which the lens reads the bridge later in wrong answers than in right",
        control=Compared(RIGHT, result.mean_layer(RIGHT, IN_THE_LENS)),
        kind="compares",
        note="over the prompts in which the lens reads it",
    )
