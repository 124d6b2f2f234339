"""The JSON Schemas of what commands print, and `interp schema`, which prints them."""

import json
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli.options import AsJson
from interp.cli.terminal import say_json
from interp.errors import RunError, unknown

_HERE = Path(__file__).parent
_FILE = _HERE / "documents.schema.json"
_OF_REPORT = _HERE.parent / "reports/report.schema.json"  # importing `reports` takes a second


def documents() -> list[str]:
    """Return the names of the documents that commands print with --json."""
    parts = _read(_FILE)["$defs"]
    return ["report", *(name for name, part in parts.items() if "title" in part)]


def schema_of(document: str) -> dict[str, Any]:
    """Return the JSON Schema of a document; raise RunError if there is none of that name."""
    of_report = _read(_OF_REPORT)
    if document == "report":
        return of_report
    if document not in documents():
        raise RunError(unknown("schema", document, documents()))
    whole = _read(_FILE)
    shared = {name: of_report["$defs"][name] for name in ("finding", "compared")}
    return {
        "$schema": whole["$schema"],
        "title": whole["$defs"][document]["title"],
        "$ref": f"#/$defs/{document}",
        "$defs": whole["$defs"] | shared,
    }


@cache
def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def schema(
    document: Annotated[
        str, typer.Argument(help="report, events, plan, show, …; a wrong name lists all.")
    ] = "report",
    as_json: AsJson = True,  # noqa: ARG001
) -> None:
    """Print the JSON Schema of a document that commands print with --json; it is JSON itself.

    Example: interp schema events > events.schema.json
    """
    say_json(schema_of(document))
