"""What a run would take: a table with one line for each analysis, and what it leaves out."""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from interp.cli.terminal import note
from interp.figures.words import duration

if TYPE_CHECKING:
    from interp.runs import CellCost


def print_plan(costs: "Sequence[CellCost]", console: Console, *, n_workers: int = 1) -> None:
    """Print a table for each task on a model; what is skipped or shrunk follows on stderr."""
    for _, each in groupby(costs, key=lambda cost: (cost.cell.model, cost.cell.task)):
        _print_task([*each], console, n_workers)


def _print_task(costs: "Sequence[CellCost]", console: Console, n_workers: int) -> None:
    planned = [cost for cost in costs if not cost.why_not]
    if planned:
        cell = planned[0].cell
        title = f"{cell.model} · {cell.task}"
        titled = f"{title}: {planned[0].example}" if planned[0].example else title
        console.print(titled, highlight=False, soft_wrap=True, markup=False)
        console.print(_table(planned, n_workers))
    for cost in costs:
        if cost.why_not:
            note(f"{cost.cell.name} is skipped: {cost.why_not}")
        elif cost.shrunk:
            note(f"{cost.cell.name} is shrunk: {cost.shrunk}")
        if cost.left_out and not cost.why_not:
            note(f"{cost.cell.name} leaves out: {cost.left_out}")


def _table(costs: "Sequence[CellCost]", n_workers: int) -> Table:
    table = Table("analysis", box=None, pad_edge=False)
    is_read = any(cost.read_mb for cost in costs)
    names = ("prompts", "shards", "forwards", "time", "memory", "disk")
    for name in (*names, "read, at least") if is_read else names:
        table.add_column(name, justify="right")
    for cost in costs:
        counts = [str(cost.n_prompts), str(cost.n_shards), f"{cost.forwards:.0f}"]
        sizes = [_size(cost.memory_mb), _size(cost.disk_mb)]
        sizes += [_size(cost.read_mb)] if is_read else []
        table.add_row(cost.cell.name, *counts, _time(cost.seconds, n_workers), *sizes)
    known = [cost.seconds for cost in costs if cost.seconds is not None]
    seconds = sum(known) if len(known) == len(costs) else None
    forwards = f"{sum(cost.forwards for cost in costs):.0f}"
    most = _size(max(cost.memory_mb for cost in costs))
    sizes = [most, _size(float(sum(cost.disk_mb for cost in costs)))]
    sizes += [_size(float(sum(cost.read_mb for cost in costs)))] if is_read else []
    table.add_row("in all", "", "", forwards, _time(seconds, n_workers), *sizes)
    return table


def _time(seconds: float | None, n_workers: int) -> str:
    return "–" if seconds is None else duration(seconds / n_workers)


def _size(mb: float) -> str:
    return f"{mb / 1000:.1f} GB" if mb >= 1000 else f"{mb:.1f} MB" if mb < 10 else f"{mb:.0f} MB"
