"""Prompts, and the built-in tasks."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from interp.errors import TaskError, unknown
from interp.files.paths import data_folder, shipped_tasks
from interp.tasks.prompts import Prompt
from interp.tasks.records import read_prompts, rows_of_file
from interp.tasks.spacing import Space, space_between
from interp.tasks.task import SHARD, Task

__all__ = ["SHARD", "Prompt", "Task", "describe_tasks", "example_of", "load_task"]


def load_task(
    name: str | Path,
    *,
    n: int | None = None,
    seed: int = 0,
    column_map: Mapping[str, str] | None = None,
    chat: bool = False,
    space: Space = "auto",
) -> Task:
    """Return a built-in task by name, or one from a file of JSON lines.

    With `n`, that many prompts are drawn at random. `column_map` maps fields of a prompt to the
    keys of a file's lines; `chat` and `space` as in `Task.from_hf`.
    """
    shipped, name = shipped_tasks(), str(name)
    if name in shipped:
        task = _shipped(name)
    elif name.endswith(".jsonl"):
        task = Task.from_jsonl(Path(name), column_map=column_map)
    else:
        raise TaskError(unknown("task", name, shipped) + ", or a .jsonl file")
    task = replace(task, chat=chat or task.chat)
    task = task if space == "auto" else task.spaced(space)
    return task if n is None else task.take(n, seed=seed)


@cache
def _shipped(name: str) -> Task:
    known = describe_tasks()[name]
    return replace(
        Task.from_jsonl(shipped_tasks()[name]), about=known["about"], needs=tuple(known["needs"])
    )


def example_of(name: str) -> str:
    """Return how a built-in task's first answer follows its prompt, with ␣ for a space."""
    (prompt,), _ = read_prompts(islice(rows_of_file(shipped_tasks()[name]), 1))
    if prompt.answer is None:
        return ""
    space = space_between(prompt.text, prompt.answer, prompt.space).replace(" ", "␣")
    return f"…{prompt.text[-16:]}{space}{prompt.answer}"


def describe_tasks() -> dict[str, dict[str, Any]]:
    """Map every built-in task to its subject, its needs of a tokenizer, its source and licence."""
    index: dict[str, dict[str, Any]] = json.loads(
        (data_folder() / "tasks" / "index.json").read_text(encoding="utf-8")
    )
    return index
