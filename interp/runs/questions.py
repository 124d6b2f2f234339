"""What every analysis asks, read out of its file: importing them all, and torch with them, takes
seconds.
"""

import ast
import pkgutil
from importlib.machinery import FileFinder
from importlib.metadata import entry_points
from pathlib import Path

import interp.analyses as package


def questions() -> dict[str, str] | None:
    """Return the question of every analysis by name; None if some can only be known by importing
    it.
    """
    if entry_points(group=package.__name__):
        return None
    found = {module.name: _question(module) for module in pkgutil.iter_modules(package.__path__)}
    known = {name: question for name, question in found.items() if question is not None}
    return known if len(known) == len(found) else None


def _question(module: pkgutil.ModuleInfo) -> str | None:
    """Return the `question` of the class that a file is named for."""
    if not isinstance(module.module_finder, FileFinder):
        return None
    stem = Path(module.module_finder.path) / module.name
    path = stem / "__init__.py" if module.ispkg else stem.with_suffix(".py")
    try:
        statements = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError):
        return None
    classes = [each for each in statements if isinstance(each, ast.ClassDef)]
    of_it = [
        each
        for each in classes
        if each.name == "".join(map(str.capitalize, module.name.split("_")))
    ]
    for line in of_it[0].body if of_it else ():
        if (
            isinstance(line, ast.AnnAssign)
            and isinstance(line.target, ast.Name)
            and line.target.id == "question"
        ):
            return (
                line.value.value
                if isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
                else None
            )
    return None
