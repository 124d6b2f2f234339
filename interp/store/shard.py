"""The format of a shard: a safetensors file whose header names prompts and has checksums.

Metadata: `format`, `model` (fingerprint), `model_name`, `prompts` [[key, n_tokens] ...],
`checksums` {tensor: hash}, and `checksum`, the hash of the metadata before it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from interp.errors import StoreError
from interp.files.checksum import tensor_checksum
from interp.files.tensors import TYPES
from interp.files.whole import digest_of
from interp.store.files import Files
from interp.store.keys import is_tensor_name, is_word

FORMAT = 3
SUFFIX = ".safetensors"
_LARGEST_HEADER = 100_000_000
_FIRST_READ = 1 << 16
# What JSON of another shape raises
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


class DamagedError(StoreError):
    """A file is not what was written."""


class OutdatedError(StoreError):
    """A file was written by an older version, in a format that is no longer read."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a shard: its type, shape, place in the file [begin, end) and checksum."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    checksum: str


@dataclass(frozen=True)
class ShardHeader:
    """What a shard holds; reading it reads no tensor."""

    model: str
    model_name: str
    keys: tuple[str, ...]
    lengths: tuple[int, ...]
    tensors: Mapping[str, StoredTensor]

    @cached_property
    def starts(self) -> list[int]:
        """Return the first row of every prompt, and the number of rows."""
        return list(accumulate(self.lengths, initial=0))


def text_checksum(value: object) -> str:
    """Return a hash of a JSON value."""
    return digest_of(json.dumps(value, sort_keys=True).encode())


def pack(
    tensors: Mapping[str, Tensor], *, prompts: Mapping[str, int], model: str, model_name: str
) -> tuple[str, bytes]:
    """Return a shard's name, a hash of its content, and its bytes."""
    n_tokens = sum(prompts.values())
    for name, tensor in tensors.items():
        if not is_tensor_name(name) or len(tensor) != n_tokens:
            raise StoreError(
                f"tensor {name!r} {list(tensor.shape)} for {n_tokens} tokens;"
                " KIND.INDEX [token ...] is needed"
            )
    for key in prompts:
        if not is_word(key):
            raise StoreError(f"key {key!r} given; letters, digits and _.@+- are allowed")
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    sums = {name: tensor_checksum(name, tensor) for name, tensor in sorted(whole.items())}
    metadata = {
        "format": str(FORMAT),
        "model": model,
        "model_name": model_name,
        "prompts": json.dumps(list(prompts.items())),
        "checksums": json.dumps(sums),
    }
    total = text_checksum(metadata)
    return total[:24], save(whole, metadata=metadata | {"checksum": total})


def read_header(files: Files, name: str) -> ShardHeader:
    """Return what a shard holds, from its first bytes.

    Raises FileNotFoundError if it is gone, DamagedError if it is not what was written,
    OutdatedError for an older and StoreError for a newer format.
    """
    path = files.path(name)
    head = files.read(name, 0, _FIRST_READ)
    size = int.from_bytes(head[:8], "little")
    if len(head) < 8 or size > _LARGEST_HEADER:
        raise DamagedError(f"{path} is not a shard")
    if 8 + size > len(head):
        head += files.read(name, len(head), 8 + size)
    try:
        header = json.loads(head[8 : 8 + size])
        metadata = header.pop("__metadata__")
        version = int(metadata["format"])
    except UNREADABLE:
        raise DamagedError(f"{path} has no readable header") from None
    expected = _metadata_checksum(metadata | {"format": str(FORMAT)})
    if metadata.get("checksum") != expected:  # else only the version is wrong
        refuse_other_format(path, version)
    try:
        about = _header(path, header, metadata, offset=8 + size)
        if files.is_local and files.size(name) < max(each.end for each in about.tensors.values()):
            raise DamagedError(f"{path} is truncated")
        return about
    except UNREADABLE:
        raise DamagedError(f"{path} has a header that was not written by this library") from None


def _metadata_checksum(metadata: Mapping[str, str]) -> str:
    return text_checksum({key: value for key, value in metadata.items() if key != "checksum"})


def refuse_other_format(path: str, version: int) -> None:
    """Raise StoreError for a newer format, OutdatedError for an older one."""
    if version > FORMAT:
        raise StoreError(
            f"{path} has format {version}; this version reads {FORMAT}; upgrade interp"
        )
    if version < FORMAT:
        raise OutdatedError(f"{path} has format {version}; this version reads {FORMAT}")


def _header(
    path: str, header: dict[str, Any], metadata: dict[str, str], *, offset: int
) -> ShardHeader:
    if metadata["checksum"] != _metadata_checksum(metadata):
        raise DamagedError(f"{path}: its header is not what was written")
    sums, prompts = json.loads(metadata["checksums"]), json.loads(metadata["prompts"])
    if sums.keys() != header.keys():
        raise DamagedError(f"{path}: its tensors are not those that were written")
    keys = tuple(str(key) for key, _ in prompts)
    lengths = tuple(int(length) for _, length in prompts)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = stored = StoredTensor(
            entry["dtype"], tuple(entry["shape"]), offset + begin, offset + end, sums[name]
        )
        if (
            not is_tensor_name(name)
            or stored.dtype not in TYPES
            or stored.shape[0] != sum(lengths)
            or not 0 <= begin <= end
        ):
            raise DamagedError(f"{path}: tensor {name!r} is not one that this library writes")
    if not all(map(is_word, keys)) or min(lengths, default=0) < 0:
        raise DamagedError(f"{path}: its prompts are not as this library writes them")
    return ShardHeader(metadata["model"], metadata["model_name"], keys, lengths, tensors)


def read_tensor(files: Files, name: str, tensor_name: str, header: ShardHeader) -> Tensor:
    """Return a tensor, not verified: memory-mapped if the store is local, else read as a range."""
    about = header.tensors[tensor_name]
    if not files.is_local:
        content = files.read(name, about.begin, about.end)
        try:
            flat = torch.frombuffer(bytearray(content), dtype=TYPES[about.dtype])
            return flat.reshape(about.shape)
        except (ValueError, RuntimeError):
            raise DamagedError(f"{files.path(name)} is truncated") from None
    try:
        mapped = torch.from_file(files.path(name), shared=False, size=about.end, dtype=torch.uint8)
        return mapped[about.begin :].view(TYPES[about.dtype]).view(about.shape)
    except RuntimeError as error:  # the file is gone, or shorter than its header says
        if not Path(files.path(name)).exists():
            raise FileNotFoundError(files.path(name)) from None
        raise DamagedError(f"{files.path(name)} is truncated ({error})") from None


def verify_tensor(files: Files, name: str, tensor_name: str, header: ShardHeader) -> Tensor:
    """Read a tensor and return it; raise DamagedError if its checksum does not fit."""
    tensor = read_tensor(files, name, tensor_name, header)
    if tensor_checksum(tensor_name, tensor) != header.tensors[tensor_name].checksum:
        raise DamagedError(f"{files.path(name)}: {tensor_name} is not what was written")
    return tensor
