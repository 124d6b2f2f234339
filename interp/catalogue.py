"""Every analysis there is, found by looking into `interp.analyses`."""

import importlib
import pkgutil
from dataclasses import MISSING, fields
from typing import Any

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


def make_analysis(name: str, parameters: dict[str, Any]) -> Analysis:
    """Return an analysis with parameters; raise AnalysisError for names and values that do not exist."""
    analyses = find_analyses()
    if name not in analyses:
        raise AnalysisError(unknown("analysis", name, analyses))
    kinds = {f.name: f for f in fields(analyses[name])}
    given: dict[str, Any] = {}
    for key, value in parameters.items():
        if key not in kinds:
            raise AnalysisError(unknown(f"parameter of {name}", key, kinds))
        default = kinds[key].default
        given[key] = tuple(value) if isinstance(value, list) else value
        if default is not MISSING and isinstance(default, tuple) and not isinstance(given[key], tuple | str):
            given[key] = (given[key],)
    return analyses[name](**given)
