"""From a name to a model: shipped, in a local folder, on the Hugging Face hub, or in memory."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    PreTrainedModel,
)
from transformers.utils.hub import cached_file, extract_commit_hash

from interp.errors import ModelError, UnknownModelError
from interp.files.gguf import load_gguf, read_gguf
from interp.files.paths import shipped_models
from interp.models.bridge.building import stock_model
from interp.models.classes import class_of
from interp.models.derived import derived
from interp.models.dtypes import (
    DISK,
    DTYPES,
    AutoDtype,
    DeviceMap,
    check_dtype,
    kind_of_device,
    name_of,
)
from interp.models.locating import (
    ADAPTER,
    DERIVED,
    GGUF,
    UNTRAINED,
    base_of,
    file_on_hub,
    locate,
    nearest,
    shipped_or_near,
    with_gguf,
)
from interp.models.model import Model
from interp.models.on_disk import load_on_disk, refuse_other_keys
from interp.models.quantised import how_stored, plain, quantised
from interp.models.tokenizers import given_tokenizer, load_tokenizer
from interp.models.untrained import untrained

_UNREADABLE = (OSError, ValueError, RuntimeError, ImportError, SafetensorError)


@torch.inference_mode(mode=False)  # its weights could not be in a graph
def load_model(
    name: str | Path | nn.Module,
    *,
    revision: str | None = None,
    gguf_file: str | None = None,
    device: str = "auto",
    dtype: str | torch.dtype | AutoDtype = "auto",
    device_map: DeviceMap | None = None,
    trust_remote_code: bool = False,
    tokenizer: Any = None,
    store: str | Path | None = None,
) -> Model:
    """Return a model, checked and ready for analyses.

    `name` is a shipped model ("zoo/hops-4l"), one that `interp get` fetched ("smollm2-135m"), a
    local folder, a GGUF file, a Hugging Face id, or a transformers module or TransformerBridge,
    which is used unchanged, with its own `device` and `dtype`. A folder of a PEFT adapter is
    merged into its base; of a folder or repository with several GGUF files, `gguf_file` names one
    (as does "owner/name/x.gguf"). GGUF weights are dequantised. `revision` is a branch or commit of
    the hub, or a shipped model's seed or checkpoint ("step-0400"; also "zoo/hops-8l@step-0400").
    NAME@untrained (or @untrained-3, by its seed) has the initial weights of NAME's class and
    configuration; NAME@bits-3 (or @bits-3:10-19, of layers) and NAME@loop-15 are NAME with rounded
    or shared weights (`interp.models.derived`). `dtype` "auto" is the checkpoint's on a GPU, and on
    a CPU what `AutoDtype.on` says. `device_map` spreads a model over devices, as accelerate
    understands it, instead of `device`; with "disk", the blocks' weights stay on disk
    (safetensors), and one block at a time is read and run on `device`. Code that comes with a
    checkpoint runs only with `trust_remote_code`. With `store`, clean activations are kept in that
    folder and read from it. Raises ModelError if there is no such model, or if weights are missing,
    unexpected or not finite.
    """
    asked, tokenizer = _asked(dtype, device, device_map), given_tokenizer(tokenizer)
    if isinstance(name, nn.Module):
        if (revision, gguf_file, device_map) != (None, None, None):
            which = "revision, gguf_file and device_map are for models by name"
            raise ModelError(f"{which}; a module is given, taken as it is")
        own_type = "auto" if isinstance(asked, AutoDtype) else asked
        return _in_memory(name, tokenizer, _folder(store), device=device, dtype=own_type)
    if revision is not None and str(name) in shipped_models():
        name, revision = f"{name}@{revision}", None
    name = with_gguf(str(name), gguf_file)
    how: dict[str, Any] = {"device_map": device_map, "trust_remote_code": trust_remote_code}
    another = partial(load_model, device=device, dtype=asked, store=store, **how)
    if twin := UNTRAINED.fullmatch(name) or DERIVED.fullmatch(name):
        if device_map == DISK:
            raise ModelError(f"{name} has no weights on disk; load it without device_map='disk'")
        own: dict[str, Any] = {"revision": revision, "tokenizer": tokenizer, "store": store}
        trained = load_model(twin["base"], device=device, dtype=asked, **own, **how)
        if twin.re is DERIVED:
            return derived(trained, name, twin)
        return _untrained(name, trained, int(twin["seed"] or 0))
    source = locate(name)
    module, stored = _load_module(source, revision, device=device, dtype=asked, **how)
    if tokenizer is None:
        where = str(_gguf_path(source, revision)) if source.endswith(GGUF) else source
        tokenizer = load_tokenizer(where, revision=revision, trust_remote_code=trust_remote_code)
    return Model(name, module, tokenizer, _folder(store), another, checkpoint=stored)


def _asked(dtype: object, device: str, device_map: DeviceMap | None) -> str | AutoDtype:
    """Return the name of the type that is asked for, or what "auto" means on the device."""
    if isinstance(dtype, AutoDtype):
        return dtype
    name = check_dtype(dtype)
    return AutoDtype.on(kind_of_device(device, device_map)) if name == "auto" else name


def _untrained(name: str, trained: Model, seed: int) -> Model:
    twin = untrained(trained, seed=seed)
    if twin is None:
        family = type(trained.module).__name__
        raise ModelError(f"{name}: a {family} cannot be built from its configuration alone")
    another = trained.load_another
    return Model(name, twin.module, trained.tokenizer, trained.store_folder, another)


def _folder(path: str | Path | None) -> Path | str | None:
    return path if path is None or "://" in str(path) else Path(path)


def _in_memory(
    module: nn.Module, tokenizer: Any, store: Path | str | None, *, device: str, dtype: str
) -> Model:
    """Return the model of a module or bridge, unchanged; raise ModelError if it has to change."""
    if hasattr(module, "_orig_mod"):  # what torch.compile returns
        module = module._orig_mod  # type: ignore[assignment]
    is_bridge = type(module).__name__ == "TransformerBridge"
    stock = stock_model(module) if is_bridge else module
    if hasattr(stock, "merge_and_unload"):
        raise ModelError(
            f"a {type(stock).__name__} with adapters given;"
            " give what its merge_and_unload() returns"
        )
    if not isinstance(stock, PreTrainedModel):
        raise ModelError(
            f"a {type(stock).__name__} given;"
            " a name, a transformers model or a TransformerBridge is needed"
        )
    _refuse_other_form(stock, device=device, dtype=dtype)
    load_another = partial(load_model, device=str(stock.device), dtype=dtype, store=store)
    if is_bridge:
        name = f"bridge of {type(module.original_model).__name__}"
        return Model(name, stock, tokenizer or module.tokenizer, store, load_another).seen_through(
            module
        )
    return Model(
        stock.config.name_or_path or type(stock).__name__, stock, tokenizer, store, load_another
    )


def _refuse_other_form(module: PreTrainedModel, *, device: str, dtype: str) -> None:
    """Raise ModelError if a module has another type or device: it is its owner's to convert."""
    if dtype != "auto" and module.dtype != DTYPES[dtype]:
        has = str(module.dtype).removeprefix("torch.")
        raise ModelError(
            f"dtype={dtype!r} asked of a module that is {has};"
            f" convert it first: module.to(torch.{dtype})"
        )
    asked = None if device == "auto" else torch.device(device)
    if asked is not None and (asked.type, asked.index or 0) != (
        module.device.type,
        module.device.index or 0,
    ):
        raise ModelError(
            f"device={device!r} asked of a module on {module.device};"
            f" move it first: module.to({device!r})"
        )


def _load_module(
    source: str, revision: str | None, *, device: str, dtype: str | AutoDtype, **how: Any
) -> tuple[PreTrainedModel, str]:
    """Return a model's module, on its device, and the type that the checkpoint holds.

    Raises ModelError as `load_model`.
    """
    is_adapter, is_file = (Path(source) / ADAPTER).is_file(), Path(source).is_file()
    if revision is not None and Path(source).exists() and not is_adapter:
        raise ModelError(
            f"revision={revision!r} asked of the {'file' if is_file else 'folder'} {source};"
            " revisions are for models of the hub"
        )
    if how["device_map"] == DISK:
        return _load_streamed(source, revision, device=device, dtype=dtype, **how)
    load = _load_merged if is_adapter else _load
    module, stored = load(source, revision=revision, dtype=dtype, **how)
    if how["device_map"] is None and not getattr(module, "is_quantized", False):
        module.to(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    module.eval().requires_grad_(False)  # nobody else's, so that nothing has to be put back
    return module, stored


def _load_streamed(
    source: str,
    revision: str | None,
    *,
    device: str,
    dtype: str | AutoDtype,
    device_map: Any,
    trust_remote_code: bool,
) -> tuple[PreTrainedModel, str]:
    """Return a module whose blocks stay on disk, and the type that they are stored in."""
    if source.endswith(GGUF) or (Path(source) / ADAPTER).is_file():
        raise ModelError(
            f"{source} cannot be read block by block (it is an adapter or a GGUF file);"
            f" load it without device_map={device_map!r}"
        )
    place = kind_of_device() if device == "auto" else device
    try:
        return load_on_disk(
            source,
            revision=revision,
            device=torch.device(place),
            dtype=dtype,
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise why_not_loaded(source, error, is_code_trusted=trust_remote_code) from None


def _load(
    source: str, *, dtype: str | AutoDtype, device_map: Any, **which: Any
) -> tuple[PreTrainedModel, str]:
    """Return the module of a folder, file or hub id, and the type it is stored in ("" unknown)."""
    if source.endswith(GGUF):
        return _load_gguf(source, which["revision"], dtype=dtype, device_map=device_map)
    stored = _stored(source, **which)
    chosen = dtype if isinstance(dtype, str) else dtype.of(stored) if stored else "auto"
    module = _from_pretrained(source, chosen, device_map=device_map, **which)
    own = name_of(module.dtype)
    if isinstance(dtype, AutoDtype) and not stored and not getattr(module, "is_quantized", False):
        stored = own  # the config did not say it
        if dtype.of(own) != own:
            module = _from_pretrained(source, dtype.of(own), device_map=device_map, **which)
    _say_if_dequantised(source, module, **which)
    return module, stored


def _say_if_dequantised(source: str, module: PreTrainedModel, **which: Any) -> None:
    """Have a module say what it was made from, if transformers dequantised its weights."""
    config = _config(source, **which)
    if getattr(config, "quantization_config", None) is not None and not quantised(module):
        stored = how_stored(config.quantization_config)
        module.config.made_from = f"{Path(source).name}, dequantised from {stored}"


def _stored(source: str, **which: Any) -> str:
    """Return the type that a checkpoint's config names.

    "" if it names none, if weights are quantised, and if it cannot be read.
    """
    config = _config(source, **which)
    is_quantised = getattr(config, "quantization_config", None) is not None
    return "" if is_quantised or config is None or not config.dtype else name_of(config.dtype)


def _config(source: str, **which: Any) -> Any:
    """Return a checkpoint's configuration; None if it cannot be read, as loading will say."""
    try:
        return AutoConfig.from_pretrained(source, **which)
    except (OSError, ValueError, RuntimeError, ImportError):
        return None


def _from_pretrained(
    source: str, dtype: str, *, revision: str | None, device_map: Any, trust_remote_code: bool
) -> PreTrainedModel:
    try:
        which = {"revision": revision, "trust_remote_code": trust_remote_code}
        module, info = class_of(_config(source, **which)).from_pretrained(
            source,
            dtype=DTYPES.get(dtype, "auto"),
            device_map=device_map,
            output_loading_info=True,
            **which,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
    except _UNREADABLE as error:
        raise why_not_loaded(source, error, is_code_trusted=trust_remote_code) from None
    refuse_other_keys(source, info)
    _refuse_not_finite(source, module)
    loaded: PreTrainedModel = module
    return loaded


def _load_gguf(
    source: str, revision: str | None, *, dtype: str | AutoDtype, device_map: Any
) -> tuple[PreTrainedModel, str]:
    """Return the module of a GGUF file, dequantised, and the type of most of its weights.

    Quantised weights count as float16 where a type is chosen for them: their scales are.
    """
    path = _gguf_path(source, revision)
    file = read_gguf(path)
    own = file.stored if file.stored in DTYPES else "float16"
    chosen = dtype if isinstance(dtype, str) else dtype.of(own)
    module, info = load_gguf(file, dtype=DTYPES[chosen], device_map=device_map)
    if file_on_hub(source) is not None:
        module.config._commit_hash = extract_commit_hash(str(path), None)
    refuse_other_keys(source, info)
    _refuse_not_finite(source, module)
    return module, file.stored


def _gguf_path(source: str, revision: str | None) -> Path:
    """Return where a GGUF file is, fetched from the hub if it is there."""
    if (there := file_on_hub(source)) is None:
        return Path(source)
    repository, file = there
    try:
        found = cached_file(repository, file, revision=revision)
    except OSError as error:
        raise why_not_loaded(repository, error) from None
    return Path(str(found))


def why_not_loaded(source: str, error: Exception, *, is_code_trusted: bool = True) -> ModelError:
    """Return, in one line, what is wrong with a checkpoint and what to do about it."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    reason = next(
        (line for line in str(error).strip().splitlines() if line.strip()), type(error).__name__
    )
    if any(isinstance(each, GatedRepoError) for each in chain):
        return ModelError(
            f"model {source!r} is gated;"
            f" accept its terms at https://huggingface.co/{source}, then run `hf auth login`"
        )
    if any(isinstance(each, OfflineModeIsEnabled | LocalEntryNotFoundError) for each in chain):
        why = "the hub cannot be asked (HF_HUB_OFFLINE, or no network)"
        return UnknownModelError(
            f"model {source!r} is not in the local cache and {why};"
            f" there is no such folder{nearest(source)}"
        )
    if any(isinstance(each, RepositoryNotFoundError) for each in chain):
        return UnknownModelError(
            f"no model {source!r} on the hub, or a private one (`hf auth login`){nearest(source)};"
            f" {shipped_or_near(source)}"
        )
    if "trust_remote_code" in str(error) and not is_code_trusted:
        return ModelError(
            f"model {source!r} brings its own code;"
            " read it, then allow it by trust_remote_code (--trust-remote-code)"
        )
    if Path(source).is_dir() or isinstance(error, ImportError):
        return ModelError(f"model {source!r} cannot be loaded ({reason})")
    return ModelError(f"model {source!r} cannot be loaded ({reason}); {shipped_or_near(source)}")


def _refuse_not_finite(source: str, module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        parts = () if parameter.is_meta else plain(parameter)
        if not all(bool(torch.isfinite(part).all()) for part in parts):
            raise ModelError(f"{source}: {name} has NaN or infinite weights")


def _load_merged(source: str, **how: Any) -> tuple[PreTrainedModel, str]:
    """Return the base of a PEFT adapter with its weights added, and the type the base is in."""
    try:
        from peft import PeftModel
    except ImportError:
        raise ModelError(
            f"{source} is a PEFT adapter; `pip install peft` to merge it into its base"
        ) from None
    module, stored = _load(locate(base_of(source)), **how)
    try:
        merged: PreTrainedModel = PeftModel.from_pretrained(module, source).merge_and_unload()
    except (KeyError, TypeError, *_UNREADABLE) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"{source}: the adapter cannot be merged ({reason})") from None
    _refuse_not_finite(source, merged)
    return merged, stored
