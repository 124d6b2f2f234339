"""Prompts, and the built-in tasks."""

from pathlib import Path

from interp.errors import TaskError, unknown
from interp.paths import shipped_tasks
from interp.tasks.prompts import SHARD, Prompt, Task

__all__ = ["SHARD", "Prompt", "Task", "load_task"]


def load_task(name: str, *, n: int | None = None, seed: int = 0) -> Task:
    """Return a built-in task by name, or one from a file of JSON lines; with `n`, that many prompts at random."""
    shipped = shipped_tasks()
    if name in shipped:
        task = Task.from_jsonl(shipped[name])
    elif name.endswith(".jsonl"):
        task = Task.from_jsonl(Path(name))
    else:
        raise TaskError(unknown("task", name, shipped) + ", or a .jsonl file")
    return task if n is None else task.take(n, seed=seed)
