"""What a store holds, whether it is whole, and what can go: read from headers alone."""

import re
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from interp.errors import StoreError
from interp.store.files import ASIDE, FileInfo, Files
from interp.store.keys import is_shard
from interp.store.manifest import SUFFIX as CORPUS
from interp.store.manifest import read_manifest
from interp.store.settings import NAME as SETTINGS
from interp.store.settings import read_settings
from interp.store.shard import (
    SUFFIX,
    DamagedError,
    OutdatedError,
    ShardHeader,
    read_header,
    verify_tensor,
)

ABANDONED = 3600.0  # seconds after which an aside file has no writer; one that has writes again


@dataclass
class ModelInfo:
    """What a store holds of one model."""

    model: str
    name: str = ""
    shards: int = 0
    prompts: int = 0
    tokens: int = 0
    bytes: int = 0
    tensors: set[str] = field(default_factory=set)
    dtypes: set[str] = field(default_factory=set)
    corpora: list[str] = field(default_factory=list)


@dataclass
class StoreInfo:
    """What a store holds; sizes in bytes.

    `unreadable` are shards whose header is damaged or of an older format.
    """

    url: str
    quota: int | None
    dtype: str | None
    bytes: int
    models: list[ModelInfo]
    unreadable: list[str]
    aside: int


def info(url: str | Path) -> StoreInfo:
    """Return what a store holds; reads the header of every shard and no tensor."""
    files = Files(url)
    stored = files.all()
    settings, models, unreadable = read_settings(files), dict[str, ModelInfo](), []
    for file in stored:
        folder, _, name = file.name.partition("/")
        if is_shard(file.name):
            try:
                header = read_header(files, file.name)
            except FileNotFoundError:
                continue
            except (DamagedError, OutdatedError) as error:
                unreadable.append(str(error))
                continue
            about = models.setdefault(folder, ModelInfo(header.model))
            about.name = about.name or header.model_name
            about.shards, about.bytes = about.shards + 1, about.bytes + file.size
            about.prompts, about.tokens = (
                about.prompts + len(header.keys),
                about.tokens + header.starts[-1],
            )
            about.tensors |= header.tensors.keys()
            about.dtypes |= {
                each.dtype for each in header.tensors.values() if not each.dtype.startswith("I")
            }
        elif name.endswith(CORPUS):
            models.setdefault(folder, ModelInfo(folder)).corpora.append(name.removesuffix(CORPUS))
    aside = sum(file.size for file in stored if _is_aside(file))
    return StoreInfo(
        files.url,
        settings.quota,
        settings.dtype,
        _total(stored),
        [*models.values()],
        unreadable,
        aside,
    )


def verify(url: str | Path) -> tuple[int, list[str]]:
    """Read everything; return how many files are whole, and what is wrong with the others.

    Removes nothing: a damaged shard is removed, and computed again, when it is next asked for.
    """
    files = Files(url)
    whole, wrong = 0, []
    stored = files.all()
    for file in stored:
        try:
            if is_shard(file.name):
                _verify(files, file.name)
            elif file.name == SETTINGS:
                read_settings(files)
            elif file.name.endswith(CORPUS):
                _verify_corpus(files, file.name, {other.name for other in stored})
            else:
                continue
            whole += 1
        except FileNotFoundError:
            continue
        except StoreError as error:
            wrong.append(str(error))
    return whole, wrong


def _verify(files: Files, name: str) -> ShardHeader:
    header = read_header(files, name)
    for tensor_name in header.tensors:
        verify_tensor(files, name, tensor_name, header)
    return header


def _verify_corpus(files: Files, name: str, names: set[str]) -> None:
    for shard in sorted(read_manifest(files, name).shards() - names):
        raise StoreError(f"{files.path(name)}: {shard} is gone; capture the corpus again")


def prune(
    url: str | Path,
    *,
    older_than: float | None = None,
    max_bytes: int | None = None,
    model: str | None = None,
    dry_run: bool = False,
) -> list[FileInfo]:
    """Remove and return shards: those unused for `older_than` seconds, or beyond `max_bytes`.

    Beyond `max_bytes` the least recently used go first. `model` (a name, or the start of a
    fingerprint) limits this to one model; given alone, it removes all of that model's. Shards in an
    older format and files that a writer left behind go too, and the corpora of a model of which
    nothing is left. A time of use in the future counts as now. Object stores know when a shard was
    written, not when it was read.
    """
    if older_than is None and max_bytes is None and model is None:
        raise StoreError("nothing to prune by; an age, a size or a model is needed")
    files, now = Files(url), time.time()
    stored = files.all()
    shards = [file for file in stored if is_shard(file.name)]
    if model is not None:
        shards = [file for file in shards if _is_of(files, file.name, model)]
    if model is not None and not shards:
        raise StoreError(
            f"{files.url} holds nothing of {model!r}; `interp store info` lists what it holds"
        )
    gone = [file for file in shards if older_than is None and max_bytes is None]
    if older_than is not None:
        gone = [file for file in shards if now - file.used > older_than]
    if max_bytes is not None:
        gone += _oldest([file for file in shards if file not in gone], max_bytes)
    gone += [file for file in shards if file not in gone and _is_outdated(files, file.name)]
    gone += [file for file in stored if _is_aside(file) and now - file.used > ABANDONED]
    gone += _corpora_without_shards(stored, gone)
    if not dry_run:
        for file in gone:
            files.remove(file.name)
    return sorted(gone)


def _corpora_without_shards(stored: Sequence[FileInfo], gone: Sequence[FileInfo]) -> list[FileInfo]:
    left = {_folder(file) for file in stored if is_shard(file.name) and file not in gone}
    empty = {_folder(file) for file in gone} - left
    return [file for file in stored if file.name.endswith(CORPUS) and _folder(file) in empty]


def evict(files: Files, max_bytes: int, *, keep: Collection[str] = ()) -> tuple[list[str], int]:
    """Remove the least recently used shards until the rest fits; return them and the bytes left."""
    stored = files.all()
    gone = _oldest([file for file in stored if is_shard(file.name)], max_bytes, keep=keep)
    for file in gone:
        files.remove(file.name)
    return [file.name for file in gone], _total(stored) - sum(file.size for file in gone)


def _oldest(
    shards: Collection[FileInfo], max_bytes: int, *, keep: Collection[str] = ()
) -> list[FileInfo]:
    """Return the shards to remove, least recently used first, until the others fit."""
    total, gone = sum(file.size for file in shards), []
    for file in sorted(shards, key=lambda file: (file.used, file.name)):
        if total <= max_bytes:
            break
        if file.name not in keep:
            gone.append(file)
            total -= file.size
    return gone


def _total(stored: Collection[FileInfo]) -> int:
    return sum(file.size for file in stored if is_shard(file.name))


def _folder(file: FileInfo) -> str:
    return file.name.partition("/")[0]


def _is_aside(file: FileInfo) -> bool:
    return re.search(rf"(^|/){re.escape(ASIDE)}", file.name) is not None


def _is_of(files: Files, shard: str, model: str) -> bool:
    if shard.startswith(model):
        return True
    try:
        header = read_header(files, shard)
    except (StoreError, FileNotFoundError):
        return False
    return header.model_name == model or header.model.startswith(model)


def _is_outdated(files: Files, shard: str) -> bool:
    try:
        read_header(files, shard)
    except OutdatedError:
        return True
    except (StoreError, FileNotFoundError):
        return False
    return False


def shards(folder: Path) -> Iterator[Path]:
    """Yield the path of every shard in a local store."""
    files = Files(folder)
    yield from (Path(files.path(file.name)) for file in files.all() if is_shard(file.name))


def verify_shard(path: Path) -> int:
    """Read a whole local shard and return its number of tensors; StoreError if it is damaged."""
    name = f"{path.parent.name}/{path.name.removesuffix(SUFFIX)}{SUFFIX}"
    return len(_verify(Files(path.parent.parent), name).tensors)
