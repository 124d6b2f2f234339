"""What a circuit's result claims."""

from typing import TYPE_CHECKING

from interp.figures.words import by_sign, listed, node_named
from interp.metrics import WORDS
from interp.numerals import number
from interp.result import Compared, Finding
from interp.stats.estimate import Estimate

if TYPE_CHECKING:
    from interp.analyses.circuit_discovery.result import CircuitDiscoveryResult

_CROSSED = "Chosen on one half of the new prompts and measured on the other, both ways."
_SAME = "Chosen on the new prompts that it is measured on: one group has no halves."


def findings_of(result: "CircuitDiscoveryResult") -> tuple[Finding, ...]:
    """Return what the smallest faithful circuit keeps, against random paths, and the largest."""
    if result.is_absent:
        return (result.behaviour.finding(),)
    ends = [tuple(map(node_named, edge[:2])) for edge in result.whole.edges[:3]]
    largest = listed([f"{sender} → {receiver}" for sender, receiver in ends])
    edges = Finding(f"By {result.analysis.method}, the largest edges are {largest}.")
    return _kept(result), _beyond(result), edges


def _kept(result: "CircuitDiscoveryResult") -> Finding:
    what, kept = WORDS[result.analysis.metric], result.kept()
    sizes = sorted({result.circuits[at].n_edges for at in result.chosen})
    edges = f"{'–'.join(f'{n:,}' for n in sizes)} of {result.whole.n_edges:,} edges"
    claim = f"{edges} keep {kept:.0%} of {what} on prompts that did not choose them."
    if not result.is_faithful:
        claim = f"No smaller circuit tried is faithful (90–110 %); {edges} keep {kept:.0%}."
    return Finding(
        claim,
        kept,
        "share of the gap that the chosen circuit keeps",
        control=_random(result),
        rival=Compared("all other edges", result.kept("complement")),
        note=f"{result.behaviour} {_chosen(kept)}",
    )


def _beyond(result: "CircuitDiscoveryResult") -> Finding:
    draws, beyond = result.by_draw, result.beyond_random
    n_best = int((draws >= result.kept().value).sum())
    best = Estimate(float(draws.max()), n=beyond.n)
    as_much = f"{n_best} of {len(draws)} draws keep as much"
    claim = by_sign(
        beyond,
        above=f"That is {beyond:.0%} of the gap more than random paths keep; {as_much}.",
        below=f"That is {-beyond:.0%} of the gap less than random paths keep; {as_much}.",
        unclear=f"It is not shown to keep more or less than random paths: {beyond:.0%} of the gap.",
    )
    return Finding(
        claim,
        beyond,
        "share of the gap that it keeps beyond random paths",
        control=_random(result),
        rival=Compared(f"the best of {len(draws)} draws", best),
        kind="compares",
        note=f"Random paths have {number(result.shared, '.0%')} of their edges in common with it."
        f" {_chosen(beyond)}",
    )


def _chosen(estimate: Estimate) -> str:
    return _SAME if estimate.n_groups == 1 else _CROSSED


def _random(result: "CircuitDiscoveryResult") -> Compared:
    return Compared("as many edges on random paths", result.kept("random"))
