"""`interp show` prints a run's tables; `interp diff` compares two runs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.options import AsJson, RunArgument
from interp.cli.terminal import is_verbose, say, say_document
from interp.errors import RunError, unknown
from interp.figures.words import duration
from interp.runs.folder import Cell, cells_of, read_run
from interp.runs.session import is_at_work
from interp.runs.unfinished import unfinished_cells

if TYPE_CHECKING:
    import pandas as pd

    from interp.runs.tables import RunDifference

_DIGITS = 4


def show(
    run: RunArgument,
    analysis: Annotated[
        str | None, typer.Argument(help="An analysis (ANALYSIS@LABEL for a label's).")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    task: Annotated[str | None, typer.Option(help="Only of this task.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows of each table; 0 for all.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show what a run found: its cells, or the tables of one analysis.

    Examples: interp show runs/demo · interp show runs/demo layer_skip --rows 0 --json
    """
    from interp.cli.results import print_results
    from interp.runs.tables import read_frame

    cells = _cells_of(run, model=model, task=task)
    if analysis is None:
        if as_json:
            _say_cells(run, [{"cell": cell.path, **record} for cell, record in cells.items()])
            return
        print_results(cells, has_sentences=is_verbose())
        if left := [info for info in cells.values() if "shards" in info]:
            say(_what_is_left(run, left, len(cells)))
        return
    chosen = {cell: record for cell, record in cells.items() if cell.name == analysis}
    if not chosen:
        raise RunError(f"{unknown('analysis', analysis, {c.name for c in cells})} in {run}")
    tables = {cell: read_frame(run, cell) for cell in chosen if cells[cell]["status"] == "ok"}
    if as_json:
        named = [{"cell": cell.path, **record} for cell, record in chosen.items()]
        tabled = [_table_of(tables.get(cell), rows) for cell in chosen]
        _say_cells(run, [each | table for each, table in zip(named, tabled, strict=True)])
        return
    for cell, record in chosen.items():
        say(f"{cell.path}: {record.get('summary') or record.get('error')}")
        if cell in tables:
            _print_frame(tables[cell], rows)


def _cells_of(run: Path, *, model: str | None, task: str | None) -> dict[Cell, dict[str, Any]]:
    """Return the cells of a run, or those of one model or task alone, and what is known."""
    info = read_run(run)
    cells = cells_of(info) | unfinished_cells(run, info)
    for what, asked in (("model", model), ("task", task)):
        names = {getattr(cell, what) for cell in cells}
        if asked is not None and asked not in names:
            raise RunError(f"{unknown(what, asked, names)} in {run}")
    return {
        cell: record
        for cell, record in cells.items()
        if model in (None, cell.model) and task in (None, cell.task)
    }


def _say_cells(run: Path, cells: list[dict[str, Any]]) -> None:
    say_document("show", run=str(run), is_at_work=is_at_work(run), cells=cells)


def _what_is_left(folder: Path, left: list[dict[str, Any]], n_cells: int) -> str:
    """Return whether a run that is not finished is at work, and how much there is still to do."""
    seconds = sum(info["seconds_left"] or 0.0 for info in left)
    about = f", about {duration(seconds)} of one worker" if seconds else ""
    state = "at work" if is_at_work(folder) else "not at work; the same `interp run` goes on"
    return f"{n_cells - len(left)} of {n_cells} done, {len(left)} left{about}; {state}"


def _table_of(frame: "pd.DataFrame | None", n: int) -> dict[str, Any]:
    """Return the first rows of a table and how many it has; of a cell without one, none."""
    if frame is None:
        return {"n_rows": 0, "rows": []}
    rows = json.loads(_first(frame, n).to_json(orient="records", double_precision=15))
    return {"n_rows": len(frame), "rows": rows}


def _first(frame: "pd.DataFrame", n: int) -> "pd.DataFrame":
    return frame if n == 0 else frame.head(n)


def _print_frame(frame: "pd.DataFrame", n: int) -> None:
    first = _first(frame, n)
    say(first.to_string(index=False, na_rep="–", float_format=lambda value: f"{value:.{_DIGITS}g}"))
    if len(first) < len(frame):
        say(f"{len(first)} of {len(frame)} rows; --rows 0 shows all")


def diff(
    a: RunArgument,
    b: RunArgument,
    tolerance: Annotated[float, typer.Option(help="Differences up to this count as equal.")] = 1e-5,
    as_json: AsJson = False,
) -> None:
    """Compare two runs: settings, cells, and the numbers of all cells that both have.

    Exit status 1 if they differ.

    Example: interp diff runs/monday runs/tuesday
    """
    from interp.runs.tables import differences

    difference = differences(a, b, tolerance=tolerance)
    if as_json:
        say_document("diff", equal=difference.is_none, **difference.to_dict())
    else:
        _print_difference(difference, a, b)
    if not difference.is_none:
        raise typer.Exit(1)


def _print_difference(difference: "RunDifference", a: Path, b: Path) -> None:
    for key, (left, right) in difference.settings.items():
        say(f"{key}: {left} | {right}")
    for folder, only in ((a, difference.only_a), (b, difference.only_b)):
        for path in only:
            say(f"only in {folder}: {path}")
    for cell in difference.cells:
        how = cell.why
        if not how:
            at_most = f"{cell.n_different} numbers differ, at most by {cell.largest:.3g}"
            how = f"{at_most}: {cell.where}"
        say(f"{cell.path}: {how}")
    say("equal" if difference.is_none else "different")
