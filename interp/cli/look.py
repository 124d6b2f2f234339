"""Commands that look at what is there: a run's tables, two runs' differences, a study file."""

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from interp.cli.terminal import say, say_json
from interp.errors import AnalysisError, RunError, unknown
from interp.runs.folder import Cell, cells_of, read_run

if TYPE_CHECKING:
    from interp.runs.tables import Difference

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_DIGITS = 4


def complete_runs(incomplete: str) -> list[str]:
    """Return folders with a run that begin so, for the shell's completion."""
    parent = Path(incomplete).parent if not incomplete.endswith("/") else Path(incomplete)
    found = [path.parent for path in parent.glob("*/run.json")] + [
        path.parent for path in parent.glob("*/*/run.json")
    ]
    return sorted(
        str(path) for path in found if str(path).startswith(incomplete.removeprefix("./"))
    )


Folder = Annotated[Path, typer.Argument(help="A run folder.", autocompletion=complete_runs)]


def show(
    run: Folder,
    analysis: Annotated[
        str | None, typer.Argument(help="An analysis (ANALYSIS@LABEL for a label's).")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Of this model alone.")] = None,
    task: Annotated[str | None, typer.Option(help="Of this task alone.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows of each table; 0 for all.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show what a run found: its cells, or the tables of one analysis.

    Examples: interp show runs/demo · interp show runs/demo layer_skip --rows 0 --json
    """
    from interp.runs.tables import read_frame

    found = read_run(run)
    cells = cells_of(found)
    for what, asked in (("model", model), ("task", task)):
        if asked not in (None, *(there := {getattr(cell, what) for cell in cells})):
            raise RunError(unknown(what, str(asked), there) + f" in {run}")
    cells = {
        cell: c
        for cell, c in cells.items()
        if model in (None, cell.model) and task in (None, cell.task)
    }
    if analysis is None:
        _show_cells(cells, as_json=as_json)
        return
    chosen = [cell for cell in cells if _name(cell) == analysis]
    if not chosen:
        raise RunError(
            unknown("analysis", analysis, {_name(cell) for cell in cells}) + f" in {run}"
        )
    tables = {cell: read_frame(run, cell) for cell in chosen if cells[cell]["status"] == "ok"}
    if as_json:
        say_json(
            [
                {"cell": cell.path, **cells[cell], "rows": _records(tables, cell, rows)}
                for cell in chosen
            ]
        )
        return
    for cell in chosen:
        say(f"{cell.path}: {cells[cell].get('summary') or cells[cell].get('error')}")
        if cell in tables:
            _print_frame(tables[cell], rows)


def _name(cell: Cell) -> str:
    return f"{cell.analysis}@{cell.label}" if cell.label else cell.analysis


def _show_cells(cells: dict[Cell, dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        say_json({cell.path: info for cell, info in cells.items()})
        return
    for cell, info in cells.items():
        what = (
            f"{info['n_prompts']} prompts, {info['seconds']} s"
            if info["status"] == "ok"
            else info.get("error", "")
        )
        say(f"{cell.model}  {cell.task}  {_name(cell):24s} {info['status']:8s} {what}")


def _records(tables: dict[Cell, Any], cell: Cell, rows: int) -> Any:
    if cell not in tables:
        return []
    frame = tables[cell] if rows == 0 else tables[cell].head(rows)
    return json.loads(frame.to_json(orient="records"))


def _print_frame(frame: Any, rows: int) -> None:
    shown = frame if rows == 0 else frame.head(rows)
    say(shown.to_string(index=False, na_rep="–", float_format=lambda value: f"{value:.{_DIGITS}g}"))
    if len(shown) < len(frame):
        say(f"{len(shown)} of {len(frame)} rows; --rows 0 shows all")


def diff(
    a: Folder,
    b: Folder,
    tolerance: Annotated[
        float, typer.Option(help="Numbers that differ by no more are called equal.")
    ] = 1e-5,
    as_json: AsJson = False,
) -> None:
    """Compare two runs: settings, cells, and the numbers of every cell that both have. Exit status
    1 if they differ.

    Example: interp diff runs/monday runs/tuesday
    """
    from interp.runs.tables import differences

    found = differences(a, b, tolerance=tolerance)
    if as_json:
        say_json({"equal": found.is_none, **found.to_dict()})
    else:
        _print_difference(found, a, b)
    if not found.is_none:
        raise typer.Exit(1)


def _print_difference(found: "Difference", a: Path, b: Path) -> None:
    for key, (left, right) in found.settings.items():
        say(f"{key}: {left} | {right}")
    for folder, only in ((a, found.only_a), (b, found.only_b)):
        for path in only:
            say(f"only in {folder}: {path}")
    for cell in found.cells:
        say(
            f"{cell.path}:"
            f" {cell.why or f'{cell.n_different} numbers differ, at most by {cell.largest:.3g}: {cell.where}'}"
        )
    say("equal" if found.is_none else "different")


def validate(
    study: Annotated[Path, typer.Argument(help="A study file (TOML).")],
    as_json: AsJson = False,
) -> None:
    """Check a study file as a whole, without running anything; exit status 2, with a suggestion, if
    it is wrong.

    Example: interp validate studies/demo.toml
    """
    from interp.errors import InterpError

    given = read_study(study)
    from interp.runs.study import Study

    for needed in ("models", "tasks", "analyses"):
        if not given.get(needed):
            raise RunError(f"{study} names no {needed}")
    try:
        checked = Study(**given)
        checked.check()
    except InterpError as error:
        raise RunError(f"{study}: {error}") from None
    paths = [cell.path for cell in checked.cells()]
    if as_json:
        say_json({"valid": True, "cells": paths})
    else:
        say(
            f"{study} is valid: {len(paths)} cells; `interp run {study} --dry-run` says what they"
            " cost"
        )


def read_study(path: Path) -> dict[str, Any]:
    """Return what a study file says; raise RunError for one that is none, or has keys or values
    that cannot be.
    """
    from interp.parameters import fit
    from interp.runs.study import Study

    if not path.is_file():
        raise RunError(f"no study file {path}")
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not TOML ({error})") from None
    hints = get_type_hints(Study)
    for key in given:
        if key not in hints:
            raise RunError(f"{path}: {unknown('key', key, hints)}")
    try:
        return {key: fit(hints[key], value, key) for key, value in given.items()}
    except AnalysisError as error:
        raise RunError(f"{path}: {error}") from None
