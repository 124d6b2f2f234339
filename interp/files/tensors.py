"""Tensors in safetensors files: where each one lies, read one by one, without mapping the files."""

import json
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.errors import ModelError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LONGEST_HEADER = 1 << 27  # bytes; longer ones are no header


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: its file, type and shape, and its bytes there."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    n_bytes: int


class TensorFiles:
    """The tensors of safetensors files by name, read as bytes; `bytes_read` counts them.

    The files stay open. Raises ModelError for a file that cannot be read, and, when a tensor is
    read, for one that was removed or changed after this was made.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.tensors: dict[str, StoredTensor] = {}
        self.bytes_read = 0
        self._counting = threading.Lock()
        self._files: dict[Path, int] = {}
        self._stamps: dict[Path, tuple[int, ...]] = {}
        for path in paths:
            try:
                self._files[path] = os.open(path, os.O_RDONLY)
                self._stamps[path] = _stamp(path)
                self.tensors |= _tensors_of(path, self._files[path])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ModelError(f"{path} is not a safetensors file ({error})") from None

    def __del__(self) -> None:
        for file in self._files.values():
            os.close(file)

    def refuse_changed(self, paths: Iterable[Path] | None = None) -> None:
        """Raise ModelError if one of these files, or of all, is not what was opened."""
        for path in self._stamps if paths is None else paths:
            try:
                same = _stamp(path) == self._stamps[path]
            except OSError:
                raise ModelError(
                    f"{path} was removed while the model in it was in use; put it back"
                ) from None
            if not same:
                raise ModelError(
                    f"{path} was changed while the model in it was in use; load it again"
                )

    def read_into(self, name: str, tensor: Tensor) -> None:
        """Read a tensor into one of its shape, converted to that one's type."""
        stored = self.tensors[name]
        self.refuse_changed([stored.path])
        is_same = stored.dtype == tensor.dtype and tensor.is_contiguous()
        raw = tensor if is_same else torch.empty(stored.shape, dtype=stored.dtype)
        if stored.n_bytes:
            self._read_bytes(stored, raw.reshape(-1).view(torch.uint8))
        if raw is not tensor:
            tensor.copy_(raw)

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """Return a tensor, converted to a type."""
        tensor = torch.empty(self.tensors[name].shape, dtype=dtype)
        self.read_into(name, tensor)
        return tensor

    def _read_bytes(self, stored: StoredTensor, flat: Tensor) -> None:
        into, at = memoryview(flat.numpy().data), 0
        while at < stored.n_bytes:
            n = os.preadv(self._files[stored.path], [into[at:]], stored.start + at)
            if n <= 0:
                raise ModelError(f"{stored.path} ends before the weights that it lists")
            at += n
        with self._counting:
            self.bytes_read += stored.n_bytes


def _stamp(path: Path) -> tuple[int, ...]:
    about = path.stat()
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


def _tensors_of(path: Path, file: int) -> dict[str, StoredTensor]:
    """Return what a file's header lists; raise ValueError where the file is not as it says."""
    size = os.fstat(file).st_size
    length = int.from_bytes(os.pread(file, 8, 0), "little")
    if not 0 < length <= min(_LONGEST_HEADER, size - 8):
        raise ValueError("it has no header")
    header: dict[str, Any] = json.loads(os.pread(file, length, 8))
    header.pop("__metadata__", None)
    stored: dict[str, StoredTensor] = {}
    for name, about in header.items():
        if about["dtype"] not in _DTYPES:
            raise ValueError(f"{name} has type {about['dtype']}")
        dtype, shape = _DTYPES[about["dtype"]], tuple(map(int, about["shape"]))
        start, end = about["data_offsets"]
        n_bytes = end - start
        if n_bytes != dtype.itemsize * torch.Size(shape).numel() or 8 + length + end > size:
            raise ValueError(f"{name} is not whole")
        stored[name] = StoredTensor(path, dtype, shape, 8 + length + start, n_bytes)
    return stored
