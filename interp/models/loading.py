"""From a name to a model: shipped, in a local folder, from the Hugging Face hub, or already in memory."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from interp.errors import ModelError, unknown
from interp.models.model import Model
from interp.paths import shipped_models

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    name: str | Path | PreTrainedModel,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    store: str | Path | None = None,
) -> Model:
    """Return a model ready to be recorded.

    `name` is a shipped model ("zoo/hops-4l"), a local folder, a Hugging Face id, or a transformers module. `revision` is a
    branch or commit of the hub, or a shipped model's seed or checkpoint ("step-0400"; also "zoo/hops-8l@step-0400"). `dtype`
    "auto" is the checkpoint's. With `store`, clean activations are kept in that folder and read from it. Raises ModelError
    when there is no such model, weights are missing or not finite.
    """
    if isinstance(name, PreTrainedModel):
        return Model(name.config.name_or_path or type(name).__name__, name, store_folder=_folder(store))
    if dtype != "auto" and dtype not in _DTYPES:
        raise ModelError(unknown("dtype", dtype, ["auto", *_DTYPES]))
    if revision is not None and str(name) in shipped_models():
        name, revision = f"{name}@{revision}", None
    source = locate(str(name))
    module = _load(source, revision=revision, dtype=dtype)
    module.to(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    except (OSError, ValueError):
        raise ModelError(f"{source} has no tokenizer") from None
    return Model(str(name), module, tokenizer, _folder(store))


def _folder(path: str | Path | None) -> Path | str | None:
    return path if path is None or "://" in str(path) else Path(path)


def locate(name: str) -> str:
    """Return the folder or hub id behind a name; raise ModelError for a shipped name or folder that cannot be one."""
    shipped = shipped_models()
    if name in shipped:
        return str(shipped[name])
    if name.startswith("zoo/"):
        raise ModelError(unknown("model", name, shipped))
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"folder {name} has no config.json; a Hugging Face model folder is needed")
        if not [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
            raise ModelError(f"folder {name} has no weights; there is {', '.join(sorted(p.name for p in folder.iterdir()))}")
    return name


def _load(source: str, *, revision: str | None, dtype: str) -> PreTrainedModel:
    try:
        module, info = AutoModelForCausalLM.from_pretrained(
            source, revision=revision, dtype=_DTYPES.get(dtype, "auto"), output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"model {source!r} cannot be loaded ({reason}); {unknown('model', source, shipped_models())}"
        ) from None
    _refuse_incomplete(source, module, info)
    loaded: PreTrainedModel = module
    return loaded


def _refuse_incomplete(source: str, module: PreTrainedModel, info: dict[str, Any]) -> None:
    if info["missing_keys"]:
        raise ModelError(f"{source} lacks {len(info['missing_keys'])} weights (first: {sorted(info['missing_keys'])[0]})")
    for name, parameter in module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ModelError(f"{source}: {name} has NaN or infinite weights")
