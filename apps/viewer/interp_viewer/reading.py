"""Finished run folders, read without torch: headers first, then only the rows that are looked at.

A run is found by its name among those below the root, never by joining a path; what lies outside of
the root, is too large, or is not what was written is refused with the file's name.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet
import streamlit as st
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from interp.errors import RunError, unknown
from interp.files.checksum import array_checksum
from interp.files.whole import read_json
from interp.runs.folder import Cell, cells_of, folder_name, read_file, read_run, task_folder

LARGEST_FILE = 512 * 2**20
MOST_NUMBERS = 40_000_000
_DEPTH = 3


@dataclass(frozen=True)
class Header:
    """What a list of runs says of one of them, read from run.json alone; `error` says why it cannot
    be opened.
    """

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
                f"{'running' if is_fresh else 'unfinished'}: {self.n_cells} of {self.n_expected}"
                " cells"
            )
        return f"{self.n_failed} failed" if self.n_failed else "finished"


def inside(root: Path, path: Path) -> Path:
    """Return a path; raise RunError if it is, or links to, something outside of `root`."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise RunError(f"{path} leads out of {root}; only what is inside is shown")
    return path


def require_small(path: Path, *, most: int = LARGEST_FILE) -> Path:
    """Return a path; raise RunError if the file is missing or larger than is ever opened here."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise RunError(
            f"{path} cannot be read ({error.strerror}); the same `interp run` makes it again"
        ) from None
    if size > most:
        raise RunError(
            f"{path} has {size / 2**20:,.0f} MB; the viewer opens files of up to"
            f" {most / 2**20:,.0f} MB"
        )
    return path


# Which runs there are


def headers(root: Path) -> list[Header]:
    """Return what there is to say of every run below a folder, the latest first."""
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


def _header(root: Path, folder: Path) -> Header:
    name, path = folder.relative_to(root).as_posix(), folder / "run.json"
    try:
        stat = inside(root, path).stat()
    except (RunError, OSError) as error:
        return Header(name, folder, error=str(error))
    return _read_header(name, folder, stat.st_mtime_ns, stat.st_size)


@st.cache_resource(max_entries=5000, show_spinner=False)
def _read_header(name: str, folder: Path, written: int, size: int) -> Header:  # noqa: ARG001
    try:
        run = read_run(require_small(folder / "run.json").parent)
        _require_record(run)
        cells, config = run["cells"].values(), run["config"]
        expected = len(config["models"]) * len(config["tasks"]) * len(config["analyses"])
        return Header(
            name,
            folder,
            tuple(config["models"]),
            tuple(config["tasks"]),
            tuple(dict.fromkeys(cell["analysis"] for cell in cells)),
            max((cell.get("n_prompts", 0) for cell in cells), default=0),
            len(run["cells"]),
            expected,
            sum(cell["status"] == "failed" for cell in cells),
            str(run["started"]),
            written / 1e9,
        )
    except RunError as error:
        return Header(name, folder, error=str(error), written=written / 1e9)
    except (KeyError, TypeError, AttributeError) as error:
        return Header(
            name,
            folder,
            error=f"{folder / 'run.json'} is not a run's ({error!r})",
            written=written / 1e9,
        )


def _require_record(run: dict[str, Any]) -> None:
    """Raise KeyError or TypeError if run.json lacks what pages read of it."""
    for name in ("config", "cells", "models", "tasks", "versions"):
        if not isinstance(run[name], dict):
            raise TypeError(f"{name} is no object")
    for cell in run["cells"].values():
        if not all(isinstance(cell[name], str) for name in ("model", "task", "analysis", "status")):
            raise TypeError("a cell has no name or status")
        if cell["status"] == "ok" and not isinstance(cell["parameters"], dict):
            raise TypeError("a cell has no parameters")


# One run


@dataclass(frozen=True)
class Measured:
    """The tensors of one analysis: one file a shard, whose first axis is the prompt.

    `prompts` are the numbers, in their task, of the prompts that were measured; None where that is
    all of them.
    """

    files: tuple[Path, ...]
    prompts: tuple[int, ...] | None = None

    @cached_property
    def _starts(self) -> list[int]:
        """Return the number of the first prompt of every file, and of one behind the last."""
        starts = [0]
        for path in self.files:
            with _opened(path) as file:
                name = next(iter(file.keys()))  # every tensor's first axis is the prompt
                starts.append(starts[-1] + file.get_slice(name).get_shape()[0])
        return starts

    @cached_property
    def names(self) -> dict[str, tuple[str, list[int]]]:
        """Map each tensor's name to its number type and its shape in the first file."""
        with _opened(self.files[0]) as file:
            slices = {name: file.get_slice(name) for name in sorted(file.keys())}
            return {name: (found.get_dtype(), found.get_shape()) for name, found in slices.items()}

    @property
    def n_prompts(self) -> int:
        """Return how many prompts were measured."""
        return self._starts[-1]

    def of_prompt(self, name: str, prompt: int) -> NDArray[Any]:
        """Return the values of a tensor for the prompt of this number in its task."""
        if self.prompts is not None:
            if prompt not in self.prompts:
                raise RunError(
                    f"prompt {prompt} was left out of this analysis: it cannot be used for it;"
                    " choose another one"
                )
            prompt = self.prompts.index(prompt)
        return self.of_row(name, prompt)

    def of_row(self, name: str, prompt: int) -> NDArray[Any]:
        """Return one measured prompt's values of a tensor."""
        for path, start, end in zip(self.files, self._starts, self._starts[1:], strict=False):
            if start <= prompt < end:
                self._check(path)
                with _opened(path) as file:
                    self._require(name)
                    return np.asarray(file.get_slice(name)[prompt - start : prompt - start + 1])[0]
        raise RunError(f"prompt {prompt} asked for; there is 0 to {self.n_prompts - 1}")

    def at(self, name: str, *index: int) -> NDArray[Any]:
        """Return every prompt's value at one place [prompt]; NaN for prompts that end before it or
        were left out.
        """
        self._require(name)
        found = []
        for path in self.files:
            self._check(path)
            with _opened(path) as file:
                part = file.get_slice(name)
                shape = part.get_shape()
                if all(i < size for i, size in zip(index, shape[1:], strict=True)):
                    found.append(
                        np.asarray(part[(slice(None), *(slice(i, i + 1) for i in index))]).reshape(
                            shape[0]
                        )
                    )
                else:
                    found.append(np.full(shape[0], np.nan, np.float32))
        values = np.concatenate(found)
        if self.prompts is None:
            return values
        of_task = np.full(max(self.prompts) + 1, np.nan, np.float32)
        of_task[list(self.prompts)] = values
        return of_task

    def all(self, name: str) -> NDArray[Any]:
        """Return a tensor of all prompts, whose files must agree in everything but the number of
        prompts.
        """
        self._require(name)
        parts = []
        for path in self.files:
            self._check(path)
            with _opened(path) as file:
                parts.append(np.asarray(file.get_tensor(name)))
        return np.concatenate(parts)

    def _require(self, name: str) -> None:
        if name not in self.names:
            raise RunError(
                unknown("tensor", name, self.names)
                + "; this run is of another version; run it again"
            )

    @staticmethod
    def _check(path: Path) -> None:
        stat = path.stat()
        _require_whole(path, stat.st_mtime_ns, stat.st_size)


def _opened(path: Path) -> Any:
    try:
        return safe_open(require_small(path), framework="numpy")
    except (SafetensorError, OSError) as error:
        raise RunError(
            f"{path} is damaged ({error}); the same `interp run` makes it again"
        ) from None


@st.cache_resource(max_entries=10_000, show_spinner=False)
def _require_whole(path: Path, written: int, size: int) -> bool:  # noqa: ARG001
    """Raise RunError if a file's tensors are not what was written; looked at once."""
    with _opened(path) as file:
        try:
            sums = json.loads((file.metadata() or {})["interp"])["checksums"]
        except (KeyError, ValueError) as error:
            raise RunError(
                f"{path} is damaged ({error!r}); the same `interp run` makes it again"
            ) from None
        for name in file.keys():  # noqa: SIM118
            array = np.ascontiguousarray(file.get_tensor(name))
            kind = f"torch.{array.dtype}"
            if sums.get(name) != array_checksum(name, array.shape, kind, array.tobytes()):
                raise RunError(
                    f"{path} is damaged: its tensors are not what was written; the same `interp"
                    " run` makes it again"
                )
    return True


@dataclass(frozen=True)
class Run:
    """One run folder; `info` is its run.json."""

    id: str
    root: Path
    folder: Path
    info: dict[str, Any]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Return every model and task of which something is recorded."""
        return list(
            dict.fromkeys((cell["model"], cell["task"]) for cell in self.info["cells"].values())
        )

    def cells(self, model: str, task: str) -> dict[Cell, dict[str, Any]]:
        """Map the cells of a model and a task to what is recorded of them."""
        return {
            cell: info
            for cell, info in cells_of(self.info).items()
            if (cell.model, cell.task) == (model, task)
        }

    def n_layers(self, model: str) -> int | None:
        """Return how many layers a model has; None before it was loaded."""
        known = self.info["models"].get(model)
        return None if known is None else int(known["layers"])

    def _file(self, cell: Cell, name: str) -> Path:
        path = inside(self.root, self.folder / cell.path / name)
        inside(self.root, path.parent / "result.json")
        return require_small(path)

    def frame(self, cell: Cell) -> pd.DataFrame:
        """Return a cell's table, prompts numbered as in their task; not to be changed."""
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
        """Return the numbers of the prompts that a cell measured; None if it left out none."""
        numbers = cells_of(self.info).get(cell, {}).get("prompts")
        return None if numbers is None else tuple(int(number) for number in numbers)

    def figure(self, cell: Cell) -> str:
        """Return a cell's Plotly figure as JSON."""
        return read_file(self._file(cell, "figure.json")).decode()

    def result(self, cell: Cell) -> dict[str, Any]:
        """Return what result.json says."""
        return read_json(self._file(cell, "result.json"))

    def measured(self, cell: Cell) -> Measured:
        """Return a cell's tensors; raise RunError where there are none."""
        folder = inside(self.root, self.folder / cell.path / "parts")
        files = tuple(inside(self.root, path) for path in sorted(folder.glob("*.safetensors")))
        if not files:
            raise RunError(f"{folder} has no parts; the same `interp run` makes them again")
        return Measured(files, self._numbers(cell))

    def prompts(self, model: str, task: str) -> list[dict[str, Any]]:
        """Return the prompts of a task, as they are numbered; none before any was measured."""
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


def open_run(root: Path, name: str) -> Run:
    """Return the run of a name; raise RunError if none below `root` has it, or it cannot be read."""
    found = {header.id: header for header in headers(root)}
    if name not in found:
        raise RunError(unknown("run", name, found))
    if found[name].error:
        raise RunError(found[name].error)
    folder = found[name].path
    stat = (folder / "run.json").stat()
    return Run(name, root, folder, _read_run(folder, stat.st_mtime_ns, stat.st_size))


@st.cache_resource(max_entries=64, show_spinner=False)
def _read_run(folder: Path, written: int, size: int) -> dict[str, Any]:  # noqa: ARG001
    return read_run(folder)


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
            f"{path} is damaged: a line is no prompt; the same `interp run` makes it again"
        )
    return rows


@st.cache_resource(max_entries=32, show_spinner=False)
def _read_list(path: Path, key: str, of: type, written: int, size: int) -> list[Any]:  # noqa: ARG001
    found = read_json(path).get(key)
    if not isinstance(found, list) or not all(isinstance(one, of) for one in found):
        raise RunError(
            f"{path} is damaged: it has no list “{key}”; the same `interp run` makes it again"
        )
    return found
