"""Every analysis there is, found by looking into `interp.analyses`."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import interp.analyses as package
from interp.analysis import Analysis, name_of
from interp.errors import AnalysisError, unknown

GROUP = "interp.analyses"  # of entry points


def find_analyses() -> dict[str, type[Analysis]]:
    """Return every analysis by name: those in `interp.analyses`, and those that installed packages bring.

    A package brings one by an entry point of the group "interp.analyses". Raises AnalysisError, naming it, for what cannot
    be imported and for a file that is not called as the analysis in it.
    """
    found = {module.name: _analysis_in(module.name) for module in pkgutil.iter_modules(package.__path__)}
    for point in entry_points(group=GROUP):
        loaded = _imported(point.value, point.load)
        if not (isinstance(loaded, type) and issubclass(loaded, Analysis)):
            raise AnalysisError(f"entry point {point.name} = {point.value} is no Analysis")
        found[name_of(loaded)] = loaded
    return found


def _analysis_in(name: str) -> type[Analysis]:
    module = _imported(f"interp/analyses/{name}.py", lambda: importlib.import_module(f"interp.analyses.{name}"))
    there_is = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Analysis) and value.__module__ == module.__name__
    ]
    for value in there_is:
        if name_of(value) == name:
            return value
    names = ", ".join(f"{value.__name__} (which belongs into {name_of(value)}.py)" for value in there_is)
    raise AnalysisError(f"interp/analyses/{name}.py has no analysis of that name; there is {names or 'none'}")


def _imported(what: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (ImportError, SyntaxError, NameError, AttributeError) as error:
        raise AnalysisError(f"{what} cannot be imported ({type(error).__name__}: {error})") from error


def make_analysis(name: str, parameters: Mapping[str, Any], *, seed: int | None = None) -> Analysis:
    """Return an analysis with parameters; raise AnalysisError for names and values that do not exist.

    `seed` is for an analysis that has one, unless its parameters say otherwise.
    """
    analyses = find_analyses()
    if name not in analyses:
        raise AnalysisError(unknown("analysis", name, analyses))
    hints = {key: hint for key, hint in get_type_hints(analyses[name]).items() if get_origin(hint) is not ClassVar}
    if seed is not None and "seed" in hints:
        parameters = {"seed": seed} | dict(parameters)
    for key in parameters:
        if key not in hints:
            raise AnalysisError(unknown(f"parameter of {name}", key, hints))
    return analyses[name](**{key: fit(hints[key], value, f"{name}.{key}") for key, value in parameters.items()})


def fit(hint: Any, value: Any, where: str) -> Any:
    """Return a value from a flag or a file as the type that is declared; raise AnalysisError if it cannot be one."""
    origin, inside = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise AnalysisError(f"{where} is {value!r}; a table is needed")
        return {key: fit(inside[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is Literal:
        if value not in inside:
            raise AnalysisError(f"{where}: " + unknown("value", str(value), map(str, inside)))
        return value
    if origin is tuple and inside[-1:] == (...,):
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(fit(inside[0], item, where) for item in values)
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
            return fit(hint, value, where)
        except AnalysisError:
            continue
    raise AnalysisError(f"{where} is {value!r}; {' or '.join(getattr(h, '__name__', str(h)) for h in hints)} is needed")
