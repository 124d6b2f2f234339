"""`interp run --json`: what happens in a run, as it happens, one JSON object on each line."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp import __version__
from interp.cli.terminal import say_document, say_json

if TYPE_CHECKING:
    from interp.runs import Study
    from interp.runs.budget import TaskPlanned
    from interp.runs.folder import Cell
    from interp.runs.progress import Standing

_EVENT_OF = {"ok": "cell", "skipped": "left_out", "failed": "failed"}  # by a cell's status


def say_started(study: "Study", folder: Path) -> None:
    """Print the first line: versions, and what the run was asked for."""
    say_document(
        "events",
        event="started",
        interp=__version__,
        run=str(folder),
        models=[*study.models],
        tasks=[*study.tasks],
        cells=[cell.path for cell in study.cells()],
    )


def say_plan(planned: "TaskPlanned") -> None:
    """Print what a task on a model will cost, before it is run."""
    cells = [cost.to_json() for cost in planned.costs]
    say_json({"event": "plan", "minutes": planned.minutes, "cells": cells})


def say_progress(standing: "Standing") -> None:
    """Print how far the run is."""
    say_json({"event": "progress", **vars(standing)})


def say_cell(cell: "Cell", record: Mapping[str, Any]) -> None:
    """Print what became of a cell."""
    say_json({"event": _EVENT_OF[record["status"]], "cell": cell.path, **record})


def say_finished(record: Mapping[str, Any], *, status: int) -> None:
    """Print the last line: how many cells ended how, the exit status, and all of run.json."""
    counts = Counter(cell["status"] for cell in record["cells"].values())
    n_of = {event: counts[ended] for ended, event in _EVENT_OF.items()}
    say_json({"event": "finished", "exit_status": status, "n_of": n_of, "record": record})


def say_interrupted() -> None:
    """Print the last line of a run that was interrupted; the same command goes on with it."""
    say_json({"event": "interrupted", "exit_status": 130})
