"""`interp compare`: what differs between runs of one analysis on the same prompts."""

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import JustifyMethod
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from interp.cli.options import AsJson, complete_runs
from interp.cli.terminal import out, say, say_document, say_words
from interp.figures.words import counted, value_text

if TYPE_CHECKING:
    import pandas as pd

    from interp.runs.run_comparison import RunComparison

_UNLIMITED = 10_000  # characters
_MOST = 12  # lines of the table
_WHOLE = ("differ", "clearest at", "difference")  # not wrapped where a terminal is narrow


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(help="RUN or RUN:MODEL, two or more.", autocompletion=complete_runs),
    ],
    analysis: Annotated[str | None, typer.Option(help="Where they share several.")] = None,
    task: Annotated[str | None, typer.Option(help="Where they share several.")] = None,
    measure: Annotated[
        str | None, typer.Option(help="Only this one, as the table calls it; a grid too.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep it in the first run, for report and viewer.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare one analysis in several runs of the same prompts, from what they measured.

    Differences are from the first run, paired by prompt; their intervals hold for all numbers of
    the table at once. Without another model or run, nothing is run again.

    Example: interp compare runs/a runs/b:zoo/hops-8l --analysis layer_skip
    """
    from interp.runs.kept import keep_comparison
    from interp.runs.run_comparison import compare_runs
    from interp.runs.sides import run_named

    comparison = compare_runs(*runs, analysis=analysis, task=task, measure=measure)
    if keep:
        keep_comparison(comparison, run_named(runs[0]))
    if as_json:
        found = [finding.to_json() for finding in comparison.findings()]
        rows = json.loads(comparison.to_frame().to_json(orient="records", double_precision=9))
        names = {"analysis": comparison.analysis, "runs": [*comparison.runs]}
        say_document("compare", **names, findings=found, rows=rows)
        return
    for finding in comparison.findings():
        say_words(Text(finding.claim, style="bold"))
        say_words(Text(finding.note, style="dim"))
    _print_table(comparison)


def _print_table(comparison: "RunComparison") -> None:
    """Print a line for each measure and run, the clearest first, as many as a screen holds.

    Where it would be too wide for the terminal, the runs' own values are left to --json.
    """
    table = _table(comparison)
    needed = Measurement.get(out, out.options.update_width(_UNLIMITED), table).maximum
    out.print(table if needed <= out.width else _table(comparison, has_sides=False))
    n_lines = comparison.later.groupby(["measure", "run"], sort=False).ngroups
    if n_lines > _MOST:
        say(f"{counted(n_lines - _MOST, 'more line')}; --json has all numbers")


def _table(comparison: "RunComparison", *, has_sides: bool = True) -> Table:
    """Return the table, with the values of the runs that differ or without."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    is_of_two = len(comparison.runs) == 2
    sides = comparison.runs if is_of_two else ("first run", "run")
    shown = sides if has_sides else ("run",) if not is_of_two else ()
    for name in ("measure", "differ", "clearest at", *shown, "difference"):
        side: JustifyMethod = "left" if name in ("measure", "clearest at") else "right"
        table.add_column(name, justify=side, no_wrap=name in _WHOLE)
    later, first = comparison.later, comparison.frame[comparison.frame["run"] == comparison.runs[0]]
    lines = list(later.groupby(["measure", "run"], sort=False))
    for (measure, run), rows in lines[:_MOST]:
        top = rows.iloc[0]
        same = (first["measure"] == measure) & (first["place"] == top["place"])
        differ = f"{int(rows['is_different'].sum())} of {len(rows)}"
        there = value_text(float(first[same]["mean"].iloc[0]))
        here = value_text(float(top["mean"]))
        place = str(top["place"]) or "–"
        number = str(comparison.runs.index(run) + 1)
        values = [there, here if is_of_two else f"{number}: {here}"]
        if not has_sides:
            values = [] if is_of_two else [number]
        cells = (str(measure) or "–", differ, place, *values, _difference(top))
        table.add_row(*map(Text, cells), style="" if top["is_different"] else "dim")
    return table


def _difference(row: "pd.Series[float]") -> str:
    """Return a difference and the interval that holds all of the table's."""
    value, *ends = (float(row[f"difference{end}"]) for end in ("", "_low", "_high"))
    low, high = (value_text(end) for end in ends)
    return f"{value_text(value)} [{low}, {high}]" if low != "–" else value_text(value)
