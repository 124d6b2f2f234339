"""Clean activations on disk, shared by every analysis, run and process.

    STORE/MODEL/SHARD.safetensors           tensors `PROMPT/KIND` [site pos d_model]

A prompt's key is a hash of everything that its activations depend on, so asking twice computes once, and changing one
weight, token or type never reads a stale value. A shard holds a batch of prompts; it is written aside, flushed and renamed,
so what has a name is whole and any number of processes may fill one store. Every tensor has a checksum in the shard's
header; a shard is verified once per process before its first tensor is returned.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from interp.errors import StoreError
from interp.folder import write_atomically

StoredKind = Literal["resid", "attn_out", "mlp_out"]
KINDS: tuple[StoredKind, ...] = ("resid", "attn_out", "mlp_out")
FORMAT = "1"
_log = logging.getLogger(__name__)


def prompt_key(context: Sequence[str], token_ids: Sequence[int]) -> str:
    """Return the key of a prompt's activations; `context` is all else that they depend on (weights, type, kernel …)."""
    return hashlib.blake2b(json.dumps([*context, list(token_ids)]).encode(), digest_size=16).hexdigest()


def checksum(name: str, tensor: Tensor) -> str:
    """Return a hash of a tensor's name, shape, type and bytes."""
    digest = hashlib.blake2b(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode(), digest_size=16)
    digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class ActivationStore:
    """A folder of shards; `model` is the fingerprint of the model whose activations are read and written."""

    def __init__(self, folder: Path | str, *, model: str) -> None:
        self.folder = Path(folder) / model[:16]
        self._where: dict[str, Path] = {}
        self._seen: set[Path] = set()
        self._verified: set[Path] = set()

    def read(self, key: str, kind: StoredKind) -> Tensor | None:
        """Return what is stored of a prompt [site pos d_model], memory-mapped; None if nothing (whole) is."""
        name = f"{key}/{kind}"
        if name not in self._where:
            self._look_for_new_shards()
        path = self._where.get(name)
        if path is None:
            return None
        try:
            if path not in self._verified:
                verify_shard(path)
                self._verified.add(path)
            with safe_open(path, framework="pt") as shard:
                tensor: Tensor = shard.get_tensor(name)
                return tensor
        except (StoreError, SafetensorError, OSError) as error:
            self._discard(path, error)
            return None

    def write(self, tensors: Mapping[str, Tensor]) -> Path:
        """Write tensors, named `PROMPT/KIND`, as one shard; return where."""
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        sums = {name: checksum(name, tensor) for name, tensor in whole.items()}
        content = save(whole, metadata={"format": FORMAT, "dims": "site pos d_model", "checksums": json.dumps(sums)})
        shard = hashlib.blake2b(json.dumps(sorted(sums.items())).encode(), digest_size=12).hexdigest()
        path = self.folder / f"{shard}.safetensors"
        try:
            write_atomically(path, content)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror}") from None
        self._add(path, whole)
        return path

    def _look_for_new_shards(self) -> None:
        for path in sorted(self.folder.glob("*.safetensors")):
            if path not in self._seen:
                try:
                    with safe_open(path, framework="pt") as shard:
                        self._add(path, shard.keys())
                except (SafetensorError, OSError) as error:
                    self._discard(path, error)

    def _add(self, path: Path, names: Sequence[str] | Mapping[str, object]) -> None:
        self._seen.add(path)
        self._where |= dict.fromkeys(names, path)

    def _discard(self, path: Path, error: Exception) -> None:
        """Name a damaged shard and forget it; what it held is computed again."""
        _log.warning("damaged shard %s is computed again (%s)", path, error)
        self._where = {name: where for name, where in self._where.items() if where != path}
        self._seen.discard(path)
        path.unlink(missing_ok=True)


def verify_shard(path: Path) -> int:
    """Read a whole shard and return its number of tensors; raise StoreError if a checksum does not fit."""
    with safe_open(path, framework="pt") as shard:
        sums = _checksums(path, shard.metadata() or {})
        if sums.keys() != set(shard.keys()):
            raise StoreError(f"{path}: its tensors are not those that were written")
        for name, expected in sums.items():
            if checksum(name, shard.get_tensor(name)) != expected:
                raise StoreError(f"{path}: {name} is not what was written")
    return len(sums)


def _checksums(path: Path, metadata: Mapping[str, str]) -> dict[str, str]:
    if metadata.get("format") != FORMAT:
        raise StoreError(f"{path} has format {metadata.get('format')}; this version reads {FORMAT}")
    try:
        sums: dict[str, str] = json.loads(metadata["checksums"])
    except (KeyError, ValueError):
        raise StoreError(f"{path} has no readable checksums") from None
    return sums


def shards(folder: Path) -> Iterator[Path]:
    """Yield every shard in a store."""
    if not folder.is_dir():
        raise StoreError(f"no store in {folder}")
    yield from sorted(folder.glob("*/*.safetensors"))
