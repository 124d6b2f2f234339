"""What a checkpoint's safetensors files hold, from their headers alone: no weights are read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from interp.errors import ModelError
from interp.files.tensors import TensorHeader, read_header

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
_BIN = "pytorch_model.bin"


@dataclass(frozen=True)
class Headers:
    """What the weight files of a checkpoint say of themselves: tensors by name, bytes in all.

    `is_whole` is False where files that the index names are not there, or where files are of a
    format without headers; `n_bytes` then counts what is there or, by the index, what should be.
    """

    tensors: Mapping[str, TensorHeader]
    n_bytes: int
    is_whole: bool


def headers_of(source: str, revision: str | None = None) -> Headers:
    """Return the headers of a folder, or of a hub id's files in the local cache.

    Raises ModelError, naming the file, for a header or an index that cannot be read.
    """
    index = _there(source, INDEX, revision)
    if index is None:
        return _of_files(source, revision)
    try:
        about: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        names = sorted({*about["weight_map"].values()})
        total = int((about.get("metadata") or {}).get("total_size") or 0)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is not an index of safetensors files ({error!r})") from None
    paths = [_there(source, name, revision) for name in names]
    there = [path for path in paths if path is not None]
    n_bytes = sum(path.stat().st_size for path in there)
    is_whole = len(there) == len(names)
    return Headers(_joined(there), n_bytes if is_whole else max(total, n_bytes), is_whole)


def _of_files(source: str, revision: str | None) -> Headers:
    if Path(source).is_dir():
        paths = sorted(Path(source).glob("*.safetensors"))
        others = [] if paths else [*Path(source).glob("*.bin")]
    else:
        paths = [*filter(None, [_there(source, WHOLE, revision)])]
        others = [] if paths else [*filter(None, [_there(source, _BIN, revision)])]
    n_bytes = sum(path.stat().st_size for path in [*paths, *others])
    return Headers(_joined(paths), n_bytes, is_whole=bool(paths))


def _joined(paths: list[Path]) -> dict[str, TensorHeader]:
    return {name: tensor for path in paths for name, tensor in read_header(path).items()}


def _there(source: str, file: str, revision: str | None) -> Path | None:
    """Return a checkpoint's file if it is on this machine."""
    if Path(source).is_dir():
        path = Path(source) / file
        return path if path.is_file() else None
    found = cached_file(
        source,
        file,
        revision=revision,
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(str(found))
