"""Named tensors on disk that are read only if they are whole and answer the same question.

A file's header holds a key (a hash of all that its tensors depend on) and a checksum of every
tensor: what was computed for another model, prompt or parameter, and what a disk has damaged, is
computed again and never returned.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from interp.errors import RunError
from interp.files.checksum import tensor_checksum
from interp.files.whole import write_atomically
from interp.shapes import Tensors

_log = logging.getLogger(__name__)


def pack(tensors: Mapping[str, Tensor], key: str) -> bytes:
    """Return the content of a file."""
    rows = torch.contiguous_format  # no two share memory, and also a single number's stride is 1
    whole = {
        name: tensor.detach().cpu().clone(memory_format=rows) for name, tensor in tensors.items()
    }
    sums = {name: tensor_checksum(name, tensor) for name, tensor in sorted(whole.items())}
    away = [name for name, tensor in sorted(tensors.items()) if tensor.device.type != "cpu"]
    about = json.dumps(
        {"key": key, "checksums": sums, "on_device": away}
    )  # one entry: their order is not kept
    return bytes(save(whole, metadata={"interp": about}))


def write_part(path: Path, content: bytes) -> None:
    """Write packed tensors atomically."""
    write_atomically(path, content)


def read_part(path: Path, key: str, *, device: torch.device | None = None) -> Tensors | None:
    """Return a file's tensors; None, and it is removed, if it is damaged or has another key.

    Those that were not on the CPU when they were packed are put on `device`, if one is given.
    """
    if not path.exists():
        return None
    try:
        return unpack(path, key=key, device=device)
    except RunError as error:
        _log.warning("%s; it is computed again", error)
        path.unlink(missing_ok=True)
        return None


def unpack(path: Path, *, key: str | None = None, device: torch.device | None = None) -> Tensors:
    """Return a file's tensors; raise RunError if it is damaged or has another key than is given."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["interp"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        stored_key, sums, away = about["key"], about["checksums"], about["on_device"]
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error})") from None
    if sums != {name: tensor_checksum(name, tensor) for name, tensor in tensors.items()}:
        raise RunError(f"{path} is damaged: its tensors are not what was written")
    if key is not None and stored_key != key:
        raise RunError(f"{path} belongs to another model, prompt or parameter")
    return (
        tensors if device is None else tensors | {name: tensors[name].to(device) for name in away}
    )
