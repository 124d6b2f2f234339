"""From rows of a file, table or data set to prompts; errors name the row by its number."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from interp.errors import TaskError, unknown
from interp.tasks.given import (
    described,
    distinct,
    is_id,
    is_missing,
    list_of,
    list_of_texts,
    plain,
    read_ids,
    spelled,
)
from interp.tasks.prompts import Prompt

NAMES = ".names.json"
LONGEST_LINE = 1_000_000
RELATED, LABELS = "related", "labels"
_FIELDS = {f.name for f in fields(Prompt)}
_LISTS = ("aliases", "choices")
_SPELLED = ("answer", "wrong", "corrupted", "bridge", "subject")  # token ids where the prompt is

Row = tuple[str, Any]  # where it stands, and what it holds
Related = dict[str, dict[str, Prompt]]


def read_file(
    path: Path, column_map: Mapping[str, str] | None = None
) -> tuple[tuple[Prompt, ...], Related, tuple[str, ...]]:
    """Return the prompts of a file of JSON lines, those related to each, and the names of ids."""
    names = _names_beside(path)
    return *read_prompts(rows_of_file(path), column_map, names=names), names


def read_rows(
    rows: Iterable[Any], column_map: Mapping[str, str] | None = None
) -> tuple[tuple[Prompt, ...], Related]:
    """Return the prompts of numbered rows, and the prompts related to each by its id."""
    return read_prompts(((f"row {i}", row) for i, row in enumerate(rows, 1)), column_map)


def read_ids_rows(
    rows: Any, columns: Mapping[str, Any], *, names: Sequence[str] = ()
) -> tuple[Prompt, ...]:
    """Return prompts that are token ids; `columns` hold an item, of ids or None, for each."""
    ids = list_of(rows, "rows of token ids")
    if any(map(is_id, ids)):
        raise TaskError("one row of token ids given; a list of rows is needed")
    given = {key: list_of(value, key) for key, value in columns.items()}
    for key, values in given.items():
        if len(values) != len(ids):
            raise TaskError(f"{len(values)} {key} given for {len(ids)} prompts; one each is needed")
    records = [
        {"id": str(i), "tokens": row} | {key: values[i] for key, values in given.items()}
        for i, row in enumerate(ids)
    ]
    numbered = ((f"row {i}", record) for i, record in enumerate(records, 1))
    return read_prompts(numbered, names=names)[0]


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
                raise TaskError(
                    f"{where}: a line of more than {LONGEST_LINE:,} bytes;"
                    " a prompt has at most that many"
                )
            if raw.strip():
                yield where, _object(raw, where)


def _names_beside(path: Path) -> tuple[str, ...]:
    """Return the names of token ids from NAME.names.json next to a file, if there is one."""
    file = path.with_suffix(NAMES)
    if not file.is_file():
        return ()
    try:
        return distinct(list_of_texts(json.loads(file.read_text(encoding="utf-8")), str(file)))
    except ValueError as error:
        raise TaskError(f"{file}: not JSON ({error})") from None


def rows_of(dataset: Any, split: str | None) -> Iterable[Any]:
    """Return the rows of a data set (of one split), a list, a generator or a pandas frame."""
    if hasattr(dataset, "to_dict") and hasattr(dataset, "columns"):
        return rows_of_frame(dataset)[0]
    if isinstance(dataset, Mapping):
        return _rows_of_mapping(dataset, split)
    if split is not None:
        raise TaskError(f"split {split!r} asked for; there is one list of rows, without splits")
    if isinstance(dataset, str | bytes) or not isinstance(dataset, Iterable):
        raise TaskError(
            f"{described(dataset)} given;"
            " rows of named columns are needed (datasets.load_dataset returns them)"
        )
    return dataset


def _rows_of_mapping(given: Mapping[Any, Any], split: str | None) -> Iterable[Any]:
    """Return the rows of one of several splits, or of columns; TaskError if no split is chosen."""
    columns = {str(key): plain(value) for key, value in given.items()}
    are_columns = not hasattr(type(given), "column_names") and all(
        isinstance(column, list | tuple)
        and not any(isinstance(item, Mapping) for item in column[:1])
        for column in columns.values()
    )
    if split is not None and split in given:
        return rows_of(given[split], None)
    if are_columns and split is None and given:
        lengths = {key: len(column) for key, column in columns.items()}
        if len({*lengths.values()}) > 1:
            given_lengths = ", ".join(f"{key} {n}" for key, n in lengths.items())
            raise TaskError(
                f"columns of several lengths given ({given_lengths});"
                " as many rows of each are needed"
            )
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if split is not None:
        raise TaskError(unknown("split", split, map(str, given)))
    raise TaskError(
        f"splits {', '.join(map(str, given)) or 'without a name'} given; choose one with split="
    )


def rows_of_frame(frame: Any) -> tuple[list[dict[str, Any]], bool]:
    """Return a frame's rows, columns `tag_…` together under `tags`, and whether it has any."""
    if not (hasattr(frame, "to_dict") and hasattr(frame, "columns")):
        raise TaskError(f"{described(frame)} given; a pandas frame is needed")
    rows = [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]
    tags = [str(column) for column in frame.columns if str(column).startswith("tag_")]
    for row in rows:
        cells = {key.removeprefix("tag_"): row.pop(key) for key in tags}
        if given := {key: value for key, value in cells.items() if isinstance(value, str)}:
            row["tags"] = given
    return rows, bool(tags)


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


def read_prompts(
    rows: Iterable[Row], column_map: Mapping[str, str] | None = None, *, names: Sequence[str] = ()
) -> tuple[tuple[Prompt, ...], Related]:
    """Return the prompts of rows, and the prompts related to each by its id.

    `column_map` maps fields of a prompt (and "labels", those of its choices) to columns; columns
    that it does not name are then ignored. Without it every column must be a field. `names` are
    what token ids stand for. Raises TaskError for the first row that is not a prompt.
    """
    for field in column_map or {}:
        if field not in _FIELDS | {LABELS}:
            raise TaskError(unknown("field", field, _FIELDS))
    prompts: list[Prompt] = []
    related: Related = {}
    seen: dict[str, str] = {}
    for i, (where, record) in enumerate(rows, 1):
        if not isinstance(record, Mapping):
            raise TaskError(f"{where}: {described(record)} given; a row of named columns is needed")
        named = dict(record) if column_map is None else _mapped(record, column_map, where)
        asked_too = named.pop(RELATED, {})
        prompt = _prompt(named, where, number=str(i), names=names)
        if prompt.id in seen:
            raise TaskError(
                f"{where}: two prompts with the id {prompt.id!r}, the other at {seen[prompt.id]}"
            )
        seen[prompt.id] = where
        prompts.append(prompt)
        if asked_too:
            related[prompt.id] = _related(prompt.id, asked_too, where, names)
    return tuple(prompts), related


def _mapped(record: Mapping[str, Any], column_map: Mapping[str, str], where: str) -> dict[str, Any]:
    for column in column_map.values():
        if column not in record:
            raise TaskError(f"{where}: {unknown('column', column, map(str, record))}")
    return {field: record[column] for field, column in column_map.items()}


def _related(of: str, given: Any, where: str, names: Sequence[str]) -> dict[str, Prompt]:
    if not (isinstance(given, dict) and all(isinstance(record, dict) for record in given.values())):
        raise TaskError(f"{where}: 'related' is {given!r:.80}; an object of prompts is needed")
    return {
        name: _prompt(record, f"{where} ({name})", number=f"{of}:{name}", names=names)
        for name, record in given.items()
    }


def _prompt(record: Mapping[str, Any], where: str, *, number: str, names: Sequence[str]) -> Prompt:
    for key in record.keys() - _FIELDS - {LABELS}:
        raise TaskError(f"{where}: {unknown('field', str(key), _FIELDS)}")
    record = {key: value for key, value in record.items() if not is_missing(value)}
    record["id"] = _id(record.get("id", number))
    labels = record.pop(LABELS, None)
    if "choices" in record:
        record["choices"], own_labels = _choices(record["choices"], where)
        record |= _chosen(record, own_labels if labels is None else _labels(labels, where), where)
    if "group" in record:
        record["group"] = _id(record["group"])
    if "answer_index" in record:
        record["answer_index"] = _whole(record["answer_index"], where)
    if "tokens" in record:
        record |= _of_ids(record, where, names)
    for key, value in record.items():
        record[key] = _checked(key, value, where)
    if "text" not in record and "tokens" not in record:
        raise TaskError(f"{where}: no 'text'")
    if record.get("answer") is not None and record["answer"] == record.get("wrong"):
        raise TaskError(f"{where}: 'answer' and 'wrong' are both {record['answer']!r}")
    try:
        return Prompt(**record)
    except TaskError as error:
        reason = str(error).removeprefix(f"prompt {record['id']!r}: ")
        raise TaskError(f"{where}: {reason}") from None


def _id(value: Any) -> str:
    """Return an id as text; whole numbers that a table turned into floats are whole again."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _whole(value: Any, where: str) -> int:
    if is_id(value) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    raise TaskError(f"{where}: 'answer_index' is {value!r:.80}; a whole number is needed")


def _of_ids(record: Mapping[str, Any], where: str, names: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a prompt of token ids: ids as text, and the ids of each text.

    A text without ids is an answer that cannot be used; a subject may be a phrase of the text.
    """
    tokens = read_ids(record["tokens"], f"{where}: 'tokens'")
    spelling = {
        text: read_ids(ids, f"{where}: 'spelling'") if ids != [] else ()
        for text, ids in dict(record.get("spelling", {})).items()
    }
    texts = {"text": record.get("text") or spelled(tokens, names)}
    for key in _SPELLED:
        value = record.get(key)
        is_phrase = key == "subject" and str(value) in str(record.get("text", ""))
        if value is None or (isinstance(value, str) and (value in spelling or is_phrase)):
            continue
        ids = read_ids(value, f"{where}: {key!r}")
        texts[key] = spelled(ids, names)
        spelling[texts[key]] = ids
    return {**texts, "tokens": tokens, "spelling": spelling}


def _checked(key: str, value: Any, where: str) -> Any:
    if key in _LISTS:
        return list_of_texts(value, f"{where}: {key!r}")
    if key == "tags":
        if not (isinstance(value, dict) and all(isinstance(item, str) for item in value.values())):
            raise TaskError(f"{where}: 'tags' is {value!r:.80}; an object of strings is needed")
    elif key not in ("tokens", "spelling", "answer_index") and not isinstance(value, str):
        raise TaskError(f"{where}: {key!r} is {value!r:.80}; a string is needed")
    return value


# Which option an answer names


def _choices(given: Any, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the options and their labels, if they have any.

    Labels come as in ARC ({"text": […], "label": […]}, or a list of such pairs) or as keys ({"A":
    …, "B": …}).
    """
    given = plain(given)
    if (
        isinstance(given, list | tuple)
        and given
        and all(isinstance(each, Mapping) for each in given)
    ):
        given = {key: [each.get(key) for each in given] for key in ("text", "label")}
    if not isinstance(given, Mapping):
        return list_of_texts(given, f"{where}: 'choices'"), ()
    if {"text", "label"} <= given.keys():
        texts, labels = (
            list_of_texts(given["text"], f"{where}: 'choices'"),
            _labels(given["label"], where),
        )
    else:
        texts, labels = (
            list_of_texts(list(given.values()), f"{where}: 'choices'"),
            _labels(list(given), where),
        )
    return texts, labels


def _labels(given: Any, where: str) -> tuple[str, ...]:
    given = plain(given)
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise TaskError(f"{where}: labels are {described(given)}; a list is needed")
    return tuple(map(str, given))


def _chosen(record: Mapping[str, Any], labels: Sequence[str], where: str) -> dict[str, Any]:
    """Return the answer that a row names, and its index if several choices read the same."""
    options: tuple[str, ...] = record["choices"]
    if labels and len({*labels}) != len(options):
        raise TaskError(
            f"{where}: {len({*labels})} labels for {len(options)} choices; one each is needed"
        )
    key = record.get("answer")
    if key is None or "answer_index" in record:
        return {}
    if isinstance(key, float) and key.is_integer():
        key = int(key)  # a table with empty cells holds no whole numbers
    if isinstance(key, bool) or not (isinstance(key, str) or is_id(key)):
        raise TaskError(
            f"{where}: 'answer' is {key!r:.80}; a choice's label, letter, number or text is needed"
        )
    index = _named_option(key, options, labels, where)
    is_alone = options.count(options[index]) == 1
    return {"answer": options[index]} | ({} if is_alone else {"answer_index": index})


def _named_option(key: Any, options: Sequence[str], labels: Sequence[str], where: str) -> int:
    """Return which option a key names: by its label, or else by the only reading possible."""
    if str(key) in labels:
        return list(labels).index(str(key))
    meant = {f"the text of choice {i}": i for i, option in enumerate(options) if option == str(key)}
    meant |= _by_place(str(key), len(options), labels)
    if len({*meant.values()}) == 1:
        return next(iter(meant.values()))
    if meant:
        raise TaskError(
            f"{where}: the answer {key!r} may be {' or '.join(meant)};"
            " give labels for the choices, or answer_index"
        )
    among = f"labels {', '.join(labels)}; " if labels else ""
    choices = ", ".join(map(repr, options))
    hint = "; numbers count from 0" if str(key) == str(len(options)) else ""
    raise TaskError(f"{where}: the answer {key!r} is not among the {among}choices {choices}{hint}")


def _by_place(key: str, n_options: int, labels: Sequence[str]) -> dict[str, int]:
    """Return which option a letter or a number (from 0) names, unless labels are of that kind."""
    numbers = {} if any(map(str.isdigit, labels)) else {str(i): i for i in range(n_options)}
    letters = {chr(ord(first) + i): i for first in "Aa" for i in range(min(n_options, 26))}
    if any(label.upper() in letters for label in labels):
        letters = {}
    return {
        what: known[key]
        for what, known in (("a number", numbers), ("a letter", letters))
        if key in known
    }
