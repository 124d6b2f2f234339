"""One run folder, read without torch.

A run is found by its name among those below the root, never by joining a path. What lies outside
the root, is too large, or is not what was written is refused with the file's name.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet
import streamlit as st

from interp.errors import RunError, unknown
from interp.files.whole import read_json
from interp.runs.evidence import beside_untrained
from interp.runs.folder import Cell, cells_of, folder_name, read_file, read_run, task_folder
from interp_viewer.guarded import inside, require_small
from interp_viewer.listing import summaries
from interp_viewer.tensors import Measured

MOST_NUMBERS = 40_000_000


@dataclass(frozen=True)
class ViewedRun:
    """One run folder; `info` is its run.json."""

    id: str
    root: Path
    folder: Path
    info: dict[str, Any]

    @property
    def models_and_tasks(self) -> list[tuple[str, str]]:
        """Return every model and task of which something is recorded."""
        return list(
            dict.fromkeys((cell["model"], cell["task"]) for cell in self.info["cells"].values())
        )

    def cells(self, model: str, task: str) -> dict[Cell, dict[str, Any]]:
        """Map the cells of a model and a task to their records."""
        return {
            cell: info
            for cell, info in cells_of(self.info).items()
            if (cell.model, cell.task) == (model, task)
        }

    def n_layers(self, model: str) -> int | None:
        """Return the model's number of layers; None if it was never loaded."""
        known = self.info["models"].get(model)
        return None if known is None else int(known["layers"])

    def _file(self, cell: Cell, name: str) -> Path:
        path = inside(self.root, self.folder / cell.path / name)
        inside(self.root, path.parent / "result.json")
        return require_small(path)

    def frame(self, cell: Cell) -> pd.DataFrame:
        """Return a cell's table, read-only, with prompts numbered as in their task."""
        path = self._file(cell, "frame.parquet")
        stat = path.stat()
        frame, numbers = _read_frame(path, stat.st_mtime_ns, stat.st_size), self._numbers(cell)
        if (
            numbers is None
            or "prompt" not in frame
            or not pd.api.types.is_integer_dtype(frame["prompt"])
        ):
            return frame
        return frame.assign(prompt=frame["prompt"].map(dict(enumerate(numbers))).astype("Int64"))

    def _numbers(self, cell: Cell) -> tuple[int, ...] | None:
        """Return the numbers of the prompts that a cell measured; None if it measured all."""
        numbers = cells_of(self.info).get(cell, {}).get("prompts")
        return None if numbers is None else tuple(int(number) for number in numbers)

    def figure(self, cell: Cell) -> str:
        """Return a cell's Plotly figure as JSON."""
        return read_file(self._file(cell, "figure.json")).decode()

    def result(self, cell: Cell) -> dict[str, Any]:
        """Return what result.json says."""
        return read_json(self._file(cell, "result.json"))

    def measured(self, cell: Cell) -> Measured:
        """Return a cell's tensors; raise RunError if there are none."""
        folder = inside(self.root, self.folder / cell.path / "parts")
        files = tuple(inside(self.root, path) for path in sorted(folder.glob("*.safetensors")))
        if not files:
            raise RunError(f"{folder} has no parts; the same `interp run` makes them again")
        return Measured(files, self._numbers(cell))

    def prompts(self, model: str, task: str) -> list[dict[str, Any]]:
        """Return a task's prompts in order; none before any was measured."""
        path = inside(
            self.root, self.folder / task_folder(self.info, model, task) / "prompts.jsonl"
        )
        if not path.is_file():
            return []
        stat = require_small(path).stat()
        return _read_prompts(path, stat.st_mtime_ns, stat.st_size)

    def tokens(self, model: str, task: str) -> list[list[int]]:
        """Return the tokens of every prompt; none in a run of an earlier version."""
        path = inside(self.root, self.folder / task_folder(self.info, model, task) / "tokens.json")
        if not path.is_file():
            return []
        stat = require_small(path).stat()
        return _read_list(path, "tokens", list, stat.st_mtime_ns, stat.st_size)

    def vocabulary(self, model: str) -> list[str]:
        """Return the text of every token of a model; none in a run of an earlier version."""
        folders = (
            cell.path.partition("/")[0] for cell in cells_of(self.info) if cell.model == model
        )
        path = inside(
            self.root, self.folder / next(folders, folder_name(model)) / "vocabulary.json"
        )
        if not path.is_file():
            return []
        stat = require_small(path).stat()
        return _read_list(path, "vocabulary", str, stat.st_mtime_ns, stat.st_size)


def find_run(root: Path, name: str) -> ViewedRun:
    """Return the run with this name below `root`; raise RunError if it is missing or unreadable."""
    known = {summary.id: summary for summary in summaries(root)}
    if name not in known:
        raise RunError(unknown("run", name, known))
    if known[name].error:
        raise RunError(known[name].error)
    folder = known[name].path
    stat = (folder / "run.json").stat()
    return ViewedRun(name, root, folder, _read_run(folder, stat.st_mtime_ns, stat.st_size))


@st.cache_resource(max_entries=64, show_spinner=False)
def _read_run(folder: Path, written: int, size: int) -> dict[str, Any]:  # noqa: ARG001
    run = read_run(folder)
    return run | {"cells": beside_untrained(run["cells"])}


@st.cache_resource(max_entries=32, show_spinner=False)
def _read_frame(path: Path, written: int, size: int) -> pd.DataFrame:  # noqa: ARG001
    content = read_file(path)
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        numbers = file.metadata.num_rows * file.metadata.num_columns
        if numbers > MOST_NUMBERS:
            raise RunError(
                f"{path} has {numbers:,} numbers; the viewer opens tables of up to {MOST_NUMBERS:,}"
            )
        return file.read().to_pandas()
    except pyarrow.ArrowException as error:
        raise RunError(
            f"{path} is damaged ({error}); the same `interp run` makes it again"
        ) from None


@st.cache_resource(max_entries=32, show_spinner=False)
def _read_prompts(path: Path, written: int, size: int) -> list[dict[str, Any]]:  # noqa: ARG001
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except ValueError as error:
        raise RunError(
            f"{path} is damaged ({error}); the same `interp run` makes it again"
        ) from None
    if not all(isinstance(row, dict) for row in rows):
        raise RunError(
            f"{path} is damaged: a line is not a prompt; the same `interp run` makes it again"
        )
    return rows


@st.cache_resource(max_entries=32, show_spinner=False)
def _read_list(path: Path, key: str, of: type, written: int, size: int) -> list[Any]:  # noqa: ARG001
    values = read_json(path).get(key)
    if not isinstance(values, list) or not all(isinstance(one, of) for one in values):
        raise RunError(
            f"{path} is damaged: it has no list “{key}”; the same `interp run` makes it again"
        )
    return values
