"""A user's module while this library runs it, and restored afterwards."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from interp.errors import ModelError
from interp.models.streaming import Opening


class Running:
    """A context around every pass; only the outermost acts, and undoes it, even after an exception.

    Inside it the module is in eval mode, its weights want no gradient, nothing of it is compiled,
    autocast and inference mode are off, and the owner's backward hooks rest. The owner's forward
    hooks are called, and refused, by ModelError, where they change anything. `memo` may hold what
    is true while something runs; the outermost one empties it when it is entered and left.
    """

    def __init__(self, module: nn.Module) -> None:
        self.memo: dict[str, Any] = {}
        self._named = list(module.named_modules())
        self._depth = 0
        self._undo: ExitStack | None = None

    @property
    def is_outermost(self) -> bool:
        """Tell whether nothing is running at present."""
        return self._depth == 0

    def __enter__(self) -> None:
        if self._depth == 0:
            self.memo.clear()
            with ExitStack() as stack:
                self._prepare(stack)
                self._undo = stack.pop_all()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0 and self._undo is not None:
            self.memo.clear()
            self._undo.close()
            self._undo = None

    def watch(self, module: nn.Module) -> None:
        """Take care of another module that shares the weights."""
        self._named += [(f"bridge.{name}", inside) for name, inside in module.named_modules()]

    def _prepare(self, stack: ExitStack) -> None:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(mode=False))
            stack.enter_context(torch.no_grad())
        for device in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        for name, module in self._named:
            if module.training:
                stack.callback(setattr, module, "training", True)
                module.training = False
            for parameter in module._parameters.values():
                if parameter is not None and parameter.requires_grad:
                    stack.callback(parameter.requires_grad_, True)
                    parameter.requires_grad_(False)
            _uncompile(module, stack)
            for hooks in (module._backward_hooks, module._backward_pre_hooks):
                if hooks:
                    stack.enter_context(_silenced(hooks))
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                if _of_owner(hooks):
                    stack.enter_context(
                        _watched(hooks, name, is_before=hooks is module._forward_pre_hooks)
                    )
        for hooks in (global_hooks._global_forward_hooks, global_hooks._global_forward_pre_hooks):
            if hooks:
                is_before = hooks is global_hooks._global_forward_pre_hooks
                stack.enter_context(_watched(hooks, "every module", is_before=is_before))


def has_forward_hooks(modules: Sequence[nn.Module]) -> bool:
    """Tell whether any of these modules, or all modules globally, have forward hooks now."""
    everywhere = global_hooks._global_forward_hooks or global_hooks._global_forward_pre_hooks
    return bool(everywhere) or any(
        module._forward_hooks or _of_owner(module._forward_pre_hooks) for module in modules
    )


def _of_owner(hooks: Mapping[int, Any]) -> bool:
    """Tell whether there are hooks other than those that read a block's weights."""
    return any(not isinstance(hook, Opening) for hook in hooks.values())


def replaced_forwards(modules: Sequence[nn.Module]) -> list[str]:
    """Return the modules whose owner replaced `forward`: no weight shows what they compute."""
    return [
        type(module).__name__
        for module in modules
        if "forward" in vars(module)
        and not hasattr(
            module, "_hf_hook"
        )  # accelerate moves weights and data, and changes no number
        and _compiled_from(vars(module)["forward"]) is None
    ]


def _compiled_from(function: Any) -> Any:
    return getattr(function, "_torchdynamo_orig_callable", None)


def _uncompile(module: nn.Module, stack: ExitStack) -> None:
    """Run a module uncompiled, however it was compiled in place, so that its hooks are called."""
    if (compiled := module._compiled_call_impl) is not None:
        stack.callback(setattr, module, "_compiled_call_impl", compiled)
        module._compiled_call_impl = None
    own = vars(module).get("forward")
    if (original := _compiled_from(own)) is not None:
        stack.callback(setattr, module, "forward", own)
        module.forward = original


@contextmanager
def _silenced(hooks: dict[int, Any]) -> Iterator[None]:
    """Remove a module's hooks for a while."""
    own = OrderedDict(hooks)
    hooks.clear()
    try:
        yield
    finally:
        own.update(hooks)
        hooks.clear()
        hooks.update(own)


@contextmanager
def _watched(hooks: dict[int, Any], where: str, *, is_before: bool) -> Iterator[None]:
    """Let a module's hooks raise ModelError if they change anything."""
    own = {key: hook for key, hook in hooks.items() if not isinstance(hook, Opening)}
    for key, hook in own.items():
        hooks[key] = _watching(
            hook, f"{_name_of(hook)} on {where or 'the model'}", is_before=is_before
        )
    try:
        yield
    finally:
        for key in own.keys() & hooks.keys():
            hooks[key] = own[key]


def _watching(hook: Any, which: str, *, is_before: bool) -> Any:
    """Return a hook that calls another and raises ModelError if it changes an input or output."""

    def call(module: nn.Module, *given: Any) -> Any:
        clean = [tensor.clone() for tensor in _tensors_in(given)]
        returned = hook(module, *given)
        same = _are_same(clean, given)
        if returned is not None and same:
            same = _are_same(_tensors_in(given if is_before else given[-1]), returned)
        if not same:
            raise ModelError(
                f"forward hook {which} changes what the model computes;"
                " remove it, or give the change as a plan"
            )
        return returned

    return call


def _name_of(hook: Any) -> str:
    return str(getattr(hook, "__qualname__", None) or type(hook).__name__)


def _tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in _tensors_in(item)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors_in(item)]
    return []


def _are_same(tensors: Sequence[Tensor], value: Any) -> bool:
    others = _tensors_in(value)
    return len(tensors) == len(others) and all(
        a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(tensors, others, strict=True)
    )
