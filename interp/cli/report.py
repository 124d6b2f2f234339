"""`interp report` writes a report of a run."""

import json
from typing import Annotated

import typer

from interp.cli.options import RunArgument
from interp.cli.terminal import say, say_json


def report(
    folder: RunArgument,
    kind: Annotated[
        str, typer.Option("--format", help="html, json or md; report.json is written in any case.")
    ] = "html",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Write a report, self-contained, from what is on disk.

    Examples: interp report runs/first · interp report runs/first --format md
    """
    from interp.reports import write_report

    path = write_report(folder, kind)
    if as_json:
        say_json(json.loads((folder / "report.json").read_text(encoding="utf-8")))
    else:
        say(f"{path} is ready" + ("; open it in a browser" if kind == "html" else ""))
