"""Files that are written whole or not at all, and whose damage is noticed."""

import json
import os
import tempfile
from hashlib import blake2b
from pathlib import Path
from typing import Any

from interp.errors import RunError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under another name, flush it, and rename it: a file with its name is whole.

    An OSError names the file.
    """
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
    """Write a JSON object atomically, with a hash of its content; raise RunError if that fails."""
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
    return digest_of(
        json.dumps({k: v for k, v in value.items() if k != "digest"}, sort_keys=True).encode()
    )
