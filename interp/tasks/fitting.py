"""Which prompts of a task a tokenizer can serve."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from interp.errors import TaskError
from interp.tasks.batch import continuation, token_ids
from interp.tasks.prompts import Need, Prompt, Task

UNKNOWN = "with words that the tokenizer does not know"
SEVERAL = "whose answers are not single tokens"
UNALIGNED = "whose corrupted twin has another number of tokens"


@dataclass(frozen=True)
class Fitted:
    """The prompts of a task that a tokenizer can serve; `left_out` counts the others by reason."""

    task: Task
    left_out: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return how many prompts were left out, and why; nothing if none was."""
        return ", ".join(f"{n} prompts {reason}" for reason, n in self.left_out.items())


def fit(tokenizer: Any, task: Task) -> Fitted:
    """Return the prompts that meet the task's needs; raise TaskError, with the reasons, if none does.

    A task without needs (the user's own) is returned whole: there a prompt that cannot be used is an error.
    """
    if not task.needs:
        return Fitted(task)
    kept: list[Prompt] = []
    left_out: dict[str, int] = {}
    for prompt in task.prompts:
        reason = misfit(tokenizer, prompt, task.needs)
        if reason:
            left_out[reason] = left_out.get(reason, 0) + 1
        else:
            kept.append(prompt)
    if not kept:
        raise TaskError(f"task {task.name!r} does not fit this tokenizer: {Fitted(task, left_out)}, of {len(task)}")
    return Fitted(task.of(kept), left_out)


def misfit(tokenizer: Any, prompt: Prompt, needs: Collection[Need]) -> str:
    """Return why a prompt does not meet needs under a tokenizer; nothing if it does."""
    texts = [text for text in (prompt.text, prompt.answer, prompt.wrong, prompt.corrupted) if text is not None]
    unknown = tokenizer.unk_token_id
    if unknown is not None and any(unknown in token_ids(tokenizer, text) for text in texts):
        return UNKNOWN
    if "single_token_answer" in needs:
        for text in (prompt.text, prompt.corrupted):
            for answer in (prompt.answer, prompt.wrong):
                if text and answer and len(continuation(tokenizer, text, answer) or "??") > 1:
                    return SEVERAL
    aligned = prompt.corrupted is None or len(token_ids(tokenizer, prompt.corrupted)) == len(
        token_ids(tokenizer, prompt.text)
    )
    return UNALIGNED if "aligned_twin" in needs and not aligned else ""
