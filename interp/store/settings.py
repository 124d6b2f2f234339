"""What is configured for a whole store: its quota, and the type in which it keeps tensors."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from interp.errors import StoreError, unknown
from interp.store.files import Files
from interp.store.shard import (
    FORMAT,
    UNREADABLE,
    DamagedError,
    OutdatedError,
    refuse_other_format,
    text_checksum,
)

NAME = "store.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """A store's quota and type.

    `quota` is in bytes, None for no limit; `dtype` is "float32", "bfloat16" or "float16", None for
    the type as computed.
    """

    quota: int | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.quota is not None and self.quota <= 0:
            raise StoreError(f"quota {self.quota} given; a positive number of bytes is needed")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise StoreError(unknown("type", self.dtype, DTYPES))


def configure(url: str | Path, settings: Settings) -> None:
    """Write a store's settings; every process that opens it from now on obeys them."""
    content = {"format": FORMAT, **asdict(settings)}
    content["checksum"] = text_checksum(content)
    Files(url).publish(NAME, json.dumps(content, indent=1).encode())


def read_settings(files: Files) -> Settings:
    """Return a store's settings, or the defaults; raise StoreError if the file is damaged."""
    path = files.path(NAME)
    try:
        content = json.loads(files.read(NAME))
        expected = content.pop("checksum")
        refuse_other_format(path, content["format"])
        if expected != text_checksum(content):
            raise ValueError
        return Settings(content["quota"], content["dtype"])
    except (FileNotFoundError, OutdatedError):
        return Settings()
    except UNREADABLE:
        raise DamagedError(
            f"{path} is not what was written; `interp store configure` writes it again"
        ) from None
