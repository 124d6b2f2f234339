"""What a run found, as a table for each task on a model; no torch here."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from interp.cli.terminal import out, say_words
from interp.figures.words import duration
from interp.runs.evidence import evidence, findings_of
from interp.runs.folder import Cell

Cells = Mapping[Cell, Mapping[str, Any]]
_WIDE = 110  # columns of a terminal, from which on a line holds what is said of an analysis
_COLOURS = {"failed": "red", "skipped": "bright_black", "begun": "yellow", "to do": "bright_black"}


def print_results(cells: Cells, *, has_sentences: bool = False) -> None:
    """Print a table for each task on a model: number, control and time of every analysis.

    What failed or was skipped follows with its reason, once for all analyses that share it. With
    `has_sentences` findings are sentences instead.
    """
    for (model, task), group in groupby(cells.items(), lambda item: (item[0].model, item[0].task)):
        of_task = dict(group)
        finished = {cell: info for cell, info in of_task.items() if info["status"] == "ok"}
        out.print(Text(f"{model} · {task}", style="bold"))
        if has_sentences:
            for cell, info in finished.items():
                left_out = f" (left out: {info['left_out']})" if info.get("left_out") else ""
                claim = f"{findings_of(info)[0]['claim']}{left_out}"
                say_words(Text.assemble((cell.name, "cyan"), f": {claim}"), indent=2)
        elif finished:
            out.print(_table(finished) if out.width >= _WIDE else _narrow_table(finished))
        _print_others(of_task)


@dataclass(frozen=True)
class _Row:
    """What a table says of a finished cell, in words."""

    name: str
    number: str
    control: str
    prompts: str
    time: str
    what: str


def _row(cell: Cell, info: Mapping[str, Any]) -> _Row:
    finding = findings_of(info)[0]
    known = evidence(finding)
    has_number = finding.get("value") is not None
    seconds = info.get("seconds")
    return _Row(
        cell.name,
        known[0].number if has_number else "–",
        known[1].number if has_number and finding.get("control") else "–",
        str(info.get("n_prompts", "–")),
        "–" if seconds is None else duration(seconds),
        finding["measure"] if has_number and finding.get("measure") else finding["claim"],
    )


def _plain_table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def _table(cells: Cells) -> Table:
    """Return a line for each analysis."""
    table = _plain_table()
    table.add_column("analysis", no_wrap=True, style="cyan")
    table.add_column("number", justify="right", no_wrap=True, style="bold")
    for name in ("control", "prompts", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("of")
    for row in (_row(cell, info) for cell, info in cells.items()):
        texts = (row.name, row.number, row.control, row.prompts, row.time, row.what)
        table.add_row(*map(Text, texts))
    return table


def _narrow_table(cells: Cells) -> Table:
    """Return a table for terminals on which a line is too short: what is measured stands below."""
    table = _plain_table()
    table.add_column("analysis", no_wrap=True, style="cyan")
    table.add_column("number, control, of what", ratio=1)
    table.add_column("time", justify="right", no_wrap=True)
    for row in (_row(cell, info) for cell, info in cells.items()):
        control = "" if row.control == "–" else f"  control {row.control}"
        about = Text.assemble((row.number, "bold"), control, "\n", (row.what, "dim"))
        table.add_row(Text(row.name), about, Text(row.time))
    return table


def _print_others(cells: Cells) -> None:
    of_cause: dict[tuple[str, str], list[str]] = {}
    for cell, info in cells.items():
        if info["status"] != "ok":
            cause = (info["status"], info.get("error") or "")
            of_cause.setdefault(cause, []).append(cell.name)
    for (status, error), names in of_cause.items():
        text = Text(f"{', '.join(names)} {status}", style=_COLOURS.get(status, ""))
        say_words(text.append(f": {error}" if error else ""))
