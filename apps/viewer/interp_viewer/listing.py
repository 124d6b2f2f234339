"""The runs below a folder, known from their run.json alone."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from interp.errors import RunError
from interp.runs.folder import cells_asked, read_run
from interp_viewer.guarded import inside, require_small

_DEPTH = 3


@dataclass(frozen=True)
class RunSummary:
    """What run.json alone says of a run; `error` says why it cannot be opened."""

    id: str
    path: Path
    models: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    analyses: tuple[str, ...] = ()
    n_prompts: int = 0
    n_cells: int = 0
    n_expected: int = 0
    n_failed: int = 0
    started: str = ""
    written: float = 0.0
    error: str = ""

    @property
    def status(self) -> str:
        """Return what became of the run, in a word or two."""
        if self.error:
            return "unreadable"
        if self.n_cells < self.n_expected:
            is_fresh = time.time() - self.written < 60
            return (
                f"{'running' if is_fresh else 'unfinished'}:"
                f" {self.n_cells} of {self.n_expected} cells"
            )
        return f"{self.n_failed} failed" if self.n_failed else "finished"


def summaries(root: Path) -> list[RunSummary]:
    """Return a summary of every run below a folder, the latest first."""
    return sorted(
        (_header(root, folder) for folder in _folders(root)), key=lambda header: -header.written
    )


def _folders(root: Path, depth: int = 0) -> Iterator[Path]:
    if depth > _DEPTH or not root.is_dir():
        return
    for folder in sorted(root.iterdir()):
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        if (folder / "run.json").is_file():
            yield folder
        elif folder.name != "store":
            yield from _folders(folder, depth + 1)


def _header(root: Path, folder: Path) -> RunSummary:
    name, path = folder.relative_to(root).as_posix(), folder / "run.json"
    try:
        stat = inside(root, path).stat()
    except (RunError, OSError) as error:
        return RunSummary(name, folder, error=str(error))
    return _read_header(name, folder, stat.st_mtime_ns, stat.st_size)


@st.cache_resource(max_entries=5000, show_spinner=False)
def _read_header(name: str, folder: Path, written: int, size: int) -> RunSummary:  # noqa: ARG001
    try:
        run = read_run(require_small(folder / "run.json").parent)
        _require_record(run)
        cells, config = run["cells"].values(), run["config"]
        return RunSummary(
            name,
            folder,
            tuple(config["models"]),
            tuple(config["tasks"]),
            tuple(dict.fromkeys(cell["analysis"] for cell in cells if cell["status"] == "ok")),
            max((cell.get("n_prompts", 0) for cell in cells), default=0),
            len(run["cells"]),
            len(cells_asked(config)),
            sum(cell["status"] == "failed" for cell in cells),
            str(run["started"]),
            written / 1e9,
        )
    except RunError as error:
        return RunSummary(name, folder, error=str(error), written=written / 1e9)
    except (KeyError, TypeError, AttributeError) as error:
        return RunSummary(
            name,
            folder,
            error=f"{folder / 'run.json'} is not a run's ({error!r})",
            written=written / 1e9,
        )


def _require_record(run: dict[str, Any]) -> None:
    """Raise KeyError or TypeError if run.json lacks what pages read of it."""
    for name in ("config", "cells", "models", "tasks", "versions"):
        if not isinstance(run[name], dict):
            raise TypeError(f"{name} is not an object")
    for cell in run["cells"].values():
        if not all(isinstance(cell[name], str) for name in ("model", "task", "analysis", "status")):
            raise TypeError("a cell has no name or status")
        if cell["status"] == "ok" and not isinstance(cell["parameters"], dict):
            raise TypeError("a cell has no parameters")
