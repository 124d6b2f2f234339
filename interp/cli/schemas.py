"""The JSON Schemas of what commands print and of analyses' parameters; `interp schema`."""

import json
from dataclasses import fields
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


def schema_of(name: str) -> dict[str, Any]:
    """Return the JSON Schema of a document, or of an analysis's parameters.

    Raises RunError if there is neither of that name.
    """
    of_report = _read(_OF_REPORT)
    if name == "report":
        return of_report
    if name not in documents():
        return _of_parameters(name)
    whole = _read(_FILE)
    shared = {part: of_report["$defs"][part] for part in ("finding", "compared")}
    return {
        "$schema": whole["$schema"],
        "title": whole["$defs"][name]["title"],
        "$ref": f"#/$defs/{name}",
        "$defs": whole["$defs"] | shared,
    }


def _of_parameters(name: str) -> dict[str, Any]:
    """Return the JSON Schema of an analysis's parameters, with their defaults."""
    from interp.parameters import hints_of, json_schema
    from interp.runs import find_analyses

    analyses = find_analyses()
    if name not in analyses:
        raise RunError(unknown("schema", name, [*documents(), *analyses]))
    analysis = analyses[name]
    defaults = {each.name: each.default for each in fields(analysis)}
    properties = {
        parameter: json_schema(hint) | {"default": defaults[parameter]}
        for parameter, hint in hints_of(analysis).items()
    }
    return {
        "$schema": _read(_FILE)["$schema"],
        "title": f"parameters of {name}",
        "description": analysis.question,
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


@cache
def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def schema(
    name: Annotated[
        str,
        typer.Argument(
            help="report, events, plan, show, …, or an analysis: of its parameters. A wrong name"
            " lists all."
        ),
    ] = "report",
    as_json: AsJson = True,  # noqa: ARG001
) -> None:
    """Print the JSON Schema of a document that commands print, or of an analysis's parameters.

    Examples: interp schema events > events.schema.json · interp schema layer_skip
    """
    say_json(schema_of(name))
