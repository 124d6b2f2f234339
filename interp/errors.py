"""Everything that can be wrong with what a user gave, as one tree.

InterpError
├── ModelError      a model that cannot be found (UnknownModelError), loaded or trusted
├── TaskError       a task, a prompt or a prompt file
├── SiteError       a place in a model that does not exist or cannot be read or written
├── AnalysisError   an analysis or one of its parameters
├── RunError        a study file, or a run folder; ChangedError if its results are of something else
├── StoreError      an activation store on disk
└── FigureError     a figure that cannot be written to a file

Messages follow one formula: what was given; what there is.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class InterpError(Exception):
    """Base of all errors that a user can cause; shown as one line, exit status 2."""


class ModelError(InterpError):
    """A model cannot be found, loaded or trusted."""


class UnknownModelError(ModelError):
    """There is no model of that name."""


class TaskError(InterpError):
    """A task, a prompt or a prompt file is not usable."""


class SiteError(InterpError):
    """A place in a model does not exist, or cannot be read or written."""


class AnalysisError(InterpError):
    """An analysis, or one of its parameters, is not usable."""


class UnsuitedError(AnalysisError):
    """An analysis cannot be made of a model, whatever the prompts."""


class RunError(InterpError):
    """A run folder or a study file is not usable."""


class ChangedError(RunError):
    """Finished results were computed from another model or other prompts than the present ones."""


class StoreError(InterpError):
    """An activation store is not usable."""


class FigureError(InterpError):
    """A figure cannot be written to a file as asked."""


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """Return the message for a name that does not exist, with the nearest one that does."""
    names = sorted(known)
    nearest = get_close_matches(given, names, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"unknown {what} {given!r}; {hint}there is {', '.join(names) or 'none'}"
