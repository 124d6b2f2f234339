"""A store's files behind any fsspec URL: listed, read, published whole, removed."""

import os
import uuid
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from interp.errors import StoreError
from interp.files.whole import write_atomically

ASIDE = ".aside-"
_PUT_IS_ATOMIC = {
    "s3",
    "s3a",
    "gs",
    "gcs",
    "abfs",
    "abfss",
    "az",
    "adl",
    "oci",
    "oss",
    "tos",
    "r2",
    "memory",
}


class FileInfo(NamedTuple):
    """A file's name inside the store, its size in bytes, and when it was last used, in seconds."""

    name: str
    size: int
    used: float


class Files:
    """The files below a folder or URL, two levels deep; symbolic links are refused."""

    def __init__(self, url: str | Path) -> None:
        self.url = str(url)
        try:
            self.fs, self.root = url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise StoreError(f"store {self.url!r}: {error}") from None
        self.root = self.root.rstrip("/") or "/"
        self.is_local = isinstance(self.fs, LocalFileSystem)
        protocols = (
            {self.fs.protocol} if isinstance(self.fs.protocol, str) else set(self.fs.protocol)
        )
        self._put_is_atomic = bool(protocols & _PUT_IS_ATOMIC)

    def path(self, name: str) -> str:
        """Return the full path of a file, as errors name it."""
        return (
            f"{self.root}/{name}"
            if self.is_local
            else f"{self.fs.unstrip_protocol(self.root)}/{name}"
        )

    def exists(self) -> bool:
        """Tell whether there is anything at the URL."""
        return bool(self.fs.isdir(self.root))

    def names(self, folder: str, suffix: str) -> list[str]:
        """Return the names of a folder's files with this suffix, sorted; opens none of them."""
        if self.is_local:
            try:
                with os.scandir(f"{self.root}/{folder}") as scanned:
                    entries = [
                        (entry.name, entry.is_symlink())
                        for entry in scanned
                        if entry.name.endswith(suffix)
                    ]
            except (FileNotFoundError, NotADirectoryError):
                return []
            if Path(self.root, folder).is_symlink():
                raise self._is_link(folder)
            for name, is_link in entries:
                if is_link:
                    raise self._is_link(f"{folder}/{name}")
            names = [name for name, _ in entries]
        else:
            self.fs.invalidate_cache()
            try:
                names = [
                    path.rpartition("/")[2]
                    for path in self.fs.ls(f"{self.root}/{folder}", detail=False)
                ]
            except FileNotFoundError:
                return []
        return sorted(
            f"{folder}/{name}"
            for name in names
            if name.endswith(suffix) and not name.startswith(".")
        )

    def all(self) -> list[FileInfo]:
        """Return every file, sorted by name; raise StoreError if there is no store."""
        self.fs.invalidate_cache()
        if not self.exists():
            raise StoreError(f"no store in {self.url}")
        entries = self.fs.find(self.root, maxdepth=2, withdirs=True, detail=True)
        infos = []
        for path, info in sorted(entries.items()):
            name = path.removeprefix(self.root).strip("/")
            if name and info.get("islink"):
                raise self._is_link(name)
            if name and info["type"] == "file":
                infos.append(FileInfo(name, int(info["size"] or 0), self._used(path, info)))
        return infos

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return a file's bytes from `start` up to `end`; raise FileNotFoundError if it is gone."""
        path = f"{self.root}/{name}"
        if self.is_local and Path(path).is_symlink():
            raise self._is_link(name)
        try:
            content: bytes = self.fs.cat_file(path, start=start, end=end)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreError(f"cannot read {self.path(name)}: {error.strerror or error}") from None
        return content

    def size(self, name: str) -> int:
        """Return a file's size in bytes."""
        return int(self.fs.size(f"{self.root}/{name}"))

    def publish(self, name: str, content: bytes) -> None:
        """Publish a whole file: written aside and renamed, or put at once where that is atomic."""
        path = f"{self.root}/{name}"
        try:
            if self.is_local:
                try:
                    write_atomically(Path(path), content)
                except (
                    FileNotFoundError
                ):  # `prune`, by another clock, took the aside file for stale
                    write_atomically(Path(path), content)
            elif self._put_is_atomic:
                self.fs.pipe_file(path, content)
            else:
                folder, _, last = path.rpartition("/")
                aside = f"{folder}/{ASIDE}{uuid.uuid4().hex}-{last}"
                self.fs.makedirs(folder, exist_ok=True)
                self.fs.pipe_file(aside, content)
                self.fs.mv(aside, path)
        except OSError as error:
            raise StoreError(f"cannot write {self.path(name)}: {error.strerror or error}") from None

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens if it is gone."""
        try:
            self.fs.rm_file(f"{self.root}/{name}")
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StoreError(
                f"cannot remove {self.path(name)}: {error.strerror or error}"
            ) from None

    def mark_used(self, name: str) -> None:
        """Count a local file as used now; object stores keep the time of writing."""
        if self.is_local:
            try:
                os.utime(f"{self.root}/{name}")
            except OSError:  # a store that may only be read
                return

    def _used(self, path: str, info: dict[str, object]) -> float:
        when = (
            info.get("mtime")
            or info.get("LastModified")
            or info.get("last_modified")
            or self.fs.modified(path)
        )
        return when.timestamp() if isinstance(when, datetime) else float(str(when))

    def _is_link(self, name: str) -> StoreError:
        return StoreError(f"{self.path(name)} is a symbolic link; a store holds plain files")
