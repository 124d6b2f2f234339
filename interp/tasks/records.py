"""From rows of a file, a table or a data set to prompts; a row that cannot be one is named by its number."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from interp.errors import TaskError, unknown
from interp.tasks.prompts import Prompt

LONGEST_LINE = 1_000_000
RELATED = "related"
_FIELDS = {f.name for f in fields(Prompt)}
_LISTS = ("aliases", "choices")

Row = tuple[str, Mapping[str, Any]]  # where it stands, and what it holds
Related = dict[str, dict[str, Prompt]]


def rows_of_file(path: Path) -> Iterator[Row]:
    """Yield the JSON object of every line that is not blank."""
    if not path.is_file():
        raise TaskError(f"no file {path}")
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(LONGEST_LINE + 1):
            number += 1
            where = f"{path}:{number}"
            if len(raw) > LONGEST_LINE:
                raise TaskError(f"{where}: a line of more than {LONGEST_LINE:,} bytes; a prompt has at most that many")
            if raw.strip():
                yield where, _object(raw, where)


def _object(raw: bytes, where: str) -> dict[str, Any]:
    try:
        record: Any = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise TaskError(f"{where}: not UTF-8 (byte {error.start} of the line)") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise TaskError(f"{where}: not JSON ({error})") from None
    if not isinstance(record, dict):
        raise TaskError(f"{where}: {type(record).__name__} given; a JSON object is needed")
    return record


def read_prompts(rows: Iterable[Row], column_map: Mapping[str, str] | None = None) -> tuple[tuple[Prompt, ...], Related]:
    """Return the prompts of rows, and the prompts related to each by its id.

    `column_map` maps fields of a prompt to columns; columns that it does not name are then ignored. Without it every column
    must be a field. Raises TaskError for the first row that is not a prompt.
    """
    for field in column_map or {}:
        if field not in _FIELDS:
            raise TaskError(unknown("field", field, _FIELDS))
    prompts: list[Prompt] = []
    related: Related = {}
    seen: dict[str, str] = {}
    for i, (where, record) in enumerate(rows, 1):
        named = dict(record) if column_map is None else _mapped(record, column_map, where)
        asked_too = named.pop(RELATED, {})
        prompt = _prompt({"id": str(i)} | named, where)
        if prompt.id in seen:
            raise TaskError(f"{where}: two prompts with the id {prompt.id!r}, the other at {seen[prompt.id]}")
        seen[prompt.id] = where
        prompts.append(prompt)
        if asked_too:
            related[prompt.id] = _related(prompt.id, asked_too, where)
    return tuple(prompts), related


def _mapped(record: Mapping[str, Any], column_map: Mapping[str, str], where: str) -> dict[str, Any]:
    for column in column_map.values():
        if column not in record:
            raise TaskError(f"{where}: {unknown('column', column, map(str, record))}")
    return {field: record[column] for field, column in column_map.items()}


def _related(of: str, given: Any, where: str) -> dict[str, Prompt]:
    if not (isinstance(given, dict) and all(isinstance(record, dict) for record in given.values())):
        raise TaskError(f"{where}: 'related' is {given!r:.80}; an object of prompts is needed")
    return {name: _prompt({"id": f"{of}:{name}"} | record, f"{where} ({name})") for name, record in given.items()}


def _prompt(record: dict[str, Any], where: str) -> Prompt:
    for key in record.keys() - _FIELDS:
        raise TaskError(f"{where}: {unknown('field', str(key), _FIELDS)}")
    record = {key: value for key, value in record.items() if not _is_missing(value)}
    record["id"] = str(record["id"])
    if "choices" in record:
        record["choices"], labels = _choices(record["choices"])
        record["answer"] = _chosen(record.get("answer"), record["choices"], labels, where)
    for key, value in record.items():
        record[key] = _checked(key, value, where)
    if not record.get("text", "").strip():
        raise TaskError(f"{where}: no 'text'")
    if record.get("answer") is not None and record["answer"] == record.get("wrong"):
        raise TaskError(f"{where}: 'answer' and 'wrong' are both {record['answer']!r}")
    return Prompt(**record)


def _is_missing(value: Any) -> bool:
    """Tell whether a table's cell is empty: None, or a number that is not one."""
    return value is None or (isinstance(value, float) and value != value)


def _checked(key: str, value: Any, where: str) -> Any:
    if key in _LISTS:
        items = list(value) if isinstance(value, Iterable) and not isinstance(value, str | Mapping) else None
        if items is None or not all(isinstance(item, str) for item in items):
            raise TaskError(f"{where}: {key!r} is {value!r:.80}; a list of strings is needed")
        return tuple(items)
    if key == "tags":
        if not (isinstance(value, dict) and all(isinstance(item, str) for item in value.values())):
            raise TaskError(f"{where}: 'tags' is {value!r:.80}; an object of strings is needed")
    elif not isinstance(value, str):
        raise TaskError(f"{where}: {key!r} is {value!r:.80}; a string is needed")
    return value


def _choices(given: Any) -> tuple[Any, list[str]]:
    """Return the options and their labels; the ARC way of writing them ({"text": […], "label": […]}) is understood."""
    if isinstance(given, Mapping) and {"text", "label"} <= given.keys():
        return given["text"], [str(label) for label in given["label"]]
    return given, []


def _chosen(answer: Any, choices: Any, labels: list[str], where: str) -> Any:
    """Return the option that an answer names by its text, its label, its letter or its number."""
    options = list(choices) if isinstance(choices, Iterable) and not isinstance(choices, str) else []
    if answer is None or answer in options:
        return answer
    key = str(answer)
    letters = [chr(ord("A") + i) for i in range(len(options))]
    for names in (labels, letters, [str(i) for i in range(len(options))]):
        if key in names and len(names) == len(options):
            return options[names.index(key)]
    raise TaskError(f"{where}: the answer {answer!r} is not among the choices {', '.join(map(repr, options))}")
