"""What skipping voids costs, in words."""

from dataclasses import dataclass

from interp.analyses.void_skip.scores import TEXT
from interp.analyses.void_skip.texts import NO_KNOWN_ANSWER
from interp.result import Compared, Finding
from interp.stats.estimate import Estimate
from interp.stats.paired import PairedDifference

_HOW = {
    "read-out": "Read out behind the last layer that is not void",
    "masked stream": "With void layers masked as the stream meets them",
    "two-pass": "With void layers bypassed in a second pass",
    "two-pass, keys kept": "With void layers bypassed but their keys kept",
}
_P = 0.05  # and an interval without 0: only then is a difference called clear


@dataclass(frozen=True)
class Comparison:
    """A score with voids skipped, next to the best control's and the full model's.

    `gain` is by how much voids are better than the control.
    """

    score: str
    evaluation: str
    voids: Estimate
    control: Compared
    full: Estimate
    gain: PairedDifference

    @property
    def verdict(self) -> str:
        """Return in words how voids compare with the control."""
        if self.gain.p >= _P or not self.gain.estimate.excludes():
            return "not clearly different from"
        return "clearly better than" if self.gain.estimate.value > 0 else "clearly worse than"


def finding_of(comparison: Comparison) -> Finding:
    """Return the score with voids skipped, and whether it differs from the control's."""
    return Finding(
        f"{_HOW[comparison.evaluation]}, {_score(comparison)}:"
        f" {comparison.verdict} the best control.",
        comparison.voids,
        f"{comparison.score} with voids skipped, {comparison.evaluation}",
        control=comparison.control,
        rival=Compared("the full model", comparison.full),
    )


def _score(comparison: Comparison) -> str:
    if comparison.score == TEXT:
        return f"surprise is {comparison.voids:.2f} nats per token"
    if comparison.score == NO_KNOWN_ANSWER:
        return f"{comparison.voids:.0%} of texts name no known answer, a failure of format"
    return f"{comparison.voids:.0%} of the answers are right"
