"""Which prompts of a task a tokenizer can serve."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from interp.errors import TaskError
from interp.tasks.batch import continuations, token_rows
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


def in_template(tokenizer: Any, task: Task) -> Task:
    """Return a chat task as plain texts that end where the model is to answer; raise TaskError without a template."""
    if not getattr(tokenizer, "chat_template", None):
        raise TaskError(f"task {task.name!r} is a chat; this tokenizer has no chat template")

    def said(text: str) -> str:
        message = [{"role": "user", "content": text}]
        whole: str = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        adds_bos = tokenizer.bos_token and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        return whole.removeprefix(tokenizer.bos_token) if adds_bos else whole

    def of(prompt: Prompt) -> Prompt:
        twin = None if prompt.corrupted is None else said(prompt.corrupted)
        return replace(prompt, text=said(prompt.text), corrupted=twin)

    related = {key: {what: of(prompt) for what, prompt in others.items()} for key, others in task.related.items()}
    return replace(task, prompts=tuple(map(of, task.prompts)), related=related, chat=False)


def fit(tokenizer: Any, task: Task) -> Fitted:
    """Return the prompts that meet the task's needs; raise TaskError, with the reasons, if none does.

    A task without needs (the user's own) is returned whole: there a prompt that cannot be used is an error. What a user
    says is put into the tokenizer's chat template first.
    """
    if task.chat:
        task = in_template(tokenizer, task)
    if not task.needs:
        return Fitted(task)
    reasons = misfits(tokenizer, task.prompts, task.needs)
    left_out = {reason: reasons.count(reason) for reason in (UNKNOWN, SEVERAL, UNALIGNED) if reason in reasons}
    kept = [prompt for prompt, reason in zip(task.prompts, reasons, strict=True) if not reason]
    if not kept:
        raise TaskError(f"task {task.name!r} does not fit this tokenizer: {Fitted(task, left_out)}, of {len(task)}")
    return Fitted(task.of(kept), left_out)


def misfits(tokenizer: Any, prompts: Sequence[Prompt], needs: Sequence[Need]) -> list[str]:
    """Return for every prompt why it does not meet needs under a tokenizer; nothing for one that does."""
    reasons = [""] * len(prompts)
    texts = _rows(tokenizer, prompts, "text")
    twins = _rows(tokenizer, prompts, "corrupted")
    if "aligned_twin" in needs:
        for i, twin in twins.items():
            if len(twin) != len(texts[i]):
                reasons[i] = UNALIGNED
    if "single_token_answer" in needs:
        for i in _with_long_answers(tokenizer, prompts):
            reasons[i] = SEVERAL
    unknown = tokenizer.unk_token_id
    if unknown is not None:
        for found in (texts, twins, _rows(tokenizer, prompts, "answer"), _rows(tokenizer, prompts, "wrong")):
            for i in [i for i, row in found.items() if unknown in row]:
                reasons[i] = UNKNOWN
    return reasons


def _rows(tokenizer: Any, prompts: Sequence[Prompt], what: str) -> dict[int, list[int]]:
    """Map the number of every prompt that has this field to its tokens."""
    given = {i: getattr(prompt, what) for i, prompt in enumerate(prompts) if getattr(prompt, what) is not None}
    return dict(zip(given, token_rows(tokenizer, list(given.values())), strict=True))


def _with_long_answers(tokenizer: Any, prompts: Sequence[Prompt]) -> set[int]:
    """Return the numbers of prompts with an answer that is not one token behind the text and behind its twin."""
    found: set[int] = set()
    for text, answer in product(("text", "corrupted"), ("answer", "wrong")):
        asked = {i: (getattr(prompt, text), getattr(prompt, answer)) for i, prompt in enumerate(prompts)}
        asked = {i: pair for i, pair in asked.items() if None not in pair}
        follow = continuations(tokenizer, [pair[0] for pair in asked.values()], [pair[1] for pair in asked.values()])
        found |= {i for i, tokens in zip(asked, follow, strict=True) if len(tokens) != 1}
    return found
