"""From a name to a model: shipped, in a local folder, from the Hugging Face hub, or already in memory."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from interp.errors import ModelError, UnknownModelError, unknown
from interp.models.bridge import stock_model
from interp.models.model import Model
from interp.paths import shipped_models

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ADAPTER = "adapter_config.json"
DeviceMap = str | dict[str, int | str]


@torch.inference_mode(mode=False)  # its weights could not be in a graph
def load_model(
    name: str | Path | nn.Module,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    device_map: DeviceMap | None = None,
    trust_remote_code: bool = False,
    tokenizer: Any = None,
    store: str | Path | None = None,
) -> Model:
    """Return a model ready to be recorded.

    `name` is a shipped model ("zoo/hops-4l"), a local folder, a Hugging Face id, or a transformers module or
    TransformerBridge, taken as it is. A folder of a PEFT adapter is merged into its base. `revision` is a branch or commit
    of the hub, or a shipped model's seed or checkpoint ("step-0400"; also "zoo/hops-8l@step-0400"). `dtype` "auto" is the
    checkpoint's. `device_map` spreads a model over devices, as accelerate understands it, instead of `device`. Code that
    comes with a checkpoint is run only with `trust_remote_code`. With `store`, clean activations are kept in that folder
    and read from it. Raises ModelError when there is no such model, or weights are missing, unexpected or not finite.
    """
    if isinstance(name, nn.Module):
        return _in_memory(name, tokenizer, _folder(store))
    check_dtype(dtype)
    if revision is not None and str(name) in shipped_models():
        name, revision = f"{name}@{revision}", None
    source = locate(str(name))
    how: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    load = _load_merged if (Path(source) / _ADAPTER).is_file() else _load
    module = load(source, dtype=dtype, device_map=device_map, **how)
    if device_map is None and not getattr(module, "is_quantized", False):
        module.to(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    if tokenizer is None:
        tokenizer = _load_tokenizer(source, **how)
    return Model(str(name), module, tokenizer, _folder(store))


def check_dtype(dtype: str) -> None:
    """Raise ModelError for a type that models are not loaded as."""
    if dtype != "auto" and dtype not in _DTYPES:
        raise ModelError(unknown("dtype", dtype, ["auto", *_DTYPES]))


def _folder(path: str | Path | None) -> Path | str | None:
    return path if path is None or "://" in str(path) else Path(path)


def _in_memory(module: nn.Module, tokenizer: Any, store: Path | str | None) -> Model:
    if type(module).__name__ == "TransformerBridge":
        model = Model(
            f"bridge of {type(module.original_model).__name__}", stock_model(module), tokenizer or module.tokenizer
        )
        return model.seen_through(module)
    if hasattr(module, "merge_and_unload"):
        raise ModelError(f"a {type(module).__name__} with adapters given; give what its merge_and_unload() returns")
    if not isinstance(module, PreTrainedModel):
        raise ModelError(f"a {type(module).__name__} given; a name, a transformers model or a TransformerBridge is needed")
    return Model(module.config.name_or_path or type(module).__name__, module, tokenizer, store_folder=store)


def locate(name: str) -> str:
    """Return the folder or hub id behind a name; raise ModelError for a shipped name or folder that cannot be one."""
    shipped = shipped_models()
    if name in shipped:
        return str(shipped[name])
    if name.startswith("zoo/"):
        raise UnknownModelError(unknown("model", name, shipped))
    folder = Path(name)
    if not folder.is_dir() and (folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        there_is = f"{unknown('model', name, shipped)}, a hub id (owner/name), or a folder"
        raise UnknownModelError(f"there is no folder {name}; {there_is}")
    if folder.is_dir() and not (folder / _ADAPTER).is_file():
        if not (folder / "config.json").is_file():
            raise ModelError(f"folder {name} has no config.json; a Hugging Face model folder is needed")
        if not [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
            raise ModelError(f"folder {name} has no weights; there is {', '.join(sorted(p.name for p in folder.iterdir()))}")
    return name


def _load(source: str, *, revision: str | None, dtype: str, device_map: Any, trust_remote_code: bool) -> PreTrainedModel:
    try:
        module, info = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=_DTYPES.get(dtype, "auto"),
            device_map=device_map,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise _why_not_loaded(source, error, trust_remote_code=trust_remote_code) from None
    _refuse_other_keys(source, info)
    _refuse_not_finite(source, module)
    loaded: PreTrainedModel = module
    return loaded


def _why_not_loaded(source: str, error: Exception, *, trust_remote_code: bool) -> ModelError:
    """Return, in one line, what is wrong with a checkpoint, and what to do about it."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    said = next((line for line in str(error).strip().splitlines() if line.strip()), type(error).__name__)
    if any(isinstance(each, GatedRepoError) for each in chain):
        return ModelError(
            f"model {source!r} is gated; accept its terms at https://huggingface.co/{source}, then run `hf auth login`"
        )
    if any(isinstance(each, OfflineModeIsEnabled | LocalEntryNotFoundError) for each in chain):
        why = "the hub cannot be asked (HF_HUB_OFFLINE, or no network)"
        return UnknownModelError(f"model {source!r} is not in the local cache and {why}; there is no such folder")
    if any(isinstance(each, RepositoryNotFoundError) for each in chain):
        return UnknownModelError(f"no model {source!r} on the hub, or a private one (`hf auth login`); {_shipped(source)}")
    if "trust_remote_code" in str(error) and not trust_remote_code:
        return ModelError(
            f"model {source!r} brings its own code; read it, then allow it by trust_remote_code (--trust-remote-code)"
        )
    if Path(source).is_dir() or isinstance(error, ImportError):
        return ModelError(f"model {source!r} cannot be loaded ({said})")
    return ModelError(f"model {source!r} cannot be loaded ({said}); {_shipped(source)}")


def _shipped(name: str) -> str:
    return unknown("model", name, shipped_models())


def _refuse_other_keys(source: str, info: dict[str, Any]) -> None:
    for name, stored, expected in sorted(info["mismatched_keys"]):
        raise ModelError(f"{source}: {name} has size {tuple(stored)}; config.json makes it {tuple(expected)}")
    for what, keys in (("lacks", info["missing_keys"]), ("has unexpected", info["unexpected_keys"])):
        if keys:
            first = min(map(str, keys))
            raise ModelError(f"{source} {what} {len(keys)} weights (first: {first}); config.json and weights differ")


def _refuse_not_finite(source: str, module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if not parameter.is_meta and not bool(torch.isfinite(parameter).all()):
            raise ModelError(f"{source}: {name} has NaN or infinite weights")


def _load_merged(source: str, **how: Any) -> PreTrainedModel:
    """Return the base model of a PEFT adapter with the adapter's weights added to its own."""
    try:
        from peft import PeftModel
    except ImportError:
        raise ModelError(f"{source} is a PEFT adapter; `pip install peft` to merge it into its base") from None
    base = json.loads((Path(source) / _ADAPTER).read_text()).get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{source}/{_ADAPTER} names no base_model_name_or_path")
    adapted = PeftModel.from_pretrained(_load(locate(base), **how), source)
    merged: PreTrainedModel = adapted.merge_and_unload()
    _refuse_not_finite(source, merged)
    return merged


def _load_tokenizer(source: str, *, revision: str | None, trust_remote_code: bool) -> Any:
    adapter = Path(source) / _ADAPTER
    if adapter.is_file() and not [*Path(source).glob("tokenizer*")]:
        source = json.loads(adapter.read_text())["base_model_name_or_path"]
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError):
        raise ModelError(f"{source} has no tokenizer") from None
