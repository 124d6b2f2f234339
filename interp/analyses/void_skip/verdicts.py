"""Whether a generated text gives the answer, gives another one, or gives none that could be an
answer.
"""

from collections.abc import Iterable

from interp.tasks import Prompt, Task

NO_ANSWER, WRONG, ALIAS, EXACT = range(4)


def verdict(text: str, prompt: Prompt, known: Iterable[str]) -> int:
    """Return EXACT if a text begins with the answer, ALIAS if with the answer or an alias in any
    case.

    Otherwise WRONG if it begins with another of the `known` names, and NO_ANSWER if with none: a
    failure of format, which says nothing about what the model knows. A name ends where a word does.
    """
    said = text.strip()
    if prompt.answer and _begins(said, prompt.answer):
        return EXACT
    folded = said.casefold()
    right = [name for name in (prompt.answer, *prompt.aliases) if name]
    if any(_begins(folded, name.casefold()) for name in right):
        return ALIAS
    return WRONG if any(_begins(folded, name.casefold()) for name in known) else NO_ANSWER


def known_names(task: Task) -> dict[str, tuple[str, ...]]:
    """Map every prompt's id to what counts as an answer: its choices or, without any, all answers
    of the task.
    """
    answers = {n for p in task.prompts for n in (p.answer, p.wrong, *p.aliases) if n}
    every = tuple(sorted(answers))
    return {prompt.id: prompt.choices or every for prompt in task.prompts}


def _begins(text: str, name: str) -> bool:
    name = name.strip()
    return text.startswith(name) and not text[len(name) : len(name) + 1].isalnum()
