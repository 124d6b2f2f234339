"""Every analysis there is, found by looking into `interp.analyses`."""

import importlib
import pkgutil
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import interp.analyses as package
from interp.analysis import Analysis, name_of
from interp.errors import AnalysisError, unknown


def find_analyses() -> dict[str, type[Analysis]]:
    """Return every analysis in `interp.analyses`, by name."""
    found: dict[str, type[Analysis]] = {}
    for module in pkgutil.iter_modules(package.__path__):
        for value in vars(importlib.import_module(f"interp.analyses.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Analysis) and name_of(value) == module.name:
                found[module.name] = value
    return found


def make_analysis(name: str, parameters: Mapping[str, Any]) -> Analysis:
    """Return an analysis with parameters; raise AnalysisError for names and values that do not exist."""
    analyses = find_analyses()
    if name not in analyses:
        raise AnalysisError(unknown("analysis", name, analyses))
    hints = {key: hint for key, hint in get_type_hints(analyses[name]).items() if get_origin(hint) is not ClassVar}
    for key in parameters:
        if key not in hints:
            raise AnalysisError(unknown(f"parameter of {name}", key, hints))
    return analyses[name](**{key: _fit(hints[key], value, f"{name}.{key}") for key, value in parameters.items()})


def _fit(hint: Any, value: Any, where: str) -> Any:
    """Return a value from a flag or a file as the type that a parameter declares."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in inside:
            raise AnalysisError(f"{where}: " + unknown("value", str(value), map(str, inside)))
        return value
    if origin is tuple and inside[-1:] == (...,):
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(_fit(inside[0], item, where) for item in values)
    if origin in (Union, UnionType):
        return None if value is None and NoneType in inside else _fit_any(inside, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)):
        raise AnalysisError(f"{where} is {value!r}; {hint.__name__} is needed")
    return value


def _fit_any(hints: tuple[Any, ...], value: Any, where: str) -> Any:
    for hint in hints:
        try:
            return _fit(hint, value, where)
        except AnalysisError:
            continue
    raise AnalysisError(f"{where} is {value!r}; {' or '.join(getattr(h, '__name__', str(h)) for h in hints)} is needed")
