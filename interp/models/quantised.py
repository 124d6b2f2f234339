"""Weights that are stored quantised and computed with as they are: how, and what that rules out."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from interp.errors import SiteError

Asked = Literal[
    "gradients",  # of activations: the only one that blocks on disk give
    "gradients of its weights",
    "the numbers of its weights",
    "other weights for a while",
]
_INTEGERS = (torch.int8, torch.uint8, torch.int32)


def quantised(module: nn.Module) -> str:
    """Return how a module's weights are quantised ("bitsandbytes, 4 bits"); "" if they are not.

    Beside what transformers says of a checkpoint, weights are seen to be in tensors of a form of
    their own (torchao, quanto), or in matrices of whole numbers.
    """
    config = getattr(getattr(module, "config", None), "quantization_config", None)
    if getattr(module, "is_quantized", False):
        return how_stored(config)
    for parameter in module.parameters():
        kind = type(parameter.data)
        if kind is not Tensor and not kind.__module__.startswith("torch.distributed"):
            return f"{kind.__name__} weights"
        if not parameter.is_floating_point():
            return f"{name_of_type(parameter)} weights"
    for inside in module.modules():
        for name, buffer in inside.named_buffers(recurse=False):
            is_kept = name not in inside._non_persistent_buffers_set
            if is_kept and buffer.ndim > 1 and buffer.dtype in _INTEGERS:
                return f"{name_of_type(buffer)} matrices of {type(inside).__name__}"
    return ""


def how_stored(config: object) -> str:
    """Return what a checkpoint's `quantization_config` says of its weights, in a few words."""
    said = config if isinstance(config, dict) else getattr(config, "to_dict", dict)()
    method = str(getattr(said.get("quant_method"), "value", said.get("quant_method") or "unknown"))
    four, eight = said.get("load_in_4bit"), said.get("load_in_8bit")
    bits = 4 if four else 8 if eight else said.get("bits") or said.get("nbits")
    kind = said.get("weights")
    more = f"{bits} bits" if bits else kind if isinstance(kind, str) else ""
    return ", ".join(filter(None, (method, more)))


def refuse_quantised(module: nn.Module, asked: Asked) -> None:
    """Raise SiteError, in one line, for what quantised weights do not give."""
    if how := quantised(module):
        raise SiteError(
            f"{type(module).__name__} is quantised ({how}): {asked} cannot be had;"
            " load its weights unquantised for that"
        )


def plain(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors that a tensor is made of: itself, or the parts of one of other form.

    Tensors of a form of their own name their parts as torch asks them to (`__tensor_flatten__`).
    """
    data = tensor.data if isinstance(tensor, nn.Parameter) else tensor
    if not hasattr(data, "__tensor_flatten__"):
        yield tensor
        return
    for name in data.__tensor_flatten__()[0]:
        yield from plain(getattr(data, name))


def name_of_type(tensor: Tensor) -> str:
    """Return the name of a tensor's type without torch's prefix."""
    return str(tensor.dtype).removeprefix("torch.")
