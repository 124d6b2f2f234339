"""The activations of one model in a store, found by prompt and site."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from interp.errors import StoreError
from interp.store.files import Files
from interp.store.keys import TOKENS, is_shard, is_word
from interp.store.reader import ShardReader
from interp.store.settings import DTYPES, Settings, read_settings
from interp.store.shard import SUFFIX, DamagedError, OutdatedError, ShardHeader, pack, read_header
from interp.store.upkeep import evict


class NoRoomError(StoreError):
    """A quota that has no room for what is to be written."""


class ShardEntry(NamedTuple):
    """A prompt in a shard: the shard's name, and the prompt's number there."""

    shard: str
    number: int


class ActivationStore:
    """The activations of one model, a fingerprint, in a folder or URL of shards.

    What `settings` leave open is as configured for the whole store (`configure`). With a type of
    its own, a store keeps and finds only activations of that type. Beyond the quota, the shards
    that were unused for longest are removed, of any model.
    """

    def __init__(
        self, folder: Path | str, *, model: str, name: str = "", settings: Settings | None = None
    ) -> None:
        self.files = Files(folder)
        self.model, self.name = model, name
        self.folder = model[:16]
        if not is_word(self.folder):
            raise StoreError(f"model {model!r} given; a fingerprint is needed")
        self.settings = settings or read_settings(self.files)
        self.reader = ShardReader(self.files)
        self.pinned: set[str] = set()
        self._bytes: int | None = None
        self._seen: set[str] = set()
        self._headers: dict[str, ShardHeader] = {}
        self._where: dict[str, list[ShardEntry]] = {}
        self._lock = threading.RLock()  # `publish` may evict in a thread what another looks for

    def __repr__(self) -> str:
        return f"ActivationStore({self.files.url!r}, of {self.name or self.model[:16]})"

    @property
    def dtype(self) -> torch.dtype | None:
        """Return the type in which activations are kept; None: as they are computed."""
        return None if self.settings.dtype is None else DTYPES[self.settings.dtype]

    def read(self, keys: Sequence[str], name: str) -> list[Tensor] | None:
        """Return a tensor [pos ...] per prompt, mapped if local; None unless all are whole."""
        with self._lock:
            places = self.places(keys, name)
            if places is None:
                return None
            try:
                tensors = []
                for shard, number in places:
                    starts = self._headers[shard].starts
                    whole = self.reader.tensor(shard, name)
                    tensors.append(whole[starts[number] : starts[number + 1]])
                return tensors
            except (DamagedError, FileNotFoundError):
                self._forget(shard)
                return None

    def places(self, keys: Sequence[str], name: str) -> list[ShardEntry] | None:
        """Return where these prompts' tensors of one name lie; None if one is missing."""
        names = [self._own(key) for key in keys]
        with self._lock:
            places = [self._place(key, name) for key in names]
            if None in places:
                self._look_again()
                places = [self._place(key, name) for key in names]
        known = [place for place in places if place is not None]
        return known if len(known) == len(names) else None

    def missing(self, keys: Sequence[str], names: Iterable[str]) -> list[str]:
        """Return the names of tensors that are not stored for all of these prompts."""
        with self._lock:
            self._look_again()
            return [
                name
                for name in names
                if any(self._place(self._own(key), name) is None for key in keys)
            ]

    def hold(self, keys: Sequence[str], names: Iterable[str]) -> list[str]:
        """Return what is `missing`; pin the rest against the quota until `pinned` is cleared."""
        with self._lock:
            asked = list(names)
            missing = self.missing(keys, asked)
            for name in asked:
                places = [] if name in missing else self.places(keys, name) or []
                self.pinned |= {place.shard for place in places}
            return missing

    def write(self, prompts: Mapping[str, int], tensors: Mapping[str, Tensor]) -> str:
        """Write the tensors [token ...] of consecutive prompts as one shard; return its name.

        `prompts` maps keys to numbers of tokens. Raises StoreError if it cannot be written, if the
        quota has no room, and for numbers that the store's type cannot hold.
        """
        return self.add(*self.publish(prompts, tensors))

    def publish(
        self, prompts: Mapping[str, int], tensors: Mapping[str, Tensor]
    ) -> tuple[str, ShardHeader]:
        """Write a shard, which `add` then makes known; may run in a thread during reads."""
        kept = {
            name: tensor if name == TOKENS else self.cast(name, tensor)
            for name, tensor in tensors.items()
        }
        owned = {self._own(key): length for key, length in prompts.items()}
        digest, content = pack(kept, prompts=owned, model=self.model, model_name=self.name)
        shard = f"{self.folder}/{digest}{SUFFIX}"
        self._make_room(len(content))
        self.files.publish(shard, content)
        return shard, read_header(self.files, shard)

    def add(self, shard: str, header: ShardHeader) -> str:
        """Make a shard known; return its name."""
        with self._lock:
            if shard not in self._headers:
                self._seen.add(shard)
                self._headers[shard] = header
                for number, key in enumerate(header.keys):
                    self._where.setdefault(key, []).append(ShardEntry(shard, number))
        return shard

    def cast(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor in the store's type; raise StoreError if that cannot hold its numbers."""
        if self.dtype is None or tensor.dtype == self.dtype:
            return tensor
        kept = tensor.to(self.dtype)
        if (
            self.dtype == torch.float16
            and kept.numel()
            and not all(x.isfinite() for x in kept.aminmax())
        ):
            beyond = tensor[kept.isinf() & tensor.isfinite()]
            if len(beyond):
                raise StoreError(
                    f"{name} has {beyond[0].item():.3g};"
                    " float16 ends at 65504; use bfloat16 or float32"
                )
        return kept

    def _own(self, key: str) -> str:
        return key if self.settings.dtype is None else f"{key}-{self.settings.dtype}"

    def _place(self, key: str, name: str) -> ShardEntry | None:
        return next(
            (
                place
                for place in self._where.get(key, ())
                if name in self._headers[place.shard].tensors
            ),
            None,
        )

    def _look_again(self) -> None:
        """Notice which shards have come and gone, whoever wrote or removed them."""
        on_disk = {shard for shard in self.files.names(self.folder, SUFFIX) if is_shard(shard)}
        for shard in self._seen - on_disk:
            self._forget(shard)
        for shard in sorted(on_disk - self._seen):
            try:
                self.add(shard, self.reader.header(shard))
            except OutdatedError:
                self._seen.add(shard)
            except (DamagedError, FileNotFoundError):
                continue

    def _forget(self, shard: str) -> None:
        self.reader.forget(shard)
        self._seen.discard(shard)
        header = self._headers.pop(shard, None)
        for key in header.keys if header else ():
            self._where[key] = [place for place in self._where[key] if place.shard != shard]

    def _make_room(self, size: int) -> None:
        quota = self.settings.quota
        if quota is None:
            return
        with self._lock:
            if self._bytes is None or self._bytes + size > quota:
                held = self._held()
                if held + size > quota:  # nothing that can go makes room for it
                    in_use = f"{held} are in use and {size} more are needed"
                    raise NoRoomError(f"{self.files.url} has a quota of {quota} bytes; {in_use}")
                self._bytes = self._evict(quota - size) if self.files.exists() else 0
            self._bytes += size

    def _held(self) -> int:
        """Return how many bytes are pinned."""
        if not self.pinned:
            return 0
        return sum(file.size for file in self.files.all() if file.name in self.pinned)

    def _evict(self, max_bytes: int) -> int:
        gone, left = evict(self.files, max_bytes, keep=self.pinned)
        for shard in gone:
            self._forget(shard)
        return left
