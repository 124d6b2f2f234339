"""A run folder on disk: names, atomic writes and reads; no torch here.

RUN/run.json                            configuration, provenance, status of every cell
RUN/MODEL/TASK/ANALYSIS[@LABEL]/        parts/00007.safetensors, frame.parquet, figure.json, result.json
"""

import json
import os
import tempfile
from dataclasses import dataclass
from hashlib import blake2b
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
    """Write a file aside, flush it, and rename it: what has a name is whole. An OSError names the file."""
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
    except OSError as error:
        error.filename = str(path)
        raise


def digest_of(content: bytes) -> str:
    """Return a hash of a file's content."""
    return blake2b(content, digest_size=16).hexdigest()


def write_json(path: Path, value: dict[str, Any], *, indent: int | None = 1) -> None:
    """Write a JSON object atomically, with a hash of what it says; raise RunError, naming the file, if it cannot."""
    whole = value | {"digest": _digest(value)}
    try:
        write_atomically(path, json.dumps(whole, indent=indent, ensure_ascii=False) + "\n")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; what is finished is kept") from None


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object; raise RunError, naming the file, if it is not what was written."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error})") from None
    if not isinstance(value, dict):
        raise RunError(f"{path} is damaged: it holds no JSON object")
    if "digest" in value and value.pop("digest") != _digest(value):
        raise RunError(f"{path} is damaged: it does not say what was written")
    return value


def _digest(value: dict[str, Any]) -> str:
    return digest_of(json.dumps({k: v for k, v in value.items() if k != "digest"}, sort_keys=True).encode())


def is_whole(path: Path) -> bool:
    """Tell whether a cell's file is what was written."""
    try:
        read_file(path)
    except RunError:
        return False
    return True


def read_file(path: Path) -> bytes:
    """Return the content of a cell's file; raise RunError, naming it, if it is missing or not what was written."""
    result = read_json(path.parent / "result.json")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror})") from None
    expected = result.get("files", {}).get(path.name)
    if expected is not None and digest_of(content) != expected:
        raise RunError(f"{path} is damaged: it is not what was written; the same `interp run` makes it again")
    return content


def read_run(folder: Path) -> dict[str, Any]:
    """Return run.json; raise RunError if there is none, or its schema is newer than this library's."""
    path = folder / "run.json"
    if not path.is_file():
        raise RunError(f"no run in {folder}; a folder with run.json is needed")
    try:
        run = read_json(path)
    except RunError as error:
        raise RunError(f"{error}; delete it and run the same study again: what is finished is kept") from None
    if run.get("schema", 0) > SCHEMA:
        raise RunError(f"{path} has schema {run['schema']}; this version reads up to {SCHEMA}; upgrade interp")
    return run
