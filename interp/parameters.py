"""Analysis parameters, checked and read by their declared types."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from interp.errors import AnalysisError, unknown

_JSON_TYPES: dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    NoneType: "null",
}


@dataclass(frozen=True)
class AtLeast:
    """The least value of a parameter: `Annotated[int, AtLeast(1)]`."""

    least: int | float

    def refusal(self, value: Any) -> str:
        """Return what is wrong with a value; "" if nothing is."""
        return "" if value >= self.least else f"at least {self.least:g} is needed"


@dataclass(frozen=True)
class Between:
    """The least and the greatest value of a parameter: `Annotated[float, Between(0, 1)]`."""

    least: int | float
    most: int | float

    def refusal(self, value: Any) -> str:
        """Return what is wrong with a value; "" if nothing is."""
        is_inside = self.least <= value <= self.most
        return "" if is_inside else f"{self.least:g} to {self.most:g} is needed"


@dataclass(frozen=True)
class Formerly:
    """What a parameter's values were in earlier versions, and what they are called now."""

    now: Mapping[bool | str, str]

    def translated(self, value: Any) -> Any:
        """Return today's value for a former one, also as the text "true" or "false"."""
        if isinstance(value, str):
            value = {"true": True, "false": False}.get(value.lower(), value)
        return self.now.get(value, value) if isinstance(value, bool | str) else value


@cache
def hints_of(declared: type) -> dict[str, Any]:
    """Return the declared type of every parameter of a dataclass."""
    hints = get_type_hints(declared, include_extras=True)
    return {name: hint for name, hint in hints.items() if get_origin(hint) is not ClassVar}


def coerce(hint: Any, value: Any, where: str) -> Any:
    """Return a value converted to its declared type; raise AnalysisError if it cannot be."""
    origin, inside = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        value = _of_today(inside[1:], value)
        return _in_range(inside[1:], coerce(inside[0], value, where), where)
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise AnalysisError(f"{where} is {value!r}; a table is needed")
        return {key: coerce(inside[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is Literal:
        return _chosen(inside, value, where)
    if origin is tuple and inside[-1:] == (...,):
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(coerce(inside[0], item, where) for item in values)
    if origin in (Union, UnionType):
        return (
            None if value is None and NoneType in inside else _first(inside, value, where, coerce)
        )
    if isinstance(value, bool) and hint is not bool:
        raise AnalysisError(f"{where} is {value!r}; {_name(hint)} is needed")
    if hint is int and isinstance(value, Integral):
        return int(value)
    if hint is float and isinstance(value, Real):
        return _number(float(value), where)
    if isinstance(hint, type) and not isinstance(value, hint):
        raise AnalysisError(f"{where} is {value!r}; {_name(hint)} is needed")
    return value


def parse(hint: Any, text: str, where: str) -> Any:
    """Return a text from the command line as a value of the declared type.

    A text for `str` is taken as it is. Items are separated by commas, or form a JSON list. `none`
    or an empty text is None. Raises AnalysisError for a text that is no such value.
    """
    origin, inside = get_origin(hint), get_args(hint)
    if hint is str:
        return text
    if origin is Annotated:
        text = _of_today(inside[1:], text)
        return _in_range(inside[1:], parse(inside[0], text, where), where)
    if origin is tuple and inside[-1:] == (...,):
        items = _items(text, where)
        return tuple(_item(inside[0], item, where) for item in items)
    if origin is Literal:
        return _chosen(inside, next((value for value in inside if str(value) == text), text), where)
    if origin in (Union, UnionType):
        return (
            None
            if text in ("", "none") and NoneType in inside
            else _first(inside, text, where, parse)
        )
    if hint is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if hint in (int, float):
        return _read_number(hint, text, where)
    return coerce(hint, text if hint is Any else _json(text), where)


def json_schema(hint: Any) -> dict[str, Any]:
    """Return the JSON Schema of the values of a declared type, as far as one can say it."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return json_schema(inside[0]) | _limits(inside[1:])
    if origin is Literal:
        return {"enum": [*inside]}
    if origin in (Union, UnionType):
        return {"anyOf": [json_schema(each) for each in inside]}
    if origin is tuple and inside[-1:] == (...,):
        return {"type": "array", "items": json_schema(inside[0])}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": json_schema(inside[1])}
    return {"type": _JSON_TYPES[hint]} if hint in _JSON_TYPES else {}


def _limits(notes: tuple[Any, ...]) -> dict[str, Any]:
    """Return the least and the greatest value that a declaration allows."""
    limits = dict[str, Any]()
    for each in notes:
        if isinstance(each, AtLeast | Between):
            limits["minimum"] = each.least
        if isinstance(each, Between):
            limits["maximum"] = each.most
    return limits


def _of_today(notes: tuple[Any, ...], value: Any) -> Any:
    """Return a value under the name that it has today."""
    for each in notes:
        if isinstance(each, Formerly):
            value = each.translated(value)
    return value


def _in_range(ranges: tuple[Any, ...], value: Any, where: str) -> Any:
    for each in ranges:
        if value is None or not isinstance(each, AtLeast | Between):
            continue
        if wrong := each.refusal(value):
            raise AnalysisError(f"{where}={value}; {wrong}")
    return value


def _item(hint: Any, item: Any, where: str) -> Any:
    return parse(hint, item, where) if isinstance(item, str) else coerce(hint, item, where)


def _items(text: str, where: str) -> list[Any]:
    """Return the items of a JSON list, or of a text with commas."""
    if not text.startswith("["):
        return [item.strip() for item in text.split(",")] if text.strip() else []
    value = _json(text)
    if not isinstance(value, list):
        raise AnalysisError(
            f"{where} is {text!r}; items with commas between them, or a JSON list, are needed"
        )
    return value


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _read_number(hint: type, text: str, where: str) -> int | float:
    try:
        return int(text) if hint is int else _number(float(text), where)
    except ValueError:
        raise AnalysisError(f"{where} is {text!r}; {_name(hint)} is needed") from None


def _number(value: float, where: str) -> float:
    if math.isnan(value):
        raise AnalysisError(f"{where} is {value!r}; a number is needed")
    return value


def _chosen(options: tuple[Any, ...], value: Any, where: str) -> Any:
    for option in options:
        if type(option) is type(value) and option == value:
            return option
    raise AnalysisError(f"{where}: " + unknown("value", str(value), map(str, options)))


def _first(
    hints: tuple[Any, ...], value: Any, where: str, read: Callable[[Any, Any, str], Any]
) -> Any:
    """Return a value as the first of several types that accepts it."""
    for hint in hints:
        try:
            return read(hint, value, where)
        except AnalysisError:
            continue
    raise AnalysisError(f"{where} is {value!r}; {' or '.join(map(_name, hints))} is needed")


def _name(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        return _name(get_args(hint)[0])
    return "none" if hint is NoneType else getattr(hint, "__name__", str(hint))
