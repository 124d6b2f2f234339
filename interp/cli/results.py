"""What a run found, as a table for each task on a model; no torch here."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from interp.cli.terminal import out, say
from interp.figures.words import duration
from interp.runs.evidence import evidence, findings_of
from interp.runs.folder import Cell

Cells = Mapping[Cell, Mapping[str, Any]]
_COLOURS = {"failed": "red", "skipped": "bright_black", "begun": "yellow", "to do": "bright_black"}


def print_results(cells: Cells, *, has_sentences: bool = False) -> None:
    """Print a table for each task on a model: number, control and time of every analysis.

    What failed or was skipped follows with its reason, once for all analyses that share it. With
    `has_sentences` findings are sentences instead.
    """
    for (model, task), group in groupby(cells.items(), lambda item: (item[0].model, item[0].task)):
        of_task = dict(group)
        finished = {cell: info for cell, info in of_task.items() if info["status"] == "ok"}
        say(f"{model} · {task}")
        if has_sentences:
            for cell, info in finished.items():
                left_out = f" (left out: {info['left_out']})" if info.get("left_out") else ""
                say(f"  {cell.name}: {findings_of(info)[0]['claim']}{left_out}")
        elif finished:
            out.print(_table(finished))
        _print_others(of_task)


def _table(cells: Cells) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("analysis", no_wrap=True)
    table.add_column("number", justify="right", no_wrap=True)
    table.add_column("control", justify="right", no_wrap=True)
    for name in ("prompts", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("of")
    for cell, info in cells.items():
        finding = findings_of(info)[0]
        known = evidence(finding)
        has_number = finding.get("value") is not None
        number = known[0].number if has_number else "–"
        control = known[1].number if has_number and finding.get("control") else "–"
        what = finding["measure"] if has_number and finding.get("measure") else finding["claim"]
        seconds = info.get("seconds")
        time = "–" if seconds is None else duration(seconds)
        row = (cell.name, number, control, str(info.get("n_prompts", "–")), time, what)
        table.add_row(*map(Text, row))
    return table


def _print_others(cells: Cells) -> None:
    of_cause: dict[tuple[str, str], list[str]] = {}
    for cell, info in cells.items():
        if info["status"] != "ok":
            cause = (info["status"], info.get("error") or "")
            of_cause.setdefault(cause, []).append(cell.name)
    for (status, error), names in of_cause.items():
        text = Text(f"{', '.join(names)} {status}", style=_COLOURS.get(status, ""))
        out.print(text.append(f": {error}" if error else ""), soft_wrap=True)
