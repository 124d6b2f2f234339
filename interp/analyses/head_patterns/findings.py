"""What heads' patterns let one claim: the head that a task needs, induction, and the sink."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from interp.analyses.head_patterns.targets import BEHIND, COPIES, FIRST, READINGS, SOURCE, SUBJECT
from interp.figures.words import head_named, how_picked, points
from interp.result import Compared, Finding
from interp.stats.estimate import Estimate, estimate
from interp.stats.picked import Picked, picked, ranked

if TYPE_CHECKING:
    from interp.analyses.head_patterns.result import HeadPatternsResult

_SAID = {SOURCE: "the answer's earlier copy", SUBJECT: "the subject"}
_ALIKE = "attention to everything alike"


@dataclass(frozen=True)
class Claims:
    """Findings of a result."""

    result: "HeadPatternsResult"

    @property
    def target(self) -> str | None:
        """Return what the last token has to read: the answer's copy or the subject, if any."""
        return next((t for t in (SOURCE, SUBJECT) if self.result.has(t).mean() >= 0.5), None)

    def findings(self) -> tuple[Finding, ...]:
        """Return one to three findings."""
        of_task = [] if self.target is None else [self._task(self.target)]
        return (*of_task, self._induction(), self._sink())

    def _task(self, target: str) -> Finding:
        has, values = self.result.has(target), _flat(self.result.reading(target))
        most, second = (self._pick(values, has, rank=rank) for rank in (0, 1))
        next_one = "the second" + f", {self._at(second.index)}" * second.is_stable
        alike = self.result.uniform[has, READINGS.index(target)]
        return Finding(
            f"{self._named(most)} gives {most.estimate:.0%} of the last token's attention to"
            f" {_SAID[target]}.",
            most.estimate,
            f"attention from the last token to {_SAID[target]}, of the head that gives it most",
            control=Compared(_ALIKE, self._estimate(alike, has)),
            rival=Compared(next_one, second.estimate),
            note=how_picked(most.estimate),
        )

    def _induction(self) -> Finding:
        at, everyone = COPIES.index(BEHIND), np.ones(len(self.result.readings), bool)
        said, other = (_flat(x[:, at]) for x in (self.result.repeated, self.result.unrelated))
        choose = ranked(said - other)
        beyond = self._pick(said - other, everyone, choose=choose)
        alone, control = (self._pick(x, everyone, choose=choose).estimate for x in (said, other))
        head, where = self._named(beyond), "the token after an earlier copy"
        claim = f"No head is shown to give more attention to {where} than after unrelated tokens:"
        claim += f" {points(beyond.estimate)} at most."
        if beyond.estimate.excludes() and beyond.estimate.value > 0:
            claim = (
                f"{head} gives {where} {points(beyond.estimate)} more attention than after"
                " unrelated tokens."
            )
        return Finding(
            claim,
            beyond.estimate,
            "attention to the token after an earlier copy, beyond unrelated tokens, of the head"
            " that gives it most",
            control=Compared("after unrelated tokens", control),
            kind="compares",
            note=f"{alone:.0%} in all; {how_picked(beyond.estimate)}",
        )

    def _sink(self) -> Finding:
        everyone = np.ones(len(self.result.readings), bool)
        to_first = self._estimate(_flat(self.result.reading(FIRST)).mean(1), everyone)
        alike = self.result.uniform[:, READINGS.index(FIRST)]
        return Finding(
            f"The mean head gives {to_first:.0%} of its attention to the first token.",
            to_first,
            "attention to the first token, mean over heads",
            control=Compared(_ALIKE, self._estimate(alike, everyone)),
        )

    def _pick(self, values: np.ndarray, has: np.ndarray, **how: object) -> Picked:
        """Return values [prompt head] of the head with the largest, or the `rank`-th after it."""
        choose = how.get("choose") or ranked(values, int(str(how.get("rank", 0))))
        groups, seed = self.result.groups_of(has), self.result.analysis.seed
        return picked(values, choose=choose, groups=groups, seed=seed)  # type: ignore[arg-type]

    def _estimate(self, values: np.ndarray, has: np.ndarray) -> Estimate:
        groups, seed = self.result.groups_of(has), self.result.analysis.seed
        return estimate(values, groups=groups, seed=seed)

    def _named(self, most: Picked) -> str:
        if not most.is_stable:
            return "The head that is largest on half of the prompts"
        return self._at(most.index)

    def _at(self, index: int) -> str:
        return head_named(*divmod(index, self.result.n_heads))


def _flat(values: np.ndarray) -> np.ndarray:
    """Return values [prompt layer head] as [prompt layer*head]."""
    return values.reshape(len(values), -1)
