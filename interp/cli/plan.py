"""What a run would take: a table with one line for each analysis, and what it leaves out."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from interp.cli.terminal import note, out, say, say_document
from interp.figures.words import counted, duration

if TYPE_CHECKING:
    from interp.runs import CellCost, Study
    from interp.runs.outlook import ModelOutlook, Outlook


def plan(study: "Study", assume: str, *, n_workers: int, never_loads: bool, as_json: bool) -> None:
    """Print what a study would cost, timed on models that are loaded, estimated for all others."""
    from interp.runs import estimate_costs
    from interp.runs.machines import Assumptions
    from interp.runs.outlook import outlooks, why_without

    assumed = Assumptions.of(assume)
    why = {
        name: "as asked" if never_loads else why_without(name)
        for name in dict.fromkeys(study.models)
    }
    timed = tuple(name for name in study.models if not why[name])
    costs = estimate_costs(replace(study, models=timed), n_workers=n_workers) if timed else []
    large = tuple(name for name in study.models if why[name])
    estimated = outlooks(replace(study, models=large), assumed) if large else []
    if as_json:
        said = [cost.to_json() for cost in costs]
        say_document("plan", timed=said, estimated=[each.to_json() for each in estimated])
        return
    print_plan(costs, out, n_workers=n_workers)
    for each in estimated:
        print_outlook(each, why[each.model], out)
    if estimated:
        measured = ", ".join(assumed.measured_here)
        here = f"; measured here: {measured}" if measured else ""
        note(f"times are arithmetic, good to a factor of two; --assume changes what it is of{here}")
        if study.budget is not None:
            note("they are of all prompts: a budget shrinks nothing before a model is loaded")


def print_plan(costs: "Sequence[CellCost]", console: Console, *, n_workers: int = 1) -> None:
    """Print a table for each task on a model; what is skipped or shrunk follows on stderr."""
    for _, each in groupby(costs, key=lambda cost: (cost.cell.model, cost.cell.task)):
        _print_task([*each], console, n_workers)


def _print_task(costs: "Sequence[CellCost]", console: Console, n_workers: int) -> None:
    from interp.stats.groups import FEWEST

    planned = [cost for cost in costs if not cost.why_not]
    if planned:
        cell = planned[0].cell
        title = f"{cell.model} · {cell.task}"
        titled = f"{title}: {planned[0].example}" if planned[0].example else title
        console.print(titled, highlight=False, soft_wrap=True, markup=False)
        console.print(_table(planned, n_workers))
        if (n := max(cost.n_prompts for cost in planned)) < FEWEST:
            note(f"{counted(n, 'prompt')}: too few for intervals, which need {FEWEST}")
    skipped: dict[str, list[str]] = {}
    for cost in costs:
        if cost.why_not:
            skipped.setdefault(cost.why_not, []).append(cost.cell.name)
    for why, names in skipped.items():
        note(f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} skipped: {why}")
    for cost in costs:
        if cost.shrunk and not cost.why_not:
            note(f"{cost.cell.name} is shrunk: {cost.shrunk}")
        if cost.left_out and not cost.why_not:
            note(f"{cost.cell.name} leaves out: {cost.left_out}")


def _table(costs: "Sequence[CellCost]", n_workers: int | None = None) -> Table:
    """Return what analyses take; their time is that of so many workers, if it is known."""
    table = Table("analysis", box=None, pad_edge=False)
    is_timed, is_read = n_workers is not None, any(cost.read_mb for cost in costs)
    times, reads = ["time"] * is_timed, ["read, at least"] * is_read
    for name in ("prompts", "shards", "forwards", *times, "memory", "disk", *reads):
        table.add_column(name, justify="right")

    def add(name: str, counts: list[str], of: "Sequence[CellCost]") -> None:
        forwards = f"{sum(cost.forwards for cost in of):.0f}"
        time = [_time(_sum([cost.seconds for cost in of]), n_workers or 1)] * is_timed
        memory = _size(max(cost.memory_mb for cost in of))
        disk = _size(float(sum(cost.disk_mb for cost in of)))
        read = [_size(float(sum(cost.read_mb for cost in of)))] * is_read
        table.add_row(name, *counts, forwards, *time, memory, disk, *read)

    for cost in costs:
        add(cost.cell.name, [str(cost.n_prompts), str(cost.n_shards)], [cost])
    add("in all", ["", ""], costs)
    return table


def print_outlook(outlook: "ModelOutlook", why: str, console: Console) -> None:
    """Print a table for each task on a model that was not loaded, and where it could run."""
    say(f"{outlook.model}, not loaded ({why}): {outlook.about}")
    for machine in outlook.machines:
        refused = f"; {machine.why_not}" if machine.why_not else ""
        say(f"  {machine.name}: {machine.about}{refused}")
    for task, cells in groupby(outlook.cells, key=lambda each: each.cost.cell.task):
        own = [*cells]
        planned = [each for each in own if not each.cost.why_not]
        if planned:
            say(f"{outlook.model} · {task}: {planned[0].cost.example}")
            console.print(_table([each.cost for each in planned]))
            console.print(_times(planned, [machine.name for machine in outlook.machines]))
        for each in own:
            name = each.cost.cell.name
            if each.cost.why_not:
                note(f"{name} is skipped: {each.cost.why_not}")
            elif each.cost.left_out:
                note(f"{name} leaves out: {each.cost.left_out}")


def _times(cells: "Sequence[Outlook]", machines: Sequence[str]) -> Table:
    """Return how long analyses take on each machine, and what is read of blocks on disk."""
    table = Table("time on", box=None, pad_edge=False)
    for name in (*machines, "disk reads"):
        table.add_column(name, justify="right")
    for each in cells:
        times = [_time(each.seconds[name], 1) for name in machines]
        table.add_row(each.cost.cell.name, *times, _size(each.read_mb) if each.read_mb else "–")
    in_all = [_time(_sum([each.seconds[name] for each in cells]), 1) for name in machines]
    table.add_row("in all", *in_all, _size(sum(each.read_mb for each in cells)))
    return table


def _time(seconds: float | None, n_workers: int) -> str:
    return "–" if seconds is None else duration(seconds / n_workers)


def _sum(seconds: Sequence[float | None]) -> float | None:
    known = [each for each in seconds if each is not None]
    return sum(known) if len(known) == len(seconds) else None


def _size(mb: float) -> str:
    if mb >= 1e6:
        return f"{mb / 1e6:.1f} TB"
    return f"{mb / 1000:.1f} GB" if mb >= 1000 else f"{mb:.1f} MB" if mb < 10 else f"{mb:.0f} MB"
