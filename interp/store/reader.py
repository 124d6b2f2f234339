"""Reads shards: a header once, every tensor verified once per process before it is returned."""

import logging
from collections import OrderedDict
from typing import Any

from torch import Tensor

from interp.store.files import Files
from interp.store.shard import DamagedError, ShardHeader, read_header, read_tensor, verify_tensor

# Bytes of tensors kept from the last readings. Those of a local store lie in the system's cache,
# and mapping them is what reading costs; those of any other are in memory.
_MAPPED, _HELD = 2**29, 2**28
_log = logging.getLogger(__name__)


class ShardReader:
    """Headers and tensors of the shards of one store, by name."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self._headers: dict[str, ShardHeader] = {}
        self._tensors: OrderedDict[tuple[str, str], Tensor] = OrderedDict()
        self._verified: set[tuple[str, str]] = set()
        self._used: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tensors": OrderedDict(), "_verified": set()}

    def header(self, shard: str) -> ShardHeader:
        """Return what a shard holds; raise as `tensor` does."""
        if shard not in self._headers:
            try:
                self._headers[shard] = read_header(self.files, shard)
            except DamagedError as error:
                self._discard(shard, error)
                raise
        return self._headers[shard]

    def tensor(self, shard: str, tensor_name: str) -> Tensor:
        """Return a whole tensor [token ...]; do not write to it, it may be memory-mapped.

        Raises FileNotFoundError if the shard is gone, and DamagedError, after removing it, if it is
        not what was written.
        """
        at = (shard, tensor_name)
        if at not in self._tensors:
            read = read_tensor if at in self._verified else verify_tensor
            try:
                self._tensors[at] = read(self.files, shard, tensor_name, self.header(shard))
            except DamagedError as error:
                self._discard(shard, error)
                raise
            except FileNotFoundError:
                self.forget(shard)
                raise
            self._verified.add(at)
            self._let_go()
        self._tensors.move_to_end(at)
        if shard not in self._used:
            self._used.add(shard)
            self.files.mark_used(shard)
        return self._tensors[at]

    def _let_go(self) -> None:
        """Let go of what was read longest ago; the last tensor stays, however large."""
        most = _MAPPED if self.files.is_local else _HELD
        held = sum(tensor.nbytes for tensor in self._tensors.values())
        while held > most and len(self._tensors) > 1:
            held -= self._tensors.popitem(last=False)[1].nbytes

    def forget(self, shard: str) -> None:
        """Forget a shard."""
        self._headers.pop(shard, None)
        self._verified = {at for at in self._verified if at[0] != shard}
        self._tensors = OrderedDict(
            (at, tensor) for at, tensor in self._tensors.items() if at[0] != shard
        )

    def _discard(self, shard: str, error: DamagedError) -> None:
        _log.warning(
            "damaged shard %s is removed and computed again when it is needed (%s)",
            self.files.path(shard),
            error,
        )
        self.forget(shard)
        self.files.remove(shard)
