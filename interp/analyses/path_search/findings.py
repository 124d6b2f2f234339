"""What `path_search` claims."""

from typing import TYPE_CHECKING

from interp.analyses.path_search.kinds import FIXED, RANDOM, SAMPLED, SEARCH, SHUFFLED
from interp.figures.words import counted
from interp.numerals import number
from interp.result import Compared, Finding
from interp.stats.estimate import Estimate
from interp.stats.groups import FEWEST
from interp.stats.shares import share, share_difference

if TYPE_CHECKING:
    from interp.analyses.path_search.result import PathSearchResult


def findings_of(result: "PathSearchResult") -> tuple[Finding, ...]:
    """Return what search gains on random paths: wrong answers, shorter paths, paraphrases."""
    findings = [_repaired(result), _shorter(result), _transfer(result)]
    known = [finding for finding in findings if finding is not None]
    return tuple(known) or (_nothing(result),)


def _nothing(result: "PathSearchResult") -> Finding:
    n = counted(len(result.is_right), "prompt")
    return Finding(f"Too few to compare: {n}; {FEWEST} with right, or wrong, answers are needed.")


def _repaired(result: "PathSearchResult") -> Finding | None:
    wrong = ~result.is_right
    if wrong.sum() < FEWEST:
        return None
    groups = result.groups_of(wrong)
    rates = {kind: share(values[wrong], groups=groups) for kind, values in result.reached.items()}
    one, other = (result.reached[kind][wrong] for kind in (SEARCH, RANDOM))
    gain = share_difference(one, other, groups=groups)
    rivals = [kind for kind in (FIXED, SAMPLED, SHUFFLED) if kind in rates]
    best = max(rivals, key=lambda kind: rates[kind].value)
    return Finding(
        f"Search makes {number(rates[SEARCH].value, '.0%')} of the wrong answers right,"
        f" {_than_random(gain, rates[RANDOM])}.",
        gain,
        "wrong answers made right by search less those made right by random paths, share",
        control=Compared(RANDOM, rates[RANDOM]),
        rival=Compared(best, rates[best]),
        kind="compares",
        note=f"{_tries_named(result)}; {counted(int(wrong.sum()), 'wrong answer')}",
    )


def _tries_named(result: "PathSearchResult") -> str:
    return f"each with {result.analysis.n_simulations} tries"


def _shorter(result: "PathSearchResult") -> Finding | None:
    right = result.is_right
    if right.sum() < FEWEST:
        return None
    groups = result.groups_of(right)
    shorter = {kind: (length < result.n_layers)[right] for kind, length in result.lengths.items()}
    rates = {kind: share(values, groups=groups) for kind, values in shorter.items()}
    gain = share_difference(shorter[SEARCH], shorter[RANDOM], groups=groups)
    return Finding(
        f"Search has a shorter path for {number(rates[SEARCH].value, '.0%')} of the right answers,"
        f" {_than_random(gain, rates[RANDOM])}.",
        gain,
        "right answers with a shorter path, by search less by random paths, share",
        control=Compared(RANDOM, rates[RANDOM]),
        kind="compares",
        note=_tries_named(result),
    )


def _transfer(result: "PathSearchResult") -> Finding | None:
    answered = result.arrays["transfer"]
    known = ~result.is_right & (answered >= 0).all(1)
    if known.sum() < FEWEST:
        return None
    groups = result.groups_of(known)
    clean, own, random = (share(answered[known, i], groups=groups) for i in range(3))
    return Finding(
        "Along the path that repairs a prompt,"
        f" {number(own.value, '.0%')} of paraphrases are answered.",
        own,
        "paraphrases of repaired prompts answered along the same path, share",
        control=Compared("the ordinary path", clean),
        rival=Compared("their random paths", random),
        note="prompts that search and random paths repair",
    )


def _than_random(gain: Estimate, random: Estimate) -> str:
    """Return how much more, or fewer, that is than by as many random paths."""
    if not gain.excludes():
        return f"not measurably more than as many random paths ({number(random.value, '.0%')})"
    more = "more" if gain.value > 0 else "fewer"
    return f"{100 * abs(gain.value):.0f} points {more} than as many random paths do"
