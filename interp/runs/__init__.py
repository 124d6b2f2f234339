"""Runs: models × tasks × analyses, executed into a folder that can be resumed and opened again.

What is named here is imported when it is asked for: a run folder is read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from interp._moved import RENAMED_IN_RUNS, warn_moved

if TYPE_CHECKING:
    from interp.runs.budget import estimate_costs
    from interp.runs.costs import CellCost
    from interp.runs.execution import execute
    from interp.runs.record import write_result
    from interp.runs.registry import find_analyses, make_analysis
    from interp.runs.run_comparison import RunComparison, compare_runs
    from interp.runs.run_folder import RunFolder, open_run
    from interp.runs.study import Study

_MODULES = {
    "CellCost": "costs",
    "RunComparison": "run_comparison",
    "RunFolder": "run_folder",
    "Study": "study",
    "compare_runs": "run_comparison",
    "estimate_costs": "budget",
    "execute": "execution",
    "find_analyses": "registry",
    "make_analysis": "registry",
    "open_run": "run_folder",
    "write_result": "record",
}
__all__ = [
    "CellCost",
    "RunComparison",
    "RunFolder",
    "Study",
    "compare_runs",
    "estimate_costs",
    "execute",
    "find_analyses",
    "make_analysis",
    "open_run",
    "write_result",
]


def __getattr__(name: str) -> Any:
    if name in RENAMED_IN_RUNS:
        warn_moved(f"{__name__}.{name}", f"{__name__}.{RENAMED_IN_RUNS[name]}")
        name = RENAMED_IN_RUNS[name]
    if name not in _MODULES:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; there is {', '.join(__all__)}"
        )
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
