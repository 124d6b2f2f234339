"""Tensors in safetensors files: where each one lies, read one by one, without mapping the files."""

import json
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from interp.errors import ModelError

TYPES = {
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
_LONGEST = 100_000_000  # bytes of a header, as safetensors allows


@dataclass(frozen=True)
class TensorHeader:
    """A tensor in a file: its type by safetensors' name, its shape, and where its bytes are."""

    path: Path
    kind: str
    shape: tuple[int, ...]
    start: int
    n_bytes: int

    @property
    def numel(self) -> int:
        """Return how many numbers it has."""
        return prod(self.shape)

    @property
    def dtype(self) -> torch.dtype | None:
        """Return its type; None for one that nothing computes in."""
        return TYPES.get(self.kind)


class TensorFiles:
    """The tensors of safetensors files by name, read as bytes; `bytes_read` counts them.

    The files stay open. Raises ModelError for a file that cannot be read, and, when a tensor is
    read, for one that was removed or changed after this was made.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.tensors: dict[str, TensorHeader] = {}
        self.bytes_read = 0
        self._counting = threading.Lock()
        self._files: dict[Path, int] = {}
        self._stamps: dict[Path, tuple[int, ...]] = {}
        for path in paths:
            try:
                self._files[path] = os.open(path, os.O_RDONLY)
                self._stamps[path] = _stamp(path)
                tensors = read_header(path)
            except OSError as error:
                raise ModelError(f"{path} cannot be read ({error.strerror})") from None
            for name, each in tensors.items():
                if each.dtype is None:
                    raise ModelError(f"{path}: {name} has type {each.kind}, which is not read")
            self.tensors |= tensors

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

    def _read_bytes(self, stored: TensorHeader, flat: Tensor) -> None:
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


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Return the tensors that a safetensors file holds, from its header.

    Raises ModelError for a header that is not one, or that does not describe this file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 0 < length <= min(size - 8, _LONGEST):
            raise ModelError(
                f"{path} has no safetensors header: {size} bytes, of which it claims {length}"
            )
        text = file.read(length)
    tensors: dict[str, TensorHeader] = {}
    first = 8 + length
    try:
        for name, about in json.loads(text).items():
            if name == "__metadata__":
                continue
            start, end = map(int, about["data_offsets"])
            shape = tuple(map(int, about["shape"]))
            each = TensorHeader(path, str(about["dtype"]), shape, first + start, end - start)
            needed = None if each.dtype is None else each.numel * each.dtype.itemsize
            if needed not in (None, each.n_bytes):
                raise ModelError(
                    f"{path}: {name} has {each.n_bytes} bytes; {each.kind} of {[*shape]}"
                    f" needs {needed}"
                )
            tensors[name] = each
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ModelError(f"{path} has a header that cannot be read ({why})") from None
    end = max((each.start + each.n_bytes for each in tensors.values()), default=first)
    if end != size:
        raise ModelError(f"{path} has {size} bytes; its header describes {end}")
    return tensors


def most_common_dtype(tensors: Iterable[TensorHeader]) -> torch.dtype | None:
    """Return the type of most numbers, of those that something computes in; None without any."""
    n_of: dict[torch.dtype, int] = {}
    for each in tensors:
        if each.dtype is not None:
            n_of[each.dtype] = n_of.get(each.dtype, 0) + each.numel
    return max(n_of, key=lambda dtype: n_of[dtype], default=None)
