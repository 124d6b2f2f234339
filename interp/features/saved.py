"""Dictionaries on disk, in SAELens's format: a folder with cfg.json and sae_weights.safetensors.

Both layouts of cfg.json are read: that of SAELens 6, with the site and the model under "metadata",
and the flat one before it. What would make features mean something else is refused.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp.errors import AnalysisError, SiteError, unknown
from interp.features.dictionary import Activation, Dictionary
from interp.files.paths import shipped_dictionaries
from interp.sites import BLOCK_KINDS, Site

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_ARCHITECTURES: dict[str, Activation] = {
    "standard": "relu",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
}
_PROCESSED = ("fold_ln", "center_writing_weights")
_SAME_PLACE = {"hook_mlp_in": "hook_resid_mid"}  # the stream before the MLP's norm


def load_dictionary(path: str | Path) -> Dictionary:
    """Return the dictionary of a folder, or a shipped one ("names-6l/resid_pre.3"), in fp32.

    Raises AnalysisError, with the reason in one line, for files that are missing, damaged or do not
    fit together, and for dictionaries whose features would not be what they were trained to be:
    other architectures, normalised activations, models with folded or centred weights.
    """
    folder = shipped_dictionaries().get(str(path), Path(path))
    config = _config(folder, str(path))
    tensors = _tensors(folder, config, str(path))
    activation = _activation(config)
    b_enc, w_dec, b_dec = tensors["b_enc"], tensors["W_dec"], tensors["b_dec"]
    w_enc = tensors["W_enc"]
    if activation == "topk" and config.get("rescale_acts_by_decoder_norm"):
        norms = w_dec.norm(dim=1)
        w_enc, b_enc, w_dec = w_enc * norms, b_enc * norms, w_dec / norms[:, None]
    reads, writes = (Site.named(config[key]) for key in ("hook_name", "hook_name_out"))
    if config.get("apply_b_dec_to_input") and reads == writes:
        b_enc = b_enc - b_dec @ w_enc
    k = config.get("k") if activation == "topk" else None
    weights = (w_enc, b_enc, w_dec, b_dec)
    return Dictionary(str(path), reads, writes, *weights, activation, tensors.get("threshold"), k)


def save_dictionary(dictionary: Dictionary, folder: Path, *, model: str) -> None:
    """Write a dictionary in SAELens's format, its weights in float16; `model` is its model's name.

    Raises AnalysisError for a transcoder, which that format has no one layout for.
    """
    if dictionary.reads != dictionary.writes:
        raise AnalysisError(f"{dictionary!r} is a transcoder; only autoencoders are written")
    tensors = {
        "W_enc": dictionary.w_enc,
        "b_enc": dictionary.b_enc,
        "W_dec": dictionary.w_dec,
        "b_dec": dictionary.b_dec,
    }
    if dictionary.threshold is not None:
        tensors["threshold"] = dictionary.threshold
    names = {of: name for name, of in reversed(_ARCHITECTURES.items())}
    config = {
        "architecture": names[dictionary.activation],
        "d_in": len(dictionary.w_enc),
        "d_sae": dictionary.n_features,
        "dtype": "float16",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "metadata": {"model_name": model, "hook_name": str(dictionary.reads)},
    } | ({"k": dictionary.k} if dictionary.k else {})
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in tensors.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def _config(folder: Path, name: str) -> dict[str, Any]:
    """Return what cfg.json says, flat; raise AnalysisError for what cannot be honoured."""
    if not folder.is_dir():
        shipped = unknown("dictionary", name, shipped_dictionaries())
        raise AnalysisError(f"{shipped}, or a folder with {CONFIG} and {WEIGHTS}")
    try:
        given = json.loads((folder / CONFIG).read_text())
        config = {**given.get("metadata", given.get("meta", {})), **given}
    except (OSError, ValueError, AttributeError, TypeError):
        raise AnalysisError(f"dictionary {name} has no {CONFIG} that can be read") from None
    if why := _refusal(config):
        raise AnalysisError(f"dictionary {name} {why}")
    config.setdefault("hook_name_out", config["hook_name"])
    config["hook_name_out"] = config["hook_name_out"] or config["hook_name"]
    for key in ("hook_name", "hook_name_out"):
        config[key] = _site_name(config[key], name)
    return config


def _refusal(config: Mapping[str, Any]) -> str:
    """Return why a dictionary cannot be used; "" if it can."""
    known = f"there is {', '.join(_ARCHITECTURES)}"
    if (architecture := config.get("architecture", "standard")) not in _ARCHITECTURES:
        return f"has architecture {architecture!r}; {known}"
    if (function := config.get("activation_fn_str", "relu")) not in ("relu", "topk"):
        return f"has activation {function!r}; there is relu and topk"
    if (how := config.get("normalize_activations") or "none") != "none":
        return f"was trained on activations normalised by {how!r}; only 'none' can be honoured"
    processed = config.get("model_from_pretrained_kwargs") or {}
    if folded := [key for key in _PROCESSED if processed.get(key)]:
        return f"was trained on a model with {folded[0]}=True; weights are used as they are here"
    if config.get("finetuning_scaling_factor"):
        return "has a finetuning_scaling_factor, which is not applied here"
    if (head := config.get("hook_head_index")) is not None:
        return f"is of head {head} alone; whole sites can be read"
    if not config.get("hook_name"):
        return f"names no hook_name in {CONFIG}"
    return ""


def _site_name(hook: str, name: str) -> str:
    block, _, rest = hook.rpartition(".")
    hook = f"{block}.{_SAME_PLACE.get(rest, rest)}"
    there = ", ".join(str(Site(kind, 0)) for kind in BLOCK_KINDS)
    try:
        if Site.named(hook).kind in BLOCK_KINDS:
            return hook
    except SiteError:
        pass
    raise AnalysisError(f"dictionary {name} is of {hook!r}; there is {there} and so on")


def _activation(config: Mapping[str, Any]) -> Activation:
    if config.get("activation_fn_str") == "topk":
        return "topk"
    return _ARCHITECTURES[config.get("architecture", "standard")]


def _tensors(folder: Path, config: dict[str, Any], name: str) -> dict[str, Tensor]:
    """Return the weights in fp32; raise AnalysisError where they are not what cfg.json says."""
    try:
        tensors = {key: each.float() for key, each in load_file(folder / WEIGHTS).items()}
    except (OSError, SafetensorError):
        raise AnalysisError(
            f"dictionary {name} has no {WEIGHTS} that can be read; it is missing or cut short"
        ) from None
    d_in, n = config.get("d_in"), int(config.get("d_sae") or 0)
    d_out = config.get("d_out") or d_in
    shapes = {"W_enc": (d_in, n), "b_enc": (n,), "W_dec": (n, d_out), "b_dec": (d_out,)}
    activation = _activation(config)
    if activation == "jumprelu":
        shapes["threshold"] = (n,)
    for key, shape in shapes.items():
        there = tuple(tensors[key].shape) if key in tensors else "missing"
        if there != shape:
            raise AnalysisError(f"dictionary {name}: {key} is {there}; {CONFIG} makes it {shape}")
        if not bool(torch.isfinite(tensors[key]).all()):
            raise AnalysisError(f"dictionary {name}: {key} has NaN or infinite weights")
    if activation == "topk":
        config["k"] = config.get("k") or (config.get("activation_fn_kwargs") or {}).get("k")
        if not isinstance(config["k"], int) or not 1 <= config["k"] <= n:
            raise AnalysisError(f"dictionary {name} has k={config['k']}; 1 to {n} is needed")
    return {key: tensors[key] for key in shapes}
