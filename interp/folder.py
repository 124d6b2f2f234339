"""A run folder on disk: names, atomic writes and reads; no torch here.

RUN/run.json                            configuration, provenance, status of every cell
RUN/MODEL/TASK/ANALYSIS[@LABEL]/        parts/00007.safetensors, frame.parquet, figure.json, result.json
"""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.errors import RunError

SCHEMA = 1


@dataclass(frozen=True)
class Cell:
    """One analysis of one task on one model; `label` names its set of parameters."""

    model: str
    task: str
    analysis: str
    label: str = ""

    @property
    def path(self) -> str:
        """Return the cell's folder inside the run: slashes in names become `--`."""
        last = f"{self.analysis}@{self.label}" if self.label else self.analysis
        return "/".join(part.strip("/").replace("/", "--") for part in (self.model, self.task, last) if part)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file aside, flush it, and rename it: what has a name is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=".aside-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(aside).chmod(0o644)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_run(folder: Path) -> dict[str, Any]:
    """Return run.json; raise RunError if there is none, or its schema is newer than this library's."""
    path = folder / "run.json"
    if not path.is_file():
        raise RunError(f"no run in {folder}; a folder with run.json is needed")
    try:
        run: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise RunError(f"{path} is not JSON ({error})") from None
    if run.get("schema", 0) > SCHEMA:
        raise RunError(f"{path} has schema {run['schema']}; this version reads up to {SCHEMA}; upgrade interp")
    return run
