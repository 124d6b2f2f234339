"""Where the public modules of 0.1 went: until 2.0, importing one works, with a warning."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

MOVED = {
    "interp.catalogue": "interp.runs.registry",
    "interp.choices": "interp.sweeps.choices",
    "interp.doctor": "interp.testing.doctor",
    "interp.fetched": "interp.files.fetched",
    "interp.folder": "interp.runs.folder",
    "interp.paths": "interp.files.paths",
    "interp.plots": "interp.figures.plots",
    "interp.study": "interp.runs",
    "interp.sweeps.circuits": "interp.analyses.circuit_discovery.circuits",
    "interp.sweeps.patching": "interp.sweeps.patches",
    "interp.sweeps.statistics": "interp.stats.bootstrap",
    "interp.viewing": "interp.runs.viewing",
}
RENAMED_IN_RUNS = {"Run": "RunFolder", "Estimate": "CellCost", "estimate": "estimate_costs"}


def warn_moved(old: str, new: str) -> None:
    """Warn whoever still uses an old name."""
    message = f"{old} is now {new}; the old name goes with interp 2.0"
    warnings.warn(message, DeprecationWarning, stacklevel=3)


class _Finder(MetaPathFinder, Loader):
    """Finds a module under its old name; what it holds is looked up in the new one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: Any = None
    ) -> ModuleSpec | None:
        return spec_from_loader(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        warn_moved(old, MOVED[old])
        home = import_module(MOVED[old])
        module.__getattr__ = lambda name: getattr(home, name)  # type: ignore[method-assign]


def install() -> None:
    """Let the old names be found, once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
