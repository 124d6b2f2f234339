"""A run folder on disk: what is where, and how it is read; no torch here.

RUN/run.json                       configuration, provenance, status of every cell
RUN/analyses/                      copies of the user's own files with analyses
RUN/MODEL/TASK/                    prompts.jsonl, tokens.json
RUN/MODEL/TASK/ANALYSIS[@LABEL]/   parts/00007.safetensors, frame.parquet, figure.json, result.json
                                   (and prompts.jsonl, where some of the task's were left out)
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

from interp.errors import RunError
from interp.files.whole import digest_of, read_json

SCHEMA = 2  # 1: of interp 0.1, whose results do not say of which weights and tokens they are
_SEGMENT = r"[\w@+=,-][\w@+=,. -]{0,99}(?<![. ])"  # of a name: safe as a file name on every system
_PLAIN = re.compile(rf"{_SEGMENT}(/{_SEGMENT})*")
_DEVICES = re.compile(
    r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE
)  # no names of files on Windows
_LONGEST = 120


def folder_name(name: str) -> str:
    """Return the folder of a model, task or label; no two names have one, none leads out of a run.

    It is the name with `--` for slashes, or, where that could be another's or is no folder's name,
    what can be read of it and a hash.
    """
    plain = name.replace("/", "--")
    is_plain = (
        _PLAIN.fullmatch(name) and "--" not in name and unicodedata.is_normalized("NFC", name)
    )
    if is_plain and len(plain.encode()) <= _LONGEST and not _DEVICES.fullmatch(plain):
        return plain
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")[-40:].lstrip("-.")
    return f"{readable or 'name'}~{digest_of(name.encode('utf-8', 'surrogatepass'))[:10]}"


@dataclass(frozen=True)
class Cell:
    """One analysis of one task on one model; `label` names its set of parameters.

    `at` is its folder inside the run if its names do not say it, as in runs of interp 0.1.
    """

    model: str
    task: str
    analysis: str
    label: str = ""
    at: str = field(default="", compare=False)

    @classmethod
    def of(cls, path: str, record: dict[str, Any]) -> "Cell":
        """Return the cell that run.json records under a path."""
        return cls(
            record["model"], record["task"], record["analysis"], record.get("label", ""), at=path
        )

    @classmethod
    def parse(cls, model: str, task: str, name: str) -> "Cell":
        """Return the cell of "ANALYSIS" or "ANALYSIS@LABEL"."""
        analysis, _, label = name.partition("@")
        return cls(model, task, analysis, label)

    @property
    def name(self) -> str:
        """Return "ANALYSIS", or "ANALYSIS@LABEL" where it has a label."""
        return f"{self.analysis}@{self.label}" if self.label else self.analysis

    @property
    def path(self) -> str:
        """Return the cell's folder inside the run."""
        last = f"{self.analysis}@{folder_name(self.label)}" if self.label else self.analysis
        return self.at or f"{task_path(self.model, self.task)}/{last}"

    @property
    def names(self) -> dict[str, str]:
        """Return the names that run.json records of a cell."""
        return {key: getattr(self, key) for key in ("model", "task", "analysis", "label")}


def cells_asked(config: Mapping[str, Any]) -> list[Cell]:
    """Return the cells that `config` of run.json asks for, in the order in which they run."""
    on = config.get("on") or {}
    return [
        Cell.parse(model, task, name)
        for model, task, name in product(*(config[key] for key in ("models", "tasks", "analyses")))
        if task in on.get(name, (task,))
    ]


def own_path(folder: Path, analysis: str) -> Path:
    """Return where a run keeps its copy of the file that an analysis of a user's own is in."""
    return folder / "analyses" / f"{analysis}.py"


def task_path(model: str, task: str) -> str:
    """Return the folder of a task on a model inside a run."""
    return f"{folder_name(model)}/{folder_name(task)}"


def cells_of(run: dict[str, Any]) -> dict[Cell, dict[str, Any]]:
    """Map the cells of a run to what run.json records of them."""
    return {Cell.of(path, record): record for path, record in run["cells"].items()}


def why_missing(run: dict[str, Any], name: str) -> str:
    """Return why a run has no result of an analysis that it was asked for; "" if it was not."""
    whys = (record.get("error", "") for cell, record in cells_of(run).items() if cell.name == name)
    return next(filter(None, whys), "")


def task_folder(run: dict[str, Any], model: str, task: str) -> str:
    """Return the folder of a task on a model, also in a run of an earlier version."""
    paths = (cell.path for cell in cells_of(run) if (cell.model, cell.task) == (model, task))
    return next((path.rpartition("/")[0] for path in paths), task_path(model, task))


def is_whole(path: Path) -> bool:
    """Tell whether a cell's file is undamaged."""
    try:
        read_file(path)
    except RunError:
        return False
    return True


def read_file(path: Path) -> bytes:
    """Return the content of a cell's file; raise RunError if it is missing or damaged."""
    result = read_json(path.parent / "result.json")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror})") from None
    expected = result.get("files", {}).get(path.name)
    if expected is not None and digest_of(content) != expected:
        raise RunError(
            f"{path} is damaged: it is not what was written; the same `interp run` makes it again"
        )
    return content


def read_run(folder: Path) -> dict[str, Any]:
    """Return run.json; raise RunError if there is none, or one of a newer version."""
    path = folder / "run.json"
    if not path.is_file():
        raise RunError(f"no run in {folder}; a folder with run.json is needed")
    try:
        run = read_json(path)
    except RunError as error:
        raise RunError(
            f"{error}; delete it and run the same study again: what is finished is kept"
        ) from None
    for cell in run.get("cells", ()):
        if PurePosixPath(cell).is_absolute() or ".." in PurePosixPath(cell).parts:
            raise RunError(f"{path} names a folder outside of the run: {cell}")
    if run.get("schema", 0) > SCHEMA:
        raise RunError(
            f"{path} has schema {run['schema']}; this version reads up to {SCHEMA}; upgrade interp"
        )
    return run
