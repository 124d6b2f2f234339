"""Blocks whose weights lie on disk: one is in memory while it runs, the next one is being read.

Parameters keep their identity: an open block's point into one of two buffers, all others hold NaN
without memory. Blocks open when they are called, or, before anything is hooked, by `visit`.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from interp.errors import ModelError
from interp.files.tensors import TensorFiles

NO_GRADIENTS = (
    "this gradient needs all blocks in memory, and these lie on disk;"
    " load without device_map='disk'"
)
_ALIGNED = 64  # bytes, so that every tensor can be read by wide instructions


@dataclass
class _Buffer:
    """Room for one block; `layer` is what it holds or will hold once `reading` is done."""

    flat: Tensor
    layer: int | None = None
    reading: "Future[None] | None" = None


@dataclass(frozen=True)
class _Weight:
    """A parameter of a block: its name in the model and on disk, and its place in a buffer."""

    name: str
    stored: str
    parameter: nn.Parameter
    start: int
    n_bytes: int

    def within(self, flat: Tensor) -> Tensor:
        """Return the part of a buffer that holds it."""
        part = flat[self.start : self.start + self.n_bytes]
        return part.view(self.parameter.dtype).view(self.parameter.shape)


@dataclass(eq=False)
class BlockStream:
    """The blocks of a model, which are opened one at a time.

    `weights` are the parameters of each block by their names in the module, `stored` their names in
    `files`. `turns`, if set, is asked to open a block instead: it lets others run meanwhile.
    """

    model: nn.Module
    modules: Sequence[nn.Module]
    weights: Sequence[Mapping[str, nn.Parameter]]
    stored: Mapping[str, str]
    files: TensorFiles
    device: torch.device
    turns: "Callable[[int], None] | None" = None
    _open: int | None = None
    _is_rerun: bool = False  # a block is run so that it can be run again on the way back
    _finite: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._layouts = [_layout(named, self.stored) for named in self.weights]
        self.named = {name: p for named in self.weights for name, p in named.items()}
        self.ids = frozenset(map(id, self.named.values()))
        ends = [max((w.start + w.n_bytes for w in layout), default=0) for layout in self._layouts]
        self.n_bytes = [sum(w.n_bytes for w in layout) for layout in self._layouts]
        is_pinned = self.device.type == "cuda"
        self._buffers = [
            _Buffer(torch.empty(max(ends), dtype=torch.uint8, pin_memory=is_pinned))
            for _ in range(2)
        ]
        self._there: Tensor | None = None  # on a CPU, blocks run in the buffers themselves
        if self.device.type != "cpu":
            self._there = torch.empty(max(ends), dtype=torch.uint8, device=self.device)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._inside = [*self.model.modules()]
        for layer, module in enumerate(self.modules):
            self._close(layer)
            module.register_forward_pre_hook(Opening(self, layer), with_kwargs=True)

    @property
    def bytes_read(self) -> int:
        """Return how many bytes of weights were read since the model was loaded."""
        return self.files.bytes_read

    @property
    def disk_bytes(self) -> int:
        """Return what the blocks' weights take on disk, which a pass over all of them reads."""
        return sum(self.files.tensors[self.stored[name]].n_bytes for name in self.named)

    @property
    def held_bytes(self) -> int:
        """Return what the buffers take."""
        return sum(buffer.flat.numel() for buffer in self._buffers)

    @property
    def streamed_bytes(self) -> int:
        """Return what the blocks' weights take in the model's type."""
        return sum(self.n_bytes)

    def is_open(self, layer: int) -> bool:
        """Tell whether a block can run now."""
        return self._open == layer

    def is_patched(self) -> bool:
        """Tell whether anything inside the model is hooked or replaced at present."""
        return any(
            part._forward_hooks
            or "forward" in vars(part)
            or any(not isinstance(hook, Opening) for hook in part._forward_pre_hooks.values())
            for part in self._inside
        )

    def visit(self, layer: int) -> None:
        """Open a block; others may run before it is open."""
        if self.turns is None:
            self.open(layer)
        else:
            self.turns(layer)

    def open(self, layer: int, *, is_pass: bool = False) -> None:
        """Read a block's weights, unless it is open; raise ModelError if its files have changed.

        The next block is begun to be read too, if blocks open one after the other, or (`is_pass`)
        will do so whatever else takes turns.
        """
        if self._open == layer:
            return
        buffer = self._other_buffer(layer)
        if buffer.layer != layer:
            self._read(buffer, layer)
        elif buffer.reading is not None:
            self._wait(buffer, buffer.reading)
        if self._open is not None:
            self._close(self._open)
        self._open, before = None, self._open
        flat = buffer.flat if self._there is None else self._there.copy_(buffer.flat)
        for weight in self._layouts[layer]:
            weight.parameter.data = weight.within(flat)
        self._open = layer
        is_next = before is None or layer in (before + 1, 0)
        is_pass = is_pass or (self.turns is None and not torch.is_grad_enabled())
        if is_pass and is_next and layer + 1 < len(self.modules):
            self.expect(layer + 1)

    def open_for_call(self, layer: int, given: Sequence[object]) -> None:
        """Open a block that is called with these arguments; raise ModelError for a graph's sake."""
        has_graph = torch.is_grad_enabled() and any(
            isinstance(each, Tensor) and each.requires_grad for each in given
        )
        if has_graph and not self._is_rerun:
            raise ModelError(NO_GRADIENTS)
        if has_graph or self.turns is None:
            self.open(layer)
        else:
            self.turns(layer)

    def call(self, layer: int, resid: Tensor, arguments: Mapping[str, Any]) -> Any:
        """Return what a block returns, once it is open.

        A graph keeps what the block reads, not its weights: on the way back it is run again. Raises
        ModelError where hooks or replaced parts would not be there then.
        """
        self.visit(layer)
        module = self.modules[layer]
        if not (torch.is_grad_enabled() and resid.requires_grad):
            return module(resid, **arguments)
        if self.is_patched():
            raise ModelError(NO_GRADIENTS)

        def run(resid: Tensor) -> Any:
            self._is_rerun, before = True, self._is_rerun
            try:
                return module(resid, **arguments)
            finally:
                self._is_rerun = before

        return checkpoint(run, resid, use_reentrant=False, preserve_rng_state=False)

    def expect(self, layer: int) -> None:
        """Begin to read a block that will be opened next, unless another one is being read."""
        buffer = self._other_buffer(layer)
        is_busy = buffer.reading is not None and not buffer.reading.done()
        if layer in (self._open, buffer.layer) or is_busy:
            return
        buffer.layer = layer
        buffer.reading = self._reader.submit(self._fill, buffer, layer)

    def tensor(self, name: str) -> Tensor:
        """Return a weight by its name in the module, read from disk; nothing is opened."""
        return self.files.read(self.stored[name], self.named[name].dtype)

    def _other_buffer(self, layer: int) -> _Buffer:
        """Return the buffer that holds a block, or else the one that is not in use."""
        free = [b for b in self._buffers if self._open is None or b.layer != self._open]
        return next((b for b in free if b.layer == layer), free[0])

    def _read(self, buffer: _Buffer, layer: int) -> None:
        if buffer.reading is not None:
            buffer.reading.exception()  # of a block that nobody asked for after all
        buffer.layer, buffer.reading = layer, None
        try:
            self._fill(buffer, layer)
        except BaseException:
            buffer.layer = None
            raise

    def _wait(self, buffer: _Buffer, reading: "Future[None]") -> None:
        try:
            reading.result()
        except BaseException:
            if reading.done():  # else it was this that was interrupted, and it goes on being read
                buffer.layer = buffer.reading = None
            raise
        buffer.reading = None

    @torch.no_grad()
    def _fill(self, buffer: _Buffer, layer: int) -> None:
        for weight in self._layouts[layer]:
            tensor = weight.within(buffer.flat)
            self.files.read_into(weight.stored, tensor)
            if layer not in self._finite and not bool(torch.isfinite(tensor).all()):
                raise ModelError(f"{weight.name} has NaN or infinite weights")
        self._finite.add(layer)

    def _close(self, layer: int) -> None:
        for weight in self._layouts[layer]:
            own = weight.parameter
            nothing = torch.full((), float("nan"), dtype=own.dtype, device=self.device)
            own.data = nothing.expand(own.shape)


class Opening:
    """The hook that opens a block when it is called as it is; what replaces it reads no weights."""

    def __init__(self, stream: BlockStream, layer: int) -> None:
        self.stream, self.layer = stream, layer

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Open the block; raise ModelError where a graph would hold its weights."""
        if "forward" in vars(module):
            return
        self.stream.open_for_call(self.layer, [*args, *kwargs.values()])


def stream_of(module: nn.Module) -> BlockStream | None:
    """Return the stream of a module's blocks; None if its weights are in memory."""
    hooks = (hook for part in module.modules() for hook in part._forward_pre_hooks.values())
    return next((hook.stream for hook in hooks if isinstance(hook, Opening)), None)


def parameters_of(block: nn.Module) -> list[nn.Parameter]:
    """Return a block's parameters, read if they lie on disk; then they hold until another opens."""
    for hook in block._forward_pre_hooks.values():
        if isinstance(hook, Opening):
            hook.stream.open(hook.layer, is_pass=True)
    return [*block.parameters()]


def _layout(named: Mapping[str, nn.Parameter], stored: Mapping[str, str]) -> list[_Weight]:
    weights, start = [], 0
    for name, parameter in named.items():
        n_bytes = parameter.numel() * parameter.element_size()
        weights.append(_Weight(name, stored[name], parameter, start, n_bytes))
        start += -(-n_bytes // _ALIGNED) * _ALIGNED
    return weights
