"""What analyses declare, read from their sources: importing them all would load torch."""

import ast
import pkgutil
from dataclasses import dataclass, fields
from functools import cache
from importlib.machinery import FileFinder
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import interp.analyses as package


@dataclass(frozen=True)
class Declared:
    """An analysis's question, its page in the viewer and its rank in reports."""

    question: str
    page: str = "analysis"
    rank: int = 100


def declared() -> dict[str, Declared] | None:
    """Return what every analysis declares, by name.

    None if some of it is known only after importing: analyses of other packages, and those that
    compute what they declare; `interp.runs.find_analyses` imports them all.
    """
    read = _read(tuple(package.__path__))
    known = declared_in_files()
    return known if len(known) == len(read) and not entry_points(group=package.__name__) else None


def declared_in_files() -> dict[str, Declared]:
    """Return what analyses in `interp.analyses` declare, by name, as far as it can be read."""
    read = _read(tuple(package.__path__))
    return {name: each for name, each in read.items() if each is not None}


@cache
def _read(paths: tuple[str, ...]) -> dict[str, Declared | None]:
    return {module.name: _declared_in(module) for module in pkgutil.iter_modules(paths)}


def _declared_in(module: pkgutil.ModuleInfo) -> Declared | None:
    """Return what the class that a file is named for declares; None if it cannot be read."""
    if not isinstance(module.module_finder, FileFinder):
        return None
    stem = Path(module.module_finder.path) / module.name
    path = stem / "__init__.py" if module.ispkg else stem.with_suffix(".py")
    try:
        statements = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError):
        return None
    class_name = "".join(map(str.capitalize, module.name.split("_")))
    values: dict[str, Any] = {}
    for each in statements:
        if isinstance(each, ast.ClassDef) and each.name == class_name:
            values = _constants(each)
    is_known = isinstance(values.get("question"), str) and None not in values.values()
    return Declared(**values) if is_known else None


def _constants(declaring: ast.ClassDef) -> dict[str, Any]:
    """Map the fields of `Declared` that a class sets to their values; None if not constants."""
    names = {field.name for field in fields(Declared)}
    values = {}
    for line in declaring.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            name = line.target.id
        elif isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            name = line.targets[0].id
        else:
            continue
        if name in names:
            values[name] = line.value.value if isinstance(line.value, ast.Constant) else None
    return values
