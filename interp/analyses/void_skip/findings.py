"""What skipping voids costs, in words."""

from dataclasses import dataclass

from interp.analyses.void_skip.scores import ACCURACY, TEXT, sign_of
from interp.analyses.void_skip.texts import NO_KNOWN_ANSWER
from interp.figures.words import PICKED, points
from interp.metrics import OUTCOMES
from interp.result import Compared, Finding
from interp.stats.estimate import Estimate

CONTROL = "random layers"
_HOW = {
    "read-out": "Read out after the last layer that is not void",
    "masked stream": "With void layers masked as the stream meets them",
    "two-pass": "With void layers bypassed in a second pass",
    "two-pass, keys kept": "With void layers bypassed but their keys kept",
}
_WHAT = {NO_KNOWN_ANSWER: "texts lack a known answer"}
_MEASURES = {ACCURACY: OUTCOMES["accuracy"], NO_KNOWN_ANSWER: "texts that lack a known answer"}
_NOTE = f"the rival {PICKED}"


@dataclass(frozen=True)
class Comparison:
    """A score with voids skipped, next to a control's, a rival's and the full model's.

    `gain` is by how much voids are better than the control.
    """

    score: str
    evaluation: str
    voids: Estimate
    control: Compared
    rival: Compared
    full: Estimate
    gain: Estimate


def finding_of(comparison: Comparison) -> Finding:
    """Return by how much a share is better with voids skipped than with random layers.

    Surprise is only described: that of an untrained model differs too.
    """
    score, evaluation = comparison.score, comparison.evaluation
    control, rival = comparison.control, comparison.rival
    if score == TEXT:
        return Finding(
            f"{_HOW[evaluation]}, surprise is {comparison.voids:.2f} nats per token.",
            comparison.voids,
            f"{TEXT}, {evaluation}",
            control,
            rival,
            note=f"of the full model: {comparison.full:.2f}; {_NOTE}",
        )
    shares = f"with voids skipped: {comparison.voids:.0%}; of the full model: {comparison.full:.0%}"
    return Finding(
        f"{_HOW[evaluation]}, {_compared(score, comparison.gain)}",
        comparison.gain,
        f"{_MEASURES.get(score, score)}, {evaluation}: gain over random layers of skipping voids",
        control,
        rival,
        "compares",
        note=f"{shares}; {_NOTE}",
    )


def _compared(score: str, gain: Estimate) -> str:
    """Return whether, and by how much, a share is better than with random layers."""
    what = _WHAT.get(score, "answers are right")
    than = "than with equally many random layers skipped"
    more, fewer = ("more", "fewer")[:: sign_of(score)]
    if not gain.excludes():
        return f"not measurably {more} {what} {than}: {points(gain)}."
    if gain.value > 0:
        return f"{points(gain)} {more} {what} {than}."
    return f"{points(-gain)} {fewer} {what} {than}."
