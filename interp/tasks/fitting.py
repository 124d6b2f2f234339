"""Which prompts of a task a model can be fed."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from interp.errors import TaskError
from interp.figures.words import counted
from interp.tasks.chat import in_template
from interp.tasks.encoding import NO_LIMITS, UNKNOWN, Encoded, Encoder, Limits
from interp.tasks.prompts import Prompt
from interp.tasks.task import Need, Task

SEVERAL = "whose answers are not single tokens"
UNALIGNED = "whose corrupted twin has another number of tokens"


@dataclass(frozen=True, repr=False)
class Fitted:
    """The prompts of a task that a tokenizer can serve; `left_out` counts the others by reason."""

    task: Task
    left_out: dict[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Fitted({self.task!r}; left out: {str(self) or 'none'})"

    def __str__(self) -> str:
        """Return how many prompts were left out, and why; nothing if none was."""
        return ", ".join(f"{counted(n, 'prompt')} {reason}" for reason, n in self.left_out.items())


def fit(tokenizer: Any, task: Task, *, limits: Limits = NO_LIMITS) -> Fitted:
    """Return the prompts that a model can be fed and that meet the task's needs.

    Raises TaskError if there are none. Left out, and counted by reason, is what no analysis can
    use: unknown words, no tokens, more tokens than the model reads, ids that it does not have. A
    user's texts are put into the tokenizer's chat template first.
    """
    if task.chat:
        task = in_template(tokenizer, task)
    reasons = misfits(tokenizer, task.prompts, task.needs, limits=limits)
    left_out = {
        reason: reasons.count(reason) for reason in sorted({*reasons} - {""}, key=reasons.index)
    }
    kept = [prompt for prompt, reason in zip(task.prompts, reasons, strict=True) if not reason]
    if not kept:
        raise TaskError(
            f"task {task.name!r} does not fit this tokenizer:"
            f" {Fitted(task, left_out)}, of {len(task)}"
        )
    return Fitted(task.of(kept), left_out)


def misfits(
    tokenizer: Any, prompts: Sequence[Prompt], needs: Sequence[Need], *, limits: Limits = NO_LIMITS
) -> list[str]:
    """Return for every prompt why it cannot be used or does not meet needs; "" if it does."""
    encoder = Encoder(tokenizer, limits)
    twins = [
        replace(p, text=p.corrupted, corrupted=None)
        for p in prompts
        if p.corrupted and encoder.is_text(p)
    ]
    # where a subject stands decides nothing here
    of_twins = encoder.encode(twins, subjects=False) if needs else []
    twin_of = {each.prompt.id: each for each in of_twins}
    encoded = encoder.encode(prompts, subjects=False)
    return [_misfit(each, twin_of.get(each.prompt.id), needs) for each in encoded]


def _misfit(encoded: Encoded, twin: Encoded | None, needs: Sequence[Need]) -> str:
    """Return why a prompt, or its twin, cannot be used or does not meet needs."""
    if encoded.misfit or not needs:
        return encoded.misfit
    both = [encoded] if twin is None else [encoded, twin]
    if any(
        each.misfit == UNKNOWN or any("does not know" in why for why in each.why.values())
        for each in both
    ):
        return UNKNOWN
    if "single_token_answer" in needs and any(_has_long_answer(each) for each in both):
        return SEVERAL
    if (
        "aligned_twin" in needs
        and encoded.prompt.corrupted is not None
        and encoded.corrupted is None
    ):
        return UNALIGNED
    return ""


def _has_long_answer(encoded: Encoded) -> bool:
    """Tell whether there is an answer that is not one token."""
    asked = ((encoded.prompt.answer, encoded.answer), (encoded.prompt.wrong, encoded.wrong))
    return any(
        given is not None and (tokens is None or len(tokens) != 1) for given, tokens in asked
    )
