"""A model of its configuration alone: modules without weights, for plans and lists of places.

Its tensors are on torch's `meta` device: they have shapes and no numbers. Where code asks for a
number of such a tensor (is the mask all ones? are two results near?), it is answered as if all were
0 and all were equal. So nothing is proven of it, and nothing that it computes can be read.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, wraps
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from interp.activations import ForwardPass
from interp.errors import ModelError
from interp.files.tensors import most_common_dtype
from interp.models import passes
from interp.models.bridge.routing import holds_experts
from interp.models.classes import class_of
from interp.models.dtypes import DTYPES, name_of
from interp.models.headers import Headers, headers_of
from interp.models.loading import why_not_loaded
from interp.models.locating import ADAPTER, GGUF, locate
from interp.models.model import Model
from interp.models.tokenizers import load_tokenizer
from interp.replay import Recording, Work
from interp.sites import Site
from interp.tasks.batch import TokenBatch, as_prompts

_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_EACH_LAYER = ("layer_types", "layers_block_type", "hybrid_override_pattern")
_BESIDES = 0.02  # of its numbers that a checkpoint may hold more or less: buffers, padding
_META = torch.device("meta")
_aten = torch.ops.aten


class NoNumbers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which tensors without numbers answer as zeros would."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, or answer for a tensor on the meta device what needs its numbers."""
        given = args[0] if args and isinstance(args[0], Tensor) and args[0].is_meta else None
        if given is not None:
            if func is _aten._local_scalar_dense.default:
                return given.new_zeros((), device="cpu").item()
            if func is _aten.nonzero.default:
                return given.new_empty((0, given.ndim), dtype=torch.long)
            if func is _aten.equal.default:
                return True
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Sizes:
    """Numbers that a model's weights are: of all blocks, of those a token uses, of all else.

    Where experts are mixed, a token uses some of them. `dtype` is the type they are stored in.
    """

    blocks: int
    used: int
    others: int
    dtype: str

    @property
    def in_all(self) -> int:
        """Return the number of weights."""
        return self.blocks + self.others


class WeightlessModel(Model):
    """A model without weights; prompts are on the CPU, so that tokens can be read."""

    sizes: Sizes

    @property
    def fingerprint(self) -> str:
        """Return a hash of name and configuration: there is nothing else."""
        about = json.dumps(self.module.config.to_dict(), sort_keys=True, default=str)
        return hashlib.blake2b(f"{self.name} {about}".encode(), digest_size=16).hexdigest()

    def tokenize(
        self, prompts: Any, *, answers: bool = False, corrupted: bool = False
    ) -> TokenBatch:
        """Return token ids, as `Model.tokenize` does, on the CPU."""
        cpu = torch.device("cpu")
        return self._reader.tokenize(prompts, answers=answers, corrupted=corrupted, device=cpu)

    def forward(self, batch: Any, **how: Any) -> ForwardPass:
        """Return logits and activations that have shapes alone."""
        asked = batch if isinstance(batch, TokenBatch) else self.tokenize(as_prompts(batch))
        return super().forward(_on_meta(asked), **how)

    def record(self, batch: TokenBatch, *, work: Work | None = None) -> Recording:
        """Return a recording whose activations have shapes alone."""
        return super().record(_on_meta(batch), work=work)

    def refuse(self, site: Site, *, is_edited: bool = False) -> None:
        """Raise SiteError for a place that does not exist; whether edits arrive is not tried."""
        with self.running:
            passes.refuse_site(self, site, is_edited=False)


def _on_meta(batch: TokenBatch) -> TokenBatch:
    return replace(batch, tokens=batch.tokens.to(_META), mask=batch.mask)


def without_weights(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    make_tokenizer: Callable[[int], Any] | None = None,
) -> WeightlessModel:
    """Return a model of its configuration, in `dtype` or, for "auto", the type it is stored in.

    `name` is as for `load_model`; a folder needs no more than config.json. Headers of weight files
    are read where there are any, and must agree. `make_tokenizer` makes one from the size of the
    vocabulary, where there is none. To be called, and the model used, inside `NoNumbers()`. Raises
    ModelError for configurations of no known causal language model, or without a number of layers,
    for headers that cannot be read or that contradict it, and for what has no such files: GGUF
    files, adapters, quantised weights.
    """
    source = locate(name, needs_weights=False)
    how: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    config = _config_of(source, revision, **how)
    headers = headers_of(source, revision)
    stored = _stored(config, headers)
    module = _module_of(source, config, DTYPES[stored if dtype == "auto" else dtype], **how)
    _refuse_other_sizes(source, module, headers)
    another = partial(without_weights, dtype=dtype, make_tokenizer=make_tokenizer, **how)
    tokenizer = _tokenizer_of(source, revision, **how)
    if tokenizer is None and make_tokenizer is not None:
        tokenizer = make_tokenizer(int(module.config.get_text_config().vocab_size))
    mixtures = [_Mixture(each) for each in module.modules() if holds_experts(each)]
    model = WeightlessModel(name, module, tokenizer, None, another, checkpoint=stored)
    model.sizes = _sizes_of(model, stored, mixtures)
    return model


def _config_of(source: str, revision: str | None, **how: Any) -> Any:
    """Return a checkpoint's configuration; raise ModelError as `without_weights`."""
    if source.endswith(GGUF) or (Path(source) / ADAPTER).is_file():
        what = "a GGUF file" if source.endswith(GGUF) else "an adapter"
        raise ModelError(f"{source} is {what}; only loading it says what it holds")
    try:
        given, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
        if not how["trust_remote_code"] and "auto_map" not in given:
            _refuse_unknown(source, given)
        config = AutoConfig.from_pretrained(source, revision=revision, **how)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise why_not_loaded(source, error, is_code_trusted=how["trust_remote_code"]) from None
    own_name = type(config).attribute_map.get("num_hidden_layers", "num_hidden_layers")
    if not _has_key(given, (*_LAYERS, *_EACH_LAYER, own_name)):
        raise ModelError(f"{source}: config.json names no number of layers ({own_name})")
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"{source} has quantised weights; only loading it says what they take")
    return config


def _refuse_unknown(source: str, given: dict[str, Any]) -> None:
    if (kind := given.get("model_type")) not in CONFIG_MAPPING:
        named = "names no model_type" if kind is None else f"has model_type {kind!r}"
        raise ModelError(f"{source}: config.json {named}, which is unknown to transformers")


def _has_key(given: object, keys: tuple[str, ...]) -> bool:
    """Tell whether a configuration, or one inside it, has a value for one of these keys."""
    if not isinstance(given, dict):
        return False
    return any(given.get(key) is not None for key in keys) or any(
        _has_key(each, keys) for each in given.values()
    )


def _stored(config: Any, headers: Headers) -> str:
    """Return the type that weights are stored in: the configuration's, else that of most of them.

    A checkpoint that says neither is float32.
    """
    if config.dtype is not None:
        return name_of(config.dtype)
    most = name_of(most_common_dtype(headers.tensors.values()) or torch.float32)
    return most if most in DTYPES else "float32"


def _module_of(source: str, config: Any, dtype: torch.dtype, **how: Any) -> PreTrainedModel:
    """Return a configuration's module on the meta device."""
    try:
        with _META:
            module = class_of(config).from_config(config, dtype=dtype, **how)
    except (AttributeError, ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        why = f"config.json is of no causal language model ({first})"
        raise ModelError(f"{source}: {why}") from None
    made: PreTrainedModel = module.eval().requires_grad_(False)
    return made


def _refuse_other_sizes(source: str, module: PreTrainedModel, headers: Headers) -> None:
    """Raise ModelError where headers and the configuration contradict each other."""
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    front = f"{module.base_model_prefix}."
    for name, tensor in headers.tensors.items():
        shape = own.get(name, own.get(front + name, tensor.shape))
        if shape != tensor.shape:
            raise ModelError(
                f"{source}: {name} has size {tensor.shape}; config.json makes it {shape}"
            )
    if headers.is_whole:
        held = sum(tensor.numel for tensor in headers.tensors.values())
        unique = sum(parameter.numel() for parameter in module.parameters())
        most = sum(prod(shape) for shape in own.values())  # with tied weights, each by its name
        if not (1 - _BESIDES) * unique <= held <= (1 + _BESIDES) * most:
            raise ModelError(
                f"{source}: the weight files hold {held / 1e6:.1f} million numbers;"
                f" config.json makes it {unique / 1e6:.1f}"
            )


def _tokenizer_of(source: str, revision: str | None, **how: Any) -> Any:
    """Return a checkpoint's tokenizer, None where there is none on this machine."""
    try:
        return load_tokenizer(source, revision=revision, **how)
    except ModelError:
        if Path(source).is_dir():
            raise
        return None


class _Mixture:
    """Experts that mix nothing, and remember how many of them each token is sent to."""

    def __init__(self, experts: nn.Module) -> None:
        self.experts, self.n_chosen = experts, int(experts.num_experts)  # type: ignore[arg-type]

        @wraps(experts.forward)
        def mixed(hidden: Tensor, chosen: Tensor, _weights: Tensor) -> Tensor:
            self.n_chosen = chosen.shape[-1]
            return torch.empty_like(hidden)

        experts.forward = mixed

    @property
    def n_unused(self) -> float:
        """Return how many numbers a token does not use."""
        n: int = self.experts.num_experts  # type: ignore[assignment]
        own = [p.numel() for p in self.experts.parameters(recurse=False) if len(p) == n]
        return sum(own) * (1 - self.n_chosen / n)


def _sizes_of(model: Model, stored: str, mixtures: Sequence[_Mixture]) -> Sizes:
    inside = {
        id(parameter): parameter.numel()
        for block in model.blocks
        for parameter in block.module.parameters()
    }
    blocks = sum(inside.values())
    others = sum(p.numel() for p in model.module.parameters() if id(p) not in inside)
    used = blocks - round(sum(each.n_unused for each in mixtures))
    return Sizes(blocks, used, others, stored)
