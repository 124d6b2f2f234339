"""Whether gradients rank units as zeroing them does, in words."""

from typing import TYPE_CHECKING

from interp.figures.words import by_sign, counted
from interp.numerals import number
from interp.result import Compared, Finding
from interp.stats.estimate import Estimate
from interp.stats.shares import share

if TYPE_CHECKING:
    from interp.analyses.unit_importance.result import UnitImportanceResult

_SIZE = "the size of what a unit writes"
_LEAST = 0.1  # of chance's loss, by which the model's is lower where it predicts anything
_FEW = "Too few units were zeroed to say how well they are ranked."
_ALIKE = "mean over kinds of units"
_MEASURE = "rank correlation of |Σ θ ∂L/∂θ| with the rise of the loss without a unit"


def findings_of(result: "UnitImportanceResult") -> tuple[Finding, ...]:
    """Return the agreement with zeroing, that beyond the size of outputs, and the stability.

    Where most prompts are predicted no better than by chance, nothing can matter for them; where
    too few units of every kind were zeroed, there is no agreement.
    """
    known = _above_chance(result)
    if known.value <= 0.5:
        return (_nothing(known), _stability(result))
    if not result.claimed_kinds:
        return (_stability(result),)
    return (_beyond(result), _agreement(result), _stability(result))


def _above_chance(result: "UnitImportanceResult") -> Estimate:
    loss, chance = result.arrays["loss"], result.arrays["chance"]
    return share(loss < (1 - _LEAST) * chance, groups=result.prompt_groups)


def _nothing(known: Estimate) -> Finding:
    return Finding(
        f"Only {known:.0%} of the prompts are predicted better than by guessing, so there is"
        " nothing to rank units by.",
        known,
        "share of prompts whose loss is lower than that of guessing among all tokens",
        note=f"By at least {number(_LEAST, '.0%')}; more than half of them are needed.",
    )


def _note(result: "UnitImportanceResult") -> str:
    n_text = int(result.arrays["is_text"].sum())
    of = f"; {counted(n_text, 'prompt')} without an answer count by their text" if n_text else ""
    few = [kind for kind in result.drawn if kind not in result.claimed_kinds]
    less = f"; without {' and '.join(few)}, of which there are too few" if few else ""
    return f"Intervals redraw prompts and units{less}{of}."


def _beyond(result: "UnitImportanceResult") -> Finding:
    beyond = result.agreement("importance", beyond="size")
    than = f"with zeroing units than {_SIZE} does: rank correlation"
    claim = by_sign(
        beyond,
        above=f"agree more {than} {beyond:.2f} higher.",
        below=f"agree less {than} {-beyond:.2f} lower.",
        unclear=f"are not shown to agree more or less {than} {beyond:.2f} higher.",
    )
    return Finding(
        f"Gradients {claim}",
        beyond,
        f"{_MEASURE}, beyond sizes', {_ALIKE}",
        control=Compared(_SIZE, result.agreement("size")),
        kind="compares",
        note=_note(result),
    )


def _agreement(result: "UnitImportanceResult") -> Finding:
    agreement = result.agreement("importance")
    return Finding(
        f"Gradients and zeroing rank units with a rank correlation of {agreement:.2f}.",
        agreement,
        f"{_MEASURE}, {_ALIKE}",
        control=Compared(_SIZE, result.agreement("size")),
        rival=Compared("the gradient with its sign", result.agreement("first order")),
        note=_note(result),
    )


def _stability(result: "UnitImportanceResult") -> Finding:
    stable = result.stability("module")
    n = len(result.arrays["loss"])
    return Finding(
        "Gradients on two halves of the prompts rank modules with a correlation of"
        f" {number(stable, '.2f')}.",
        Estimate(stable, n=n),
        "rank correlation of the importances of modules on two halves of the prompts",
        note="Mean over 20 splits." if result.claimed_kinds else f"Mean over 20 splits. {_FEW}",
    )
