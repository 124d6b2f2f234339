"""The current state of a model's weights: changes are noticed cheaply, and hashed only then."""

import hashlib
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.errors import ModelError
from interp.models.quantised import plain
from interp.models.streaming import stream_of


class Weights:
    """Configuration, parameters and buffers of a module, which its owner may change at any time.

    Editing a tensor in place raises its version, replacing one changes its identity or address;
    writing through `.data` changes neither, and is seen by sums of the bytes. Only what has changed
    by one of these is hashed again. `edition` stands for the weights of the innermost
    `temporary_weights`; None stands for the module's own.
    """

    def __init__(self, module: PreTrainedModel) -> None:
        self.module, self.stream = module, stream_of(module)
        self._modules = dict(module.named_modules())
        self._structure = self._submodules()
        self._known: tuple[Hashable, list[Tensor], str] | None = None
        self._at_load = _digest(self._computed_buffers())
        self.edition: object | None = None

    def state(self) -> Hashable:
        """Return a value that changes with any in-place edit or replacement of a tensor.

        Raises ModelError if a module was replaced.
        """
        if self._submodules() != self._structure:
            raise ModelError(
                f"modules of this {type(self.module).__name__} were replaced after loading;"
                " give it to load_model again"
            )
        if self.stream is not None:
            self.stream.files.refuse_changed()
        return tuple(
            (name, id(tensor), *((_version(part), part.data_ptr()) for part in plain(tensor)))
            for name, tensor in self._tensors()
            if not tensor.is_meta  # those that wait on disk are fetched anew for every pass
        )

    def fingerprint(self) -> str:
        """Return a hash of configuration and weights, the same wherever they were loaded from."""
        config = self._config()
        state, sums = (config, self.state()), self._sums()
        if self._known is not None and self._known[0] == state and _equal(self._known[1], sums):
            return self._known[2]
        digest = hashlib.blake2b(config.encode(), digest_size=16)
        _add(digest, self._saved())
        if (buffers := _digest(self._computed_buffers())) != self._at_load:
            digest.update(buffers.encode())
        self._known = state, sums, digest.hexdigest()
        return self._known[2]

    @contextmanager
    def replaced(self, others: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Put other parameters into the module, by name; afterwards the same objects are back."""
        places = [(name, *self._place(name)) for name in others]
        own = [module._parameters[leaf] for _, module, leaf in places]
        known, edition = self._known, self.edition
        try:
            self.edition = object()
            for name, module, leaf in places:
                module._parameters[leaf] = others[name]
            yield
        finally:
            for (_, module, leaf), parameter in zip(places, own, strict=True):
                module._parameters[leaf] = parameter
            self._known, self.edition = known, edition

    def _place(self, name: str) -> tuple[nn.Module, str]:
        path, _, leaf = name.rpartition(".")
        return self._modules[path], leaf

    def _submodules(self) -> list[int]:
        return [
            id(child) for module in self._modules.values() for child in module._modules.values()
        ]

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield parameters that are in memory, and the buffers that a checkpoint holds."""
        streamed = frozenset[int]() if self.stream is None else self.stream.ids
        for module in self._modules.values():
            yield from (
                (name, t)
                for name, t in module._parameters.items()
                if t is not None and id(t) not in streamed
            )
            lost = module._non_persistent_buffers_set
            yield from (
                (n, t) for n, t in module._buffers.items() if t is not None and n not in lost
            )

    def _computed_buffers(self) -> list[tuple[str, Tensor]]:
        """Return the buffers that no checkpoint holds and no pass changes (rotary frequencies)."""
        rope = getattr(self.module.config, "rope_parameters", None) or {}
        if "dynamic" in str(rope) or "longrope" in str(rope):
            return []
        return [
            (f"{path}.{name}", tensor)
            for path, module in self._modules.items()
            for name, tensor in module._buffers.items()
            if tensor is not None
            and not tensor.is_meta
            and name in module._non_persistent_buffers_set
        ]

    def _saved(self) -> Iterator[tuple[str, Tensor]]:
        """Yield all weights by name, in order, those that lie on disk one by one."""
        on_disk = {} if self.stream is None else self.stream.named
        for name, tensor in sorted(_state_of(self.module).items()):
            yield (
                name,
                tensor if self.stream is None or name not in on_disk else self.stream.tensor(name),
            )

    def _config(self) -> str:
        config = self.module.config.to_dict()
        for key in ("_name_or_path", "transformers_version", "made_from"):  # where from, not what
            config.pop(key, None)
        return json.dumps(config, sort_keys=True, default=str)

    def _sums(self) -> list[Tensor]:
        """Return the sums of every tensor's rows read as integers, as fast as memory allows."""
        tensors = [t for _, t in self._tensors()] + [t for _, t in self._computed_buffers()]
        parts = [part.detach() for t in tensors if not t.is_meta for part in plain(t)]
        return [_row_sums(part) for part in parts if part.numel()]


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _row_sums(tensor: Tensor) -> Tensor:
    rows = (tensor if tensor.is_contiguous() else tensor.contiguous()).reshape(
        -1, tensor.shape[-1] if tensor.ndim else 1
    )
    width = next(size for size in (8, 4, 2, 1) if rows.shape[1] * rows.element_size() % size == 0)
    words = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}[width]
    if rows.storage_offset() * rows.element_size() % width:
        rows = rows.clone()
    return rows.view(words).sum(1, dtype=torch.int64)


def _equal(known: list[Tensor], now: list[Tensor]) -> bool:
    return len(known) == len(now) and all(
        a.device == b.device and torch.equal(a, b) for a, b in zip(known, now, strict=True)
    )


def _state_of(module: Any) -> dict[str, Tensor]:
    """Return all weights by name, including those that accelerate has on disk."""
    if not any(parameter.is_meta for parameter in module.parameters()):
        return dict(module.state_dict())
    from accelerate.utils.modeling import get_state_dict_offloaded_model

    return dict(get_state_dict_offloaded_model(module))


def _add(digest: Any, tensors: Iterable[tuple[str, Tensor]]) -> None:
    for name, tensor in tensors:
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        for part in plain(tensor):
            whole = part.detach().contiguous().cpu().flatten()
            digest.update(whole.view(torch.uint8).numpy().data)


def _digest(tensors: list[tuple[str, Tensor]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, tensors)
    return digest.hexdigest()
