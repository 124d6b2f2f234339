"""Values from users: texts, token ids or nothing; anything else is refused in one line."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

from interp.errors import TaskError

Ids = tuple[int, ...]


def is_missing(value: object) -> bool:
    """Tell whether a table's cell is empty: None, a blank text, NaN, pandas's NA and NaT."""
    if isinstance(value, str):
        return not value.strip()
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, Real | Decimal) and bool(value != value)


def described(value: object) -> str:
    """Describe a value in a few words."""
    shape = getattr(value, "shape", None)
    if isinstance(value, str):
        return f"{value!r:.80}"
    return (
        f"{type(value).__name__} {value!r:.60}"
        if shape is None
        else f"{type(value).__name__} of shape {tuple(shape)}"
    )


def plain(value: Any) -> Any:
    """Return arrays and tensors as numbers or lists, anything else unchanged."""
    return value.tolist() if hasattr(value, "tolist") and hasattr(value, "dtype") else value


def list_of(given: Any, what: str) -> list[Any]:
    """Return the items of a list; raise TaskError for a single value."""
    given = plain(given)
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise TaskError(f"{what}: {described(given)} given; a list is needed")
    return list(given)


def list_of_texts(given: Any, what: str) -> tuple[str, ...]:
    """Return a list of texts; raise TaskError for a single text, or for other items."""
    if isinstance(given, str | bytes | Mapping) or not isinstance(plain(given), Iterable):
        raise TaskError(f"{what} is {described(given)}; a list of strings is needed")
    items = tuple(plain(given))
    for item in items:
        if not isinstance(item, str):
            raise TaskError(f"{what} has {described(item)}; a list of strings is needed")
    return tuple(map(str, items))


def is_id(value: object) -> bool:
    """Tell whether a value may be a token id."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_ids(given: Any) -> bool:
    """Tell whether a value is one id or a list, array or tensor of ids."""
    value = plain(given)
    if isinstance(value, str | bytes | Mapping):
        return False
    return is_id(value) or (
        isinstance(value, Sequence) and len(value) > 0 and all(map(is_id, value))
    )


def read_ids(given: Any, where: str) -> Ids:
    """Return one id, or a list, array or tensor of ids, as a tuple; TaskError for the rest."""
    if not is_ids(given):
        raise TaskError(f"{where}: {described(given)} given; token ids, whole numbers, are needed")
    value = plain(given)
    ids = tuple(int(i) for i in ([value] if is_id(value) else value))
    if min(ids) < 0:
        raise TaskError(f"{where}: token {min(ids)} given; ids count from 0")
    return ids


def spelled(ids: Ids, names: Sequence[str] = ()) -> str:
    """Return ids as text: their names, or numbers without names; TaskError beyond the names."""
    if names and max(ids) >= len(names):
        raise TaskError(f"token {max(ids)} given; there are {len(names)} names, from 0 on")
    return " ".join(names[i] if names else str(i) for i in ids)


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Return names, with the id after those that are blank or that several ids share."""
    count = Counter(names)
    return tuple(
        name if count[name] == 1 and name.strip() else f"{name}({i})"
        for i, name in enumerate(names)
    )
