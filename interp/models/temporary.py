"""Weights for a while: inside a `with` block a model has other ones, and after it its own again.

temporary_weights(model, {"model.layers.3.mlp.up_proj.weight": rounded})
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING

from torch import Tensor, nn

from interp.errors import ModelError
from interp.models.quantised import quantised
from interp.models.streaming import stream_of

if TYPE_CHECKING:
    from interp.models.model import Model


@contextmanager
def temporary_weights(model: "Model", weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a model compute with other weights inside the `with` block.

    `weights` are tensors by the names of the stock module's `named_parameters()`, of their shape
    and type; they are moved to their device, and not copied if they are there. Afterwards, also
    after an exception, the model has its own parameters again, the same objects, untouched; blocks
    may be nested. Inside, all sees the new weights (passes, `bridge`, `fingerprint`), nothing is
    read from a store or written to one, and recordings begun outside raise ModelError, as those
    begun inside do outside. Raises ModelError for unknown names, other shapes or types, and for
    parameters that cannot be replaced alone: tied, sharing memory, quantised, or not in memory.
    """
    others = _Parameters(model.module).checked(weights)
    memo, bridge = model.running.memo, model._bridge
    fingerprint = memo.pop("fingerprint", None)
    model._bridge = None  # it has the parameters that it was built over
    try:
        with model.weights.replaced(others):
            yield
    finally:
        model._bridge = bridge
        memo.pop("fingerprint", None)
        if fingerprint is not None:
            memo["fingerprint"] = fingerprint


class _Parameters:
    """A module's parameters by all their names, and which memory each one is in."""

    def __init__(self, module: nn.Module) -> None:
        self.named = dict(module.named_parameters(remove_duplicate=False))
        there = {name: p for name, p in self.named.items() if not p.is_meta}
        self.spans = {name: _span(p) for name, p in there.items() if type(p.data) is Tensor}
        is_hooked = any(hasattr(each, "_hf_hook") for each in module.modules())
        self.has_numbers = is_hooked or not all(p.is_meta for p in self.named.values())
        self.stream = stream_of(module)
        self.quantised = quantised(module)

    def checked(self, weights: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
        """Return parameters instead of those named; raise ModelError where one cannot be."""
        return {name: self._other(name, given) for name, given in weights.items()}

    def _other(self, name: str, given: Tensor) -> nn.Parameter:
        if name not in self.named:
            near = get_close_matches(name, self.named, n=2)
            hint = f"; near it there is {' and '.join(map(repr, near))}" if near else ""
            raise ModelError(f"unknown parameter {name!r}{hint}")
        own = self.named[name]
        if why := self._why_not(name, own):
            raise ModelError(f"parameter {name!r} cannot be replaced: {why}")
        for what, has, needed in (
            ("shape", tuple(given.shape), tuple(own.shape)),
            ("type", given.dtype, own.dtype),
        ):
            if has != needed:
                raise ModelError(f"{name!r} given with {what} {has}; the model's has {needed}")
        return nn.Parameter(given.detach().to(own.device), requires_grad=False)

    def _why_not(self, name: str, own: nn.Parameter) -> str:
        is_streamed = self.stream is not None and id(own) in self.stream.ids
        if is_streamed or (own.is_meta and self.has_numbers):
            return "it is not in memory (offloaded)"
        is_plain = type(own.data) is Tensor and own.is_floating_point()
        if self.quantised or not is_plain:
            return f"the model is quantised ({self.quantised or 'in a form of its own'})"
        for other, parameter in self.named.items():
            if other != name and parameter is own:
                return f"it is tied to {other!r}"
        if not self.has_numbers:
            return ""
        device, first, last = self.spans[name]
        for other, (where, start, end) in self.spans.items():
            if other != name and where == device and start < last and first < end:
                return f"it shares memory with {other!r}"
        return ""


def _span(parameter: Tensor) -> tuple[str, int, int]:
    """Return on which device a parameter is, and where its memory begins and ends."""
    steps = zip(parameter.shape, parameter.stride(), strict=True)
    n = 1 + sum((size - 1) * step for size, step in steps) if parameter.numel() else 0
    start = parameter.data_ptr()
    return str(parameter.device), start, start + n * parameter.element_size()
