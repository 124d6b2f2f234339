"""Where hiding the first hop changes the guess more often than hiding another token, in words."""

from typing import TYPE_CHECKING

import numpy as np

from interp.figures.words import by_sign, counted, halves_pick, how_picked, points
from interp.result import Compared, Finding
from interp.stats.estimate import Estimate
from interp.stats.picked import Picked, band, picked, widened
from interp.stats.shares import share, share_difference
from interp.sweeps.two_hop import answer_groups, enough, nothing_compared

if TYPE_CHECKING:
    from interp.analyses.attention_knockout.result import AttentionKnockoutResult

QUERIES = {
    "last": "the last token",
    "subject": "its last token",
    "all": "all later tokens",
}
ELSEWHERE = "another token"


def findings_of(result: "AttentionKnockoutResult") -> tuple[Finding, ...]:
    """Return how many guesses the most critical layer changes, by group, and the last layer."""
    groups = enough(answer_groups(result.arrays), result.prompt_groups)
    if not groups:
        return (Finding(nothing_compared(result.arrays)),)
    most = [_most_critical(result, group, chosen) for group, chosen in groups.items()]
    return (*most, _last_critical(result, *next(iter(groups.items()))))


def _most_critical(result: "AttentionKnockoutResult", group: str, chosen: np.ndarray) -> Finding:
    changed, groups = result.changed_guesses(chosen), result.groups_of(chosen)
    more = changed["key"] - changed.get("elsewhere", 0.0)

    def at_most_critical(values: np.ndarray) -> Picked:
        """Return values [prompt centre] at the layer picked on the other half."""
        return picked(
            values,
            choose=lambda rows: int(more[rows].mean(0).argmax()),
            groups=groups,
            seed=result.analysis.seed,
        )

    key = at_most_critical(changed["key"])
    of_key = widened(share(key.measured, groups=groups), between=(0.0, 1.0))
    hiding = f"Hiding {result.key} from {QUERIES[result.analysis.query]}"
    claim = f"{hiding} around {f'layer {key.index}' if key.is_stable else 'one layer'} changes"
    note = f"{how_picked(of_key)}{halves_pick(key)}"
    measure = f"share of prompts with {group} whose first guess changes at the critical layer"
    if "elsewhere" not in changed:
        claim = f"{claim} the guess in {of_key:.0%} of prompts with {group}."
        return Finding(claim, of_key, measure, note=note)
    other = at_most_critical(changed["elsewhere"]).measured
    gain = widened(share_difference(key.measured, other, groups=groups), between=(-1.0, 1.0))
    than = f"guesses than hiding {ELSEWHERE}"
    how = by_sign(
        gain,
        above=f"{claim} {points(gain)} more {than}",
        below=f"{claim} {points(-gain)} fewer {than}",
        unclear=f"{hiding} changes not measurably more {than}: {points(gain)}",
    )
    return Finding(
        f"{how} ({group}).",
        gain,
        f"{measure}, above hiding {ELSEWHERE}",
        control=Compared(
            f"{ELSEWHERE} hidden", widened(share(other, groups=groups), between=(0.0, 1.0))
        ),
        kind="compares",
        note=note,
    )


def _last_critical(result: "AttentionKnockoutResult", group: str, chosen: np.ndarray) -> Finding:
    changed = result.changed_guesses(chosen)
    more = changed["key"] - changed.get("elsewhere", 0.0)
    low, _ = band(more, groups=result.groups_of(chosen), seed=result.analysis.seed)
    than = f" more often than hiding {ELSEWHERE}" if "elsewhere" in changed else ""
    critical = np.flatnonzero(low > 0)
    if not len(critical):
        return Finding(f"With {group}, hiding {result.key} changes guesses{than} at no layer.")
    last = Estimate(float(critical[-1]), n=len(more))
    return Finding(
        f"With {group}, hiding {result.key} changes guesses{than} up to layer {last:.0f}.",
        last,
        f"last layer at which hiding the key changes guesses{than}, {group}",
        note=f"layers where a max-statistic band over {counted(result.n_layers, 'layer')}"
        " lies above 0",
    )
