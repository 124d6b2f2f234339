"""A run folder, opened again: results rebuilt from their parts, and the prompts they number."""

from pathlib import Path
from typing import Any

from interp.errors import RunError
from interp.result import Origin, Result
from interp.runs.folder import Cell, cells_of, read_run, task_folder
from interp.runs.parts import unpack
from interp.runs.registry import make_analysis
from interp.tasks import Prompt, Task


class RunFolder:
    """A run folder: `run["zoo/hops-4l", "two-hop", "layer_skip"]` is that cell's result.

    "layer_skip@LABEL" is the result of a labelled cell.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info = read_run(folder)

    def __getitem__(self, key: tuple[str, str, str]) -> Result:
        cell, record = self._finished(Cell.parse(*key))
        paths = sorted((self.folder / cell.path / "parts").glob("*.safetensors"))
        parts = [unpack(path) for path in paths]
        if len(parts) != record["n_shards"]:
            counts = f"{len(parts)} of {record['n_shards']} parts"
            raise RunError(f"{self.folder / cell.path} has {counts}; run the study again")
        result = make_analysis(cell.analysis, record["parameters"]).combine(parts)
        return result.read_from(Origin(self.folder, **cell.names))

    def _finished(self, asked: Cell) -> tuple[Cell, dict[str, Any]]:
        """Return a finished cell and its record in run.json."""
        records = cells_of(self.info)
        finished = {cell: record for cell, record in records.items() if record["status"] == "ok"}
        for cell, record in finished.items():
            if cell == asked:
                return cell, record
        paths = ", ".join(cell.path for cell in finished) or "none"
        raise RunError(f"no result {asked.path} in {self.folder}; there is {paths}")

    def prompts(self, model: str, task: str, analysis: str | None = None) -> tuple[Prompt, ...]:
        """Return the prompts of a task in the order in which results number them.

        An analysis that cannot use all of them numbers its own: those are returned if it is named.
        """
        folder = self.folder / task_folder(self.info, model, task)
        if analysis is not None:
            own = self.folder / self._finished(Cell.parse(model, task, analysis))[0].path
            folder = own if (own / "prompts.jsonl").exists() else folder
        return Task.from_jsonl(folder / "prompts.jsonl").prompts


def open_run(folder: str | Path) -> RunFolder:
    """Open a run folder; raises RunError if there is none."""
    return RunFolder(Path(folder))
