"""All analyses: those in `interp.analyses`, those of installed packages, those in own files."""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import metadata
from importlib.metadata import EntryPoint
from typing import Any

import interp.analyses as package
from interp.analysis import Analysis, name_of
from interp.errors import AnalysisError, unknown
from interp.parameters import coerce, hints_of, parse
from interp.runs.own import analysis_in, file_and_label

GROUP = "interp.analyses"  # of entry points
entry_points = cache(metadata.entry_points)  # it reads what every package of the environment says


def find_analyses() -> dict[str, type[Analysis]]:
    """Return every analysis by name: those in `interp.analyses`, and those of installed packages.

    A package brings one by an entry point of the group "interp.analyses". Raises AnalysisError,
    naming it, for what cannot be imported and for a file that is not called as the analysis in it.
    """
    return dict(_find(tuple(package.__path__), tuple(entry_points(group=GROUP))))


@cache
def _find(folders: tuple[str, ...], points: tuple[EntryPoint, ...]) -> dict[str, type[Analysis]]:
    analyses = {module.name: _analysis_in(module.name) for module in pkgutil.iter_modules(folders)}
    for point in points:
        loaded = _imported(point.value, point.load)
        if not (isinstance(loaded, type) and issubclass(loaded, Analysis)):
            raise AnalysisError(f"entry point {point.name} = {point.value} is not an Analysis")
        analyses[name_of(loaded)] = loaded
    return analyses


def _analysis_in(name: str) -> type[Analysis]:
    module = _imported(
        f"interp/analyses/{name}.py", lambda: importlib.import_module(f"interp.analyses.{name}")
    )
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Analysis)
        and value.__module__ == module.__name__
    ]
    for value in own:
        if name_of(value) == name:
            return value
    names = ", ".join(f"{value.__name__} (which belongs into {name_of(value)}.py)" for value in own)
    raise AnalysisError(
        f"interp/analyses/{name}.py has no analysis of that name; there is {names or 'none'}"
    )


def _imported(what: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (ImportError, SyntaxError, NameError, AttributeError) as error:
        raise AnalysisError(
            f"{what} cannot be imported ({type(error).__name__}: {error})"
        ) from error


def name_and_file(given: str) -> tuple[str, str]:
    """Return the name, with its label, of what stands for an analysis, and its file or "".

    A file is returned with its class: "./my_file.py:MyNorm" of "my_norm". Raises AnalysisError for
    a file without an analysis, and for one whose analysis has the name of another.
    """
    file, label = file_and_label(given)
    if not file:
        return given, ""
    analysis = analysis_in(file)
    name, path = name_of(analysis), file.removesuffix(f":{analysis.__name__}")
    if name in find_analyses():
        raise AnalysisError(
            f"{path}: {analysis.__name__} would be called {name}, as an analysis that is there"
            " already; rename the class"
        )
    return f"{name}{label}", f"{path}:{analysis.__name__}"


def make_analysis(
    name: str,
    parameters: Mapping[str, Any],
    *,
    seed: int | None = None,
    against: str = "",
    file: str = "",
) -> Analysis:
    """Return an analysis with parameters; raise AnalysisError for what does not exist.

    `seed` is for an analysis that has one, and `against` names the other model for an analysis of
    two, unless its parameters say otherwise. `file` is where the analysis is if it is in a file of
    one's own: "PATH.py" or "PATH.py:CLASS".
    """
    analysis = analysis_class(name, file=file)
    if against and analysis.names_other:
        parameters = {analysis.names_other: against} | dict(parameters)
    return with_parameters(analysis, parameters, seed=seed)


def with_parameters(
    analysis: type[Analysis], parameters: Mapping[str, Any], *, seed: int | None = None
) -> Analysis:
    """Return an analysis of this type; see `make_analysis`."""
    name, hints = name_of(analysis), _hints(analysis, parameters)
    parameters = {analysis.formerly.get(key, key): value for key, value in parameters.items()}
    if seed is not None and "seed" in hints:
        parameters = {"seed": seed} | dict(parameters)
    return analysis(
        **{key: coerce(hints[key], value, f"{name}.{key}") for key, value in parameters.items()}
    )


def parse_parameter(name: str, key: str, text: str, *, file: str = "") -> Any:
    """Return the value that a text gives to a parameter of an analysis, or of that in a file.

    Raises AnalysisError as `make_analysis` does.
    """
    analysis = analysis_class(name, file=file)
    hints = _hints(analysis, [key])
    return parse(hints[analysis.formerly.get(key, key)], text, f"{name}.{key}")


def analysis_class(name: str, *, file: str = "") -> type[Analysis]:
    """Return the analysis of a file, or of a name; raise AnalysisError if there is none."""
    if file:
        return analysis_in(file)
    analyses = find_analyses()
    if name not in analyses:
        raise AnalysisError(unknown("analysis", name, analyses))
    return analyses[name]


def _hints(analysis: type[Analysis], parameters: Iterable[str]) -> dict[str, Any]:
    """Return the types of an analysis's parameters; raise AnalysisError for one it has not."""
    hints = hints_of(analysis)
    for key in parameters:
        if analysis.formerly.get(key, key) not in hints:
            raise AnalysisError(unknown(f"parameter of {name_of(analysis)}", key, hints))
    return hints
