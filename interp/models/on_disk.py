"""A model whose blocks stay on disk: built without their weights, all others are read into it."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from interp.errors import ModelError
from interp.files.tensors import TensorFiles, most_common_dtype
from interp.models.bridge.building import module_paths
from interp.models.dtypes import DTYPES, AutoDtype, name_of
from interp.models.streaming import BlockStream

_INDEX, _WHOLE = "model.safetensors.index.json", "model.safetensors"


def load_on_disk(
    source: str,
    *,
    revision: str | None,
    device: torch.device,
    dtype: str | AutoDtype,
    trust_remote_code: bool,
) -> tuple[PreTrainedModel, str]:
    """Return a module of a folder or hub id with all weights but its blocks' in memory.

    Its blocks are streamed (`stream_of`); with it comes the type that the weights are stored in.
    Raises ModelError, in one line, for weights that are not in safetensors files under the names
    and in the shapes of the model, are quantised, are shared by blocks, or have two types; OSError
    as transformers does.
    """
    how: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(source, **how)
    if getattr(config, "quantization_config", None) is not None:
        raise _not_streamed(source, "its weights are quantised")
    files = TensorFiles(_files_of(source, revision))
    own = name_of(config.dtype or most_common_dtype(files.tensors.values()) or torch.float32)
    chosen = dtype if isinstance(dtype, str) else dtype.of(own)
    as_type = DTYPES.get(chosen, DTYPES[own])
    with _without_memory():
        module: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=as_type, trust_remote_code=trust_remote_code
        )
    _refuse_two_types(source, module, as_type)
    stored = _names_on_disk(source, module, files)
    weights = _weights_of_blocks(source, module)
    _fill(module, files, stored, without={name for names in weights.values() for name in names})
    module.to(device).eval().requires_grad_(False)
    with suppress(OSError):
        module.generation_config = GenerationConfig.from_pretrained(source, revision=revision)
    modules = [module.get_submodule(path) for path in weights]
    named = [{name: module.get_parameter(name) for name in names} for names in weights.values()]
    BlockStream(module, modules, named, stored, files, device)
    return module, own


def _not_streamed(source: str, why: str) -> ModelError:
    return ModelError(
        f"{source} cannot be read block by block ({why}); load it without device_map='disk'"
    )


def _files_of(source: str, revision: str | None) -> list[Path]:
    """Return a model's safetensors files, from its folder or the hub's cache."""
    find = partial(cached_file, source, revision=revision)
    if (index := find(_INDEX, _raise_exceptions_for_missing_entries=False)) is not None:
        names = {*json.loads(Path(index).read_text("utf-8"))["weight_map"].values()}
        return [Path(str(find(name))) for name in sorted(names)]
    whole = find(_WHOLE, _raise_exceptions_for_missing_entries=False)
    if whole is None:
        raise _not_streamed(source, f"it has no {_WHOLE}")
    return [Path(whole)]


@contextmanager
def _without_memory() -> Iterator[None]:
    """Build modules whose parameters have no memory; buffers, which may be computed, have."""
    register, modules = nn.Module.register_parameter, cast(Any, nn.Module)

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None and not parameter.is_meta:
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)

    modules.register_parameter = on_meta
    try:
        yield
    finally:
        modules.register_parameter = register


def _refuse_two_types(source: str, module: PreTrainedModel, dtype: torch.dtype) -> None:
    """Raise ModelError for families that compute parts in fp32 whatever is asked for."""
    kept = {*(getattr(module, "_keep_in_fp32_modules_strict", None) or ())}
    if dtype == torch.float16:
        kept |= {*(getattr(module, "_keep_in_fp32_modules", None) or ())}
    if kept and dtype != torch.float32:
        raise _not_streamed(source, f"{min(kept)} stays in float32 beside {name_of(dtype)}")


def _names_on_disk(source: str, module: PreTrainedModel, files: TensorFiles) -> dict[str, str]:
    """Return under which name each weight is stored; raise ModelError where any is not, or more."""
    prefix = f"{module.base_model_prefix}."
    expected: Mapping[str, Tensor] = module.state_dict()
    stored: dict[str, str] = {}
    for name in expected:
        names = (name, name.removeprefix(prefix))
        if there := [each for each in names if each in files.tensors]:
            stored[name] = there[0]
    named = dict(module.named_parameters(remove_duplicate=False))
    read = {id(named[name]) for name in stored if name in named}
    tied = {name for name, parameter in named.items() if id(parameter) in read}
    ignored = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    left = {*files.tensors} - {*stored.values()}
    info = {
        "missing_keys": {*expected} - {*stored} - tied,
        "unexpected_keys": {n for n in left if not any(re.search(each, n) for each in ignored)},
        "mismatched_keys": {
            (name, files.tensors[on_disk].shape, tuple(expected[name].shape))
            for name, on_disk in stored.items()
            if files.tensors[on_disk].shape != tuple(expected[name].shape)
        },
    }
    refuse_other_keys(source, info)
    return stored


def refuse_other_keys(source: str, info: dict[str, Any]) -> None:
    """Raise ModelError if weights are missing, unexpected or of other shapes.

    `info` names them as transformers' loading information does.
    """
    for name, stored, expected in sorted(info["mismatched_keys"]):
        raise ModelError(
            f"{source}: {name} has size {tuple(stored)}; config.json makes it {tuple(expected)}"
        )
    for what, keys in (
        ("lacks", info["missing_keys"]),
        ("has unexpected", info["unexpected_keys"]),
    ):
        if keys:
            first = min(map(str, keys))
            raise ModelError(
                f"{source} {what} {len(keys)} weights (first: {first});"
                " configuration and weights differ"
            )


def _weights_of_blocks(source: str, module: PreTrainedModel) -> dict[str, list[str]]:
    """Return by a block's path its parameters' names; raise ModelError where others share one."""
    named = dict(module.named_parameters(remove_duplicate=False))
    holders: dict[int, int] = {}
    for parameter in named.values():
        holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    path = module_paths(module).blocks
    children = module.get_submodule(path).named_children()
    weights: dict[str, list[str]] = {f"{path}.{name}": [] for name, _ in children}
    for name, parameter in named.items():
        block = next((block for block in weights if name.startswith(f"{block}.")), None)
        if block is None:
            continue
        if holders[id(parameter)] > 1:
            raise _not_streamed(source, f"{name} is shared")
        if not parameter.is_floating_point():
            raise _not_streamed(source, f"{name} is {name_of(parameter.dtype)}")
        weights[block].append(name)
    return weights


def _fill(
    module: PreTrainedModel, files: TensorFiles, stored: Mapping[str, str], *, without: set[str]
) -> None:
    """Read all weights but some; those are there afterwards, without memory."""
    there: dict[str, Tensor] = {}
    for name, own in module.state_dict().items():
        if name in without:
            there[name] = torch.empty((), dtype=own.dtype).expand(own.shape)
        elif name in stored:
            there[name] = files.read(stored[name], own.dtype)
            if own.is_floating_point() and not bool(torch.isfinite(there[name]).all()):
                raise ModelError(f"{name} has NaN or infinite weights")
    module.load_state_dict(there, strict=False, assign=True)
    module.tie_weights()
