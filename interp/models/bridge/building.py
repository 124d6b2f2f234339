"""TransformerLens's view of a model: where its modules are, and a bridge over the same weights."""

import copy
import logging
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from interp.errors import ModelError
from interp.models.finding import find_paths
from interp.models.paths import BlockPaths, ModulePaths, architecture


def module_paths(model: PreTrainedModel) -> ModulePaths:
    """Return where a family's modules are: as TransformerLens says, or as one pass shows.

    The second is for families that TransformerLens does not know, or names no blocks of, and for
    when it is missing or fails. Raises ModelError where the pass shows none either.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(
            f"family {architecture(model)!r} is an encoder with a decoder;"
            " a decoder alone is needed"
        )
    try:
        with _quietly():
            return _named_paths(model)
    except Exception as error:  # another version of it may raise anything
        return find_paths(model, _why_unknown(error))


def _why_unknown(error: Exception) -> str:
    """Return why TransformerLens does not name a family's modules, whatever it raised."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("transformer_lens"):
        return "TransformerLens is not installed"
    try:
        which = f"TransformerLens {version('transformer-lens')}"
    except PackageNotFoundError:
        which = "this TransformerLens"
    if "nsupported architecture" in str(error):
        return f"{which} does not know this family"
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{which} cannot name its modules ({said.partition('. ')[0]})"


def _named_paths(model: PreTrainedModel) -> ModulePaths:
    """Return where TransformerLens's adapter for this family says the modules are."""
    from transformer_lens.model_bridge.generalized_components import ParallelBlockBridge

    parts = _components(model)
    if lacking := [part for part in ("blocks", "ln_final", "unembed") if part not in parts]:
        raise ValueError(f"it names no {' and no '.join(lacking)}")
    inside = parts["blocks"].submodules or {}
    attn, mlp = inside.get("attn"), inside.get("mlp")
    of_block = BlockPaths(
        attn=None if attn is None else attn.name,
        attn_post=inside["ln1_post"].name if "ln1_post" in inside else None,
        mlp=None if mlp is None else mlp.name,
        mlp_post=inside["ln2_post"].name if "ln2_post" in inside else None,
        z_reader=None if attn is None else _inner(attn, "o"),
        mlp_post_reader=None if mlp is None else _inner(mlp, "out"),
        is_parallel=isinstance(parts["blocks"], ParallelBlockBridge),
        has_mlp=mlp is not None,
        others=tuple(part.name for key, part in inside.items() if is_other_part(key) and part.name),
    )
    return ModulePaths(
        blocks=parts["blocks"].name,
        ln_final=parts["ln_final"].name,
        unembed=parts["unembed"].name,
        of_block=of_block,
    )


def is_other_part(key: str) -> bool:
    """Tell whether TransformerLens's name of a block's part is not attention, MLP or a norm."""
    return key not in ("attn", "mlp") and not key.startswith(("ln", "norm"))


def _components(model: PreTrainedModel) -> dict[str, Any]:
    """Return the adapter's components by name; raise ValueError for a family without an adapter."""
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.sources import build_bridge_config_from_hf

    name = architecture(model)
    config = build_bridge_config_from_hf(model.config, name, "external", model.dtype)
    adapter = ArchitectureAdapterFactory.select_architecture_adapter(config)
    return adapter.component_mapping or {}


def _inner(component: Any, part: str) -> str | None:
    submodule = (component.submodules or {}).get(part)
    return (
        None
        if submodule is None
        else ".".join(name for name in (component.name, submodule.name) if name)
    )


def build_bridge(model: PreTrainedModel, *, tokenizer: Any = None) -> Any:
    """Return a TransformerBridge over a copy of the model that shares parameters and buffers."""
    with _quietly():
        from transformer_lens.model_bridge.sources import build_bridge_from_module

        twin = eager_twin(model)  # other kernels do not return their pattern
        bridge = build_bridge_from_module(
            twin, architecture(model), hf_config=copy.deepcopy(model.config), tokenizer=tokenizer
        )
    return bridge.eval()


def eager_twin(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy that shares parameters and buffers and computes attention step by step."""
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    twin: PreTrainedModel = copy.deepcopy(model, memo=shared)
    for module in twin.modules():
        for hooks in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        ):
            hooks.clear()  # the owner's; they are called in the stock pass
        if hasattr(module, "config"):
            module.config._attn_implementation = "eager"
    return twin


def stock_model(bridge: Any) -> PreTrainedModel:
    """Return a Hugging Face model that shares the bridge's weights; the bridge is left as it is."""
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

    def unwrapped(module: nn.Module) -> nn.Module:
        for name, child in module.named_children():
            setattr(module, name, unwrapped(child))
        if isinstance(module, GeneralizedComponent):
            inner: nn.Module | None = module.original_component
            return module if inner is None else inner
        return module

    original = bridge.original_model
    shared = {id(tensor): tensor for tensor in [*original.parameters(), *original.buffers()]}
    model = unwrapped(copy.deepcopy(original, memo=shared))
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"a bridge of a {type(model).__name__} given; one of a transformers model is needed"
        )
    return model


class _quietly(warnings.catch_warnings):
    """Keep TransformerLens's import from silencing loggers and adding warning filters globally."""

    def __enter__(self) -> None:
        super().__enter__()
        self._level = logging.getLogger("transformers").level
        warnings.simplefilter("ignore")

    def __exit__(self, *exc: object) -> None:
        logging.getLogger("transformers").setLevel(self._level)
        super().__exit__(*exc)  # type: ignore[arg-type]
