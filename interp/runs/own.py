"""An analysis in a file of a user's own, given by its path: `./my_file.py` or `./my_file.py:Name`.

The file is read once: what is measured is what was read, here and in every worker, though the file
may change meanwhile.
"""

import copyreg
import inspect
import re
import sys
import traceback
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from interp.analysis import Analysis
from interp.errors import AnalysisError
from interp.files.whole import digest_of

_FILE = re.compile(r"(?P<file>(?P<path>.+\.py)(:(?P<class_name>\w+))?)(?P<label>@.+)?")
_SOURCES: dict[str, str] = {}  # of the modules made here, by name


def file_and_label(name: str) -> tuple[str, str]:
    """Return the file and the "@LABEL" of "PATH.py", "PATH.py:CLASS" and the same with a label.

    Both are "" for the name of an analysis that is in no file.
    """
    match = _FILE.fullmatch(name)
    return ("", "") if match is None else (match["file"], match["label"] or "")


def analysis_in(file: str) -> type[Analysis]:
    """Return the analysis in "PATH.py", or the class that "PATH.py:CLASS" names.

    Raises AnalysisError, in one line, for a file that is not there or does not import, and for one
    with no analysis or with several of which none is named.
    """
    path, class_name = _path_of(file)
    found = {each.__name__: each for each in _classes_in(_imported(source_at(file), path))}
    whole = {name: each for name, each in found.items() if not inspect.isabstract(each)}
    if found and not whole:
        lacks = ", ".join(sorted(found[min(found)].__abstractmethods__))
        raise AnalysisError(f"{path}: {min(found)} lacks {lacks}")
    if not whole:
        raise AnalysisError(
            f"{path} has no analysis; a class that extends interp.analysis.Analysis is needed"
        )
    if class_name and class_name not in whole:
        raise AnalysisError(f"{path} has no analysis {class_name!r}; there is {_list(whole)}")
    if not class_name and len(whole) > 1:
        raise AnalysisError(
            f"{path} has several analyses ({_list(whole)}); name one: {path}:{min(whole)}"
        )
    return _with_defaults(whole[class_name or min(whole)], path)


def source_at(file: str) -> str:
    """Return the text of an analysis's file; raise AnalysisError if it cannot be read."""
    path, _ = _path_of(file)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise AnalysisError(
            f"no file {path}; `interp new analysis NAME` writes one to begin with"
        ) from None
    except OSError as error:
        raise AnalysisError(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise AnalysisError(f"{path} is no text in UTF-8 ({error.reason})") from None


def source_of(analysis: type[Analysis]) -> str | None:
    """Return the text of the file that an analysis was read from; None if from elsewhere."""
    return _SOURCES.get(analysis.__module__)


def is_known(source: str) -> bool:
    """Tell whether this process has already run a file with this text."""
    return _module_name(source) in _SOURCES


def _path_of(file: str) -> tuple[Path, str]:
    match = _FILE.fullmatch(file)
    if match is None:
        raise AnalysisError(f"{file!r} given; PATH.py or PATH.py:CLASS is needed")
    return Path(match["path"]).expanduser(), match["class_name"] or ""


def _module_name(source: str) -> str:
    return f"interp_own_{digest_of(source.encode())}"


def _imported(source: str, path: Path) -> ModuleType:
    """Return a file as a module; the same text is run once."""
    name = _module_name(source)
    if name in _SOURCES:
        return sys.modules[name]
    module = sys.modules[name] = ModuleType(name)  # where dataclasses look for it
    module.__file__ = str(path)
    try:
        exec(compile(source, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise AnalysisError(f"{path} cannot be imported: {_line_of(error, path)}{what}") from error
    _SOURCES[name] = source
    return module


def _line_of(error: BaseException, path: Path) -> str:
    """Return "line 3: ", where a file raised an error; "" if that is not known."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
    return f"line {lines[-1]}: " if lines else ""


def _classes_in(module: ModuleType) -> list[type[Analysis]]:
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Analysis)
        and value.__module__ == module.__name__
    ]
    for each in found:
        copyreg.pickle(each, _pickled)
    return found


def _with_defaults(analysis: type[Analysis], path: Path) -> type[Analysis]:
    for field in fields(analysis):
        if field.default is MISSING and field.default_factory is MISSING:
            raise AnalysisError(f"{path}: {analysis.__name__}.{field.name} has no default")
    return analysis


def _pickled(analysis: Analysis) -> tuple[Any, ...]:
    """Return how another process makes an analysis, without its file."""
    module = sys.modules[type(analysis).__module__]
    values = {field.name: getattr(analysis, field.name) for field in fields(analysis)}
    name = type(analysis).__name__
    return _made_again, (_SOURCES[module.__name__], str(module.__file__), name, values)


def _made_again(source: str, path: str, name: str, values: Mapping[str, Any]) -> Analysis:
    (found,) = (
        each for each in _classes_in(_imported(source, Path(path))) if each.__name__ == name
    )
    return found(**values)


def _list(found: Mapping[str, type]) -> str:
    return ", ".join(sorted(found)) or "none"
