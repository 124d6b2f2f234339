"""What commands print with --json, read as programs read it: by the schema that it names."""

import json
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from interp.cli.schemas import schema_of


@cache
def _validator(document: str) -> Draft202012Validator:
    return Draft202012Validator(schema_of(document))


def read(text: str) -> dict[str, Any]:
    """Return the one document of a text; raise if it is not as the schema of its name says."""
    document: dict[str, Any] = json.loads(text)
    _validator(document["document"]).validate(document)
    part = schema_of(document["document"])["$defs"][document["document"]]
    assert document.keys() <= part["properties"].keys(), "a field that the schema does not have"
    return document


def read_events(text: str) -> list[dict[str, Any]]:
    """Return the events of a run; raise if a line is not as the schema says."""
    events = [json.loads(line) for line in text.splitlines()]
    for event in events:
        _validator("events").validate(event)
    return events
