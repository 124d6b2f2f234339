"""What a run has still to do, from its folder alone; no torch here."""

from pathlib import Path
from typing import Any

from interp.runs.folder import Cell, cells_asked, task_path


def unfinished_cells(folder: Path, run: dict[str, Any]) -> dict[Cell, dict[str, Any]]:
    """Map the cells of run.json's `config` of which nothing is recorded yet to how far they are.

    `status` is "begun" or "to do", `shards` how many are measured, `n_shards` of how many and
    `seconds_left` of one worker how long the rest takes; None if it was not planned yet.
    """
    cells, recorded = cells_asked(run["config"]), run["cells"]
    return {cell: _state(folder, run, cell) for cell in cells if cell.path not in recorded}


def _state(folder: Path, run: dict[str, Any], cell: Cell) -> dict[str, Any]:
    plan = run.get("plan", {}).get(task_path(cell.model, cell.task), {"cells": {}})
    planned = plan["cells"].get(cell.name, {})
    done = len([*(folder / cell.path / "parts").glob("*.safetensors")])
    n_shards, seconds = planned.get("n_shards"), planned.get("seconds")
    left = None if not n_shards or seconds is None else seconds * max(0, 1 - done / n_shards)
    of = f" of {n_shards}" if n_shards else ""
    return cell.names | {
        "status": "begun" if done else "to do",
        "error": f"{done}{of} shards measured" if done else "",
        "shards": done,
        "n_shards": n_shards,
        "seconds_left": left,
    }
