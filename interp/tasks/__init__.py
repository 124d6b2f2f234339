"""Prompts, and the built-in tasks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from interp.errors import TaskError, unknown
from interp.paths import data_folder, shipped_tasks
from interp.tasks.prompts import SHARD, Prompt, Task

__all__ = ["SHARD", "Prompt", "Task", "describe_tasks", "load_task"]


def load_task(name: str | Path, *, n: int | None = None, seed: int = 0) -> Task:
    """Return a built-in task by name, or one from a file of JSON lines; with `n`, that many prompts at random."""
    shipped, name = shipped_tasks(), str(name)
    if name in shipped:
        known = describe_tasks()[name]
        task = replace(Task.from_jsonl(shipped[name]), about=known["about"], needs=tuple(known["needs"]))
    elif name.endswith(".jsonl"):
        task = Task.from_jsonl(Path(name))
    else:
        raise TaskError(unknown("task", name, shipped) + ", or a .jsonl file")
    return task if n is None else task.take(n, seed=seed)


def describe_tasks() -> dict[str, dict[str, Any]]:
    """Map every built-in task to what it is about, what it needs of a tokenizer, its source and licence."""
    index: dict[str, dict[str, Any]] = json.loads((data_folder() / "tasks" / "index.json").read_text(encoding="utf-8"))
    return index
