"""From a name to a model: shipped, in a local folder, on the Hugging Face hub, or in memory."""

import json
import re
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from interp.errors import ModelError, UnknownModelError, unknown
from interp.files.fetched import FETCHED, folder_of, is_there
from interp.files.paths import shipped_models
from interp.models.bridge.building import stock_model
from interp.models.model import Model
from interp.models.untrained import untrained

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ADAPTER = "adapter_config.json"
_TOKENIZERS = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "spiece*")
_UNTRAINED = re.compile(r"(?P<base>.+)@untrained(-(?P<seed>\d+))?")
_ONE_FILE = (".gguf", ".safetensors", ".bin", ".pt", ".pth")
DeviceMap = str | dict[str, int | str]


@torch.inference_mode(mode=False)  # its weights could not be in a graph
def load_model(
    name: str | Path | nn.Module,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    device_map: DeviceMap | None = None,
    trust_remote_code: bool = False,
    tokenizer: Any = None,
    store: str | Path | None = None,
) -> Model:
    """Return a model ready to be recorded.

    `name` is a shipped model ("zoo/hops-4l"), one that `interp get` fetched ("smollm2-135m"), a
    local folder, a Hugging Face id, or a transformers module or TransformerBridge: that stays as it
    is, and `device` and `dtype` must be its own. A folder of a PEFT adapter is merged into its
    base. `revision` is a branch or commit of the hub, or a shipped model's seed or checkpoint
    ("step-0400"; also "zoo/hops-8l@step-0400"). NAME@untrained (or @untrained-3, by its seed) has
    the initial weights of NAME's class and configuration. `dtype` "auto" is the checkpoint's.
    `device_map` spreads a model over devices, as accelerate understands it, instead of `device`.
    Code that comes with a checkpoint is run only with `trust_remote_code`. With `store`, clean
    activations are kept in that folder and read from it. Raises ModelError when there is no such
    model, or weights are missing, unexpected or not finite.
    """
    dtype, tokenizer = check_dtype(dtype), _given(tokenizer)
    if isinstance(name, nn.Module):
        if revision is not None or device_map is not None:
            raise ModelError(
                "revision and device_map are for models by name; a module is given, taken as it is"
            )
        return _in_memory(name, tokenizer, _folder(store), device=device, dtype=dtype)
    if revision is not None and str(name) in shipped_models():
        name, revision = f"{name}@{revision}", None
    how: dict[str, Any] = {"device_map": device_map, "trust_remote_code": trust_remote_code}
    another = partial(load_model, device=device, dtype=dtype, store=store, **how)
    if twin := _UNTRAINED.fullmatch(str(name)):
        own: dict[str, Any] = {"revision": revision, "tokenizer": tokenizer, "store": store}
        trained = load_model(twin["base"], device=device, dtype=dtype, **own, **how)
        return _untrained(str(name), trained, int(twin["seed"] or 0))
    source = locate(str(name))
    module = _load_module(source, revision, device=device, dtype=dtype, **how)
    if tokenizer is None:
        tokenizer = _load_tokenizer(source, revision=revision, trust_remote_code=trust_remote_code)
    return Model(str(name), module, tokenizer, _folder(store), another)


def _untrained(name: str, trained: Model, seed: int) -> Model:
    twin = untrained(trained, seed=seed)
    if twin is None:
        family = type(trained.module).__name__
        raise ModelError(f"{name}: a {family} cannot be built from its configuration alone")
    another = trained.load_another
    return Model(name, twin.module, trained.tokenizer, trained.store_folder, another)


def check_dtype(dtype: object) -> str:
    """Return the name of a type (a string or torch's); raise ModelError if none loads as that."""
    name = str(dtype).removeprefix("torch.")
    if name != "auto" and name not in _DTYPES:
        raise ModelError(unknown("dtype", name, ["auto", *_DTYPES]))
    return name


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
    if dtype != "auto" and module.dtype != _DTYPES[dtype]:
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


def locate(name: str) -> str:
    """Return the folder or hub id of a name; raise ModelError if it cannot name a model."""
    if twin := _UNTRAINED.fullmatch(name):
        return locate(twin["base"])
    shipped, path = shipped_models(), Path(name)
    if name in shipped:
        return str(shipped[name])
    if name.startswith("zoo/"):
        raise UnknownModelError(unknown("model", name, shipped))
    if name in FETCHED:
        return _fetched(name)
    if path.is_file() or (path.suffix in _ONE_FILE and not path.exists()):
        raise UnknownModelError(_instead_of(path))
    if not path.is_dir() and (
        path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    ):
        what_there_is = f"{_shipped(name)}, a hub id (owner/name), or a folder"
        raise UnknownModelError(f"there is no folder {name}{_nearest(name)}; {what_there_is}")
    if path.is_dir() and not (path / _ADAPTER).is_file():
        _refuse_without_weights(path)
    return name


def _fetched(name: str) -> str:
    if Path(name).is_dir():
        raise ModelError(
            f"{name} is a model that `interp get` fetches, and a folder here;"
            f" ./{name} means the folder"
        )
    if not is_there(name):
        raise UnknownModelError(
            f"{name} ({FETCHED[name].about}) is not on this machine;"
            f" `interp get {name}` fetches it once"
        )
    return str(folder_of(name))


def _refuse_without_weights(folder: Path) -> None:
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    if not weights and (packed := sorted(folder.glob("*.gguf"))):
        raise ModelError(f"folder {folder} has its weights in GGUF alone; {_instead_of(packed[0])}")
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"folder {folder} has no config.json; a Hugging Face model folder is needed"
        )
    if not weights:
        what_there_is = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise ModelError(f"folder {folder} has no weights; there is {what_there_is}")


def _instead_of(path: Path) -> str:
    """Return what to give instead of a single file."""
    if not path.exists():
        return (
            f"there is no file {path}{_nearest(str(path))};"
            " a model is a folder with config.json and weights"
        )
    if path.suffix == ".gguf":
        known = [
            name for name, source in FETCHED.items() if source.gguf_bytes == path.stat().st_size
        ]
        if known:
            return (
                f"{path} is a GGUF file;"
                f" `interp get {known[0]} --from {path}`, then give {known[0]}"
            )
        return (
            f"{path} is a GGUF file, which is not read;"
            " give the Hugging Face folder of the model it was made from"
        )
    if (path.parent / "config.json").is_file():
        return f"{path} is one file; give the folder with config.json that it is in: {path.parent}"
    return f"{path} is one file; give a folder with config.json, weights and tokenizer"


def _nearest(name: str) -> str:
    """Return a hint at the file or folder next to a path with the most similar name."""
    path = Path(name).expanduser()
    neighbours = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    nearest = get_close_matches(path.name, neighbours, n=1)
    return f"; did you mean {path.parent / nearest[0]}?" if nearest else ""


def _load_module(
    source: str, revision: str | None, *, device: str, dtype: str, **how: Any
) -> PreTrainedModel:
    """Return the module of a folder or hub id, on its device; raise ModelError as `load_model`."""
    is_adapter = (Path(source) / _ADAPTER).is_file()
    if revision is not None and Path(source).is_dir() and not is_adapter:
        raise ModelError(
            f"revision={revision!r} asked of the folder {source};"
            " revisions are for models of the hub"
        )
    load = _load_merged if is_adapter else _load
    module = load(source, revision=revision, dtype=dtype, **how)
    if how["device_map"] is None and not getattr(module, "is_quantized", False):
        module.to(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    module.eval().requires_grad_(False)  # nobody else's, so that nothing has to be put back
    return module


def _load(
    source: str, *, revision: str | None, dtype: str, device_map: Any, trust_remote_code: bool
) -> PreTrainedModel:
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
            f" there is no such folder{_nearest(source)}"
        )
    if any(isinstance(each, RepositoryNotFoundError) for each in chain):
        return UnknownModelError(
            f"no model {source!r} on the hub, or a private one (`hf auth login`){_nearest(source)};"
            f" {_shipped(source)}"
        )
    if "trust_remote_code" in str(error) and not trust_remote_code:
        return ModelError(
            f"model {source!r} brings its own code;"
            " read it, then allow it by trust_remote_code (--trust-remote-code)"
        )
    if Path(source).is_dir() or isinstance(error, ImportError):
        return ModelError(f"model {source!r} cannot be loaded ({reason})")
    return ModelError(f"model {source!r} cannot be loaded ({reason}); {_shipped(source)}")


def _shipped(name: str) -> str:
    return unknown("model", name, [*shipped_models(), *FETCHED])


def _refuse_other_keys(source: str, info: dict[str, Any]) -> None:
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
                " config.json and weights differ"
            )


def _refuse_not_finite(source: str, module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if not parameter.is_meta and not bool(torch.isfinite(parameter).all()):
            raise ModelError(f"{source}: {name} has NaN or infinite weights")


def _load_merged(source: str, **how: Any) -> PreTrainedModel:
    """Return the base model of a PEFT adapter with the adapter's weights added to its own."""
    try:
        from peft import PeftModel
    except ImportError:
        raise ModelError(
            f"{source} is a PEFT adapter; `pip install peft` to merge it into its base"
        ) from None
    base = json.loads((Path(source) / _ADAPTER).read_text()).get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{source}/{_ADAPTER} names no base_model_name_or_path")
    adapted = PeftModel.from_pretrained(_load(locate(base), **how), source)
    merged: PreTrainedModel = adapted.merge_and_unload()
    _refuse_not_finite(source, merged)
    return merged


def _load_tokenizer(source: str, *, revision: str | None, trust_remote_code: bool) -> Any:
    """Return a checkpoint's tokenizer, None without one; raise ModelError if it does not load."""
    adapter = Path(source) / _ADAPTER
    if adapter.is_file() and not _tokenizer_files(source):
        source = json.loads(adapter.read_text())["base_model_name_or_path"]
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, ImportError) as error:
        if (Path(source).is_dir() and not _tokenizer_files(source)) or isinstance(
            error, EntryNotFoundError
        ):
            return None
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"the tokenizer of {source} cannot be loaded ({reason})") from None
    return tokenizer if has_words(tokenizer) else None


def _given(tokenizer: Any) -> Any:
    """Return a given tokenizer, None for one without words; raise ModelError for anything else."""
    if tokenizer is None:
        return None
    if not callable(tokenizer):
        raise ModelError(
            f"tokenizer={tokenizer!r:.80} given; a tokenizer is needed"
            " (AutoTokenizer.from_pretrained)"
        )
    return tokenizer if not hasattr(tokenizer, "get_vocab") or has_words(tokenizer) else None


def _tokenizer_files(folder: str) -> list[Path]:
    return [path for pattern in _TOKENIZERS for path in Path(folder).glob(pattern)]


def has_words(tokenizer: Any) -> bool:
    """Tell whether a tokenizer has more than special tokens; transformers makes empty ones."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    return bool({*tokenizer.get_vocab()} - special)
