"""`interp export` writes the figures of a run as files for papers."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli.options import AsJson, RunArgument
from interp.cli.terminal import note, say, say_document
from interp.errors import InterpError, RunError, unknown
from interp.files.whole import digest_of, write_atomically
from interp.runs.folder import Cell, cells_of, folder_name, read_file, read_run, why_missing

GLANCE = "depth_at_a_glance"


def export(
    run: RunArgument,
    analysis: Annotated[
        list[str] | None,
        typer.Option(help=f"Only of this analysis, or {GLANCE}. Repeatable."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    task: Annotated[str | None, typer.Option(help="Only of this task.")] = None,
    format: Annotated[str, typer.Option(help="pdf, svg or png (300 dpi).")] = "pdf",
    width: Annotated[
        str, typer.Option(help="one-column (85 mm), two-columns (178 mm), or a length like 120mm.")
    ] = "one-column",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files; by default RUN/figures.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write figures for a paper: vector, fonts embedded, without titles, legible in grey.

    Depth at a glance is written where it is asked for, and with all others at two columns. Needs
    the extra `export` and a Chromium or Chrome (BROWSER_PATH says where, if need be).

    Examples: interp export runs/demo · interp export runs/demo --analysis layer_skip --width 120mm
    """
    from interp.figures.export import drawn, format_of, width_of

    kind, millimetres = format_of(format), width_of(width)
    chosen = {"model": model, "task": task}
    figures, failed = _figures(run, analysis or [], width=millimetres, **chosen)
    contents = drawn([*figures.values()], kind, width=millimetres)
    written = []
    for name, content in zip(figures, contents, strict=True):
        if isinstance(content, InterpError):
            failed[name] = str(content)
            continue
        path = (out or run / "figures") / f"{name}.{kind}"
        write_atomically(path, content)
        written.append(str(path))
        if not as_json:
            say(str(path))
    for name, why in failed.items():
        note(f"interp: {name} is not written: {why}", style="red")
    if as_json:
        say_document("export", written=written, failed=failed)
    if failed:
        raise typer.Exit(1)


def _figures(
    run: Path, analyses: list[str], *, width: float, model: str | None, task: str | None
) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
    """Return the figures asked for by the names of their files, and why others are missing."""
    from interp.figures.export import WIDTHS
    from interp.runs.run_folder import open_run

    info = read_run(run)
    cells = [cell for cell, record in cells_of(info).items() if record["status"] == "ok"]
    named = {cell.name for cell in cells} | ({GLANCE} if cells else set())
    for name in analyses:
        if name not in named and (why := why_missing(info, name)):
            raise RunError(f"{run} has no result of {name}: {why}")
    for what, given, known in (
        *(("analysis", name, named) for name in analyses),
        ("model", model, {cell.model for cell in cells}),
        ("task", task, {cell.task for cell in cells}),
    ):
        if given is not None and given not in known:
            raise RunError(f"{unknown(what, given, known)} in {run}")
    asked = [
        cell
        for cell in cells
        if model in (None, cell.model)
        and task in (None, cell.task)
        and (not analyses or cell.name in analyses)
    ]
    figures, failed, names = dict[str, Mapping[str, Any]](), dict[str, str](), _file_names(cells)
    for cell in asked:
        name = names[cell]
        try:
            figure = json.loads(read_file(run / cell.path / "figure.json"))
        except RunError as error:
            failed[name] = str(error)
            continue
        if figure["data"]:
            figures[name] = figure
        else:  # such as repairs where nothing fails
            note(f"interp: {name} has nothing to draw")
    if GLANCE in analyses or (not analyses and width >= WIDTHS["two-columns"]):
        try:
            figures[GLANCE] = open_run(run).plot().to_plotly_json()
        except RunError:
            if GLANCE in analyses:
                raise
    if not figures and not failed:
        raise RunError(f"{run} has no such figure to export")
    return figures, failed


def _file_names(cells: Sequence[Cell]) -> dict[Cell, str]:
    """Return each cell's file name; those that would share one have a hash behind it."""
    plain = {
        cell: "_".join(
            folder_name(name) for name in (cell.model, cell.task, cell.analysis, cell.label) if name
        )
        for cell in cells
    }
    counts = Counter(plain.values())
    return {
        cell: name if counts[name] == 1 else f"{name}~{digest_of(cell.path.encode())[:10]}"
        for cell, name in plain.items()
    }
