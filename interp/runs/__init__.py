"""Runs: models × tasks × analyses, planned, executed into a folder that can be resumed, and opened
again.

What is named here is imported when it is asked for: a run folder is read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.runs.execution import Run, execute, open_run
    from interp.runs.registry import find_analyses, make_analysis
    from interp.runs.study import Estimate, Study, estimate

__all__ = [
    "Estimate",
    "Run",
    "Study",
    "estimate",
    "execute",
    "find_analyses",
    "make_analysis",
    "open_run",
]
_MODULES = {
    "Run": "execution",
    "execute": "execution",
    "open_run": "execution",
    "find_analyses": "registry",
    "make_analysis": "registry",
    "Estimate": "study",
    "Study": "study",
    "estimate": "study",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; there is {', '.join(__all__)}"
        )
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
