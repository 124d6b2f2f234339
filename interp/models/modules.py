"""A model's modules, found by TransformerLens's names, and proven to be all that it does."""

import inspect
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from interp.errors import ModelError
from interp.models.bridge.building import module_paths
from interp.models.bridge.routing import find_experts
from interp.models.finding import two_ids, two_tokens
from interp.models.mixers import ATTENTION, mixers_of
from interp.models.paths import BlockPaths, ModulePaths, architecture
from interp.models.rounding import is_near, is_sum
from interp.replay import Arguments, Block, Recording, dry_pass
from interp.replay.blocks import Signature, Unnamed
from interp.sites import Site

_CACHES = ("past_key_values", "layer_past", "past_key_value", "cache_params")
_CAPS = ("final_logit_softcapping", "logits_soft_cap")
Seen = dict[nn.Module, Any]  # what each module returned


class Modules:
    """The decoder blocks of a stock module, its final norm and its unembedding."""

    def __init__(self, stock: PreTrainedModel) -> None:
        paths = module_paths(stock)
        self.stock = stock
        self.config = stock.config.get_text_config()
        self.ln_final = stock.get_submodule(paths.ln_final)
        self.w_u = stock.get_submodule(paths.unembed)
        self.others = paths.of_block.others
        self.last_read: Tensor | None = None  # by the final norm, of two tokens
        self.two_logits: Tensor | None = None
        self.why_own = paths.why_own
        self.blocks = self._find_blocks(paths)

    @property
    def d_vocab(self) -> int:
        """Return the number of logits; the shape of quantised weights does not say it."""
        n = getattr(self.w_u, "out_features", None)
        return int(self.w_u.get_parameter("weight").shape[0] if n is None else n)

    def unembed(self, resid: Tensor) -> Tensor:
        """Return logits [... d_vocab] of residuals: final norm, W_U, scale and soft-cap."""
        read, weight = self.ln_final(resid), getattr(self.w_u, "weight", None)
        if isinstance(weight, Tensor) and weight.is_floating_point():  # the stream may be in fp32
            read = read.to(weight.dtype)
        logits: Tensor = self.w_u(read)
        scale = getattr(self.config, "logit_scale", None) or 1.0
        scale = scale * getattr(self.config, "lm_head_multiplier", 1.0)
        if scale != 1.0:  # else as many numbers as there are logits would be written for nothing
            logits = logits * scale
        if (divisor := getattr(self.config, "logits_scaling", 1.0)) != 1.0:
            logits = logits / divisor
        cap = next(filter(None, (getattr(self.config, name, None) for name in _CAPS)), None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def dry(
        self, tokens: Tensor, mask: Tensor | None, *, start: int
    ) -> tuple[Tensor, list[Arguments]]:
        """Return the embedding and every block's arguments from `start` on; runs no block."""
        cache = None
        if start:
            cache = DynamicCache()
            for layer in range(len(self.blocks)):
                nothing = torch.zeros(tokens.shape[0], 1, start, 1, device=self.stock.device)
                cache.update(nothing, nothing, layer)
        return dry_pass(
            self.blocks,
            lambda: self.stock(
                input_ids=tokens[:, start:],
                attention_mask=mask,
                past_key_values=cache,
                use_cache=cache is not None,
            ),
        )

    def two_tokens(self) -> Tensor:
        """Return two tokens [1 2] that are not padding, about which transformers would warn."""
        return two_tokens(self.stock)

    def two_ids(self) -> list[list[int]]:
        """Return the ids of two such tokens, as one row."""
        return two_ids(self.stock)

    def run_two_tokens(self) -> Tensor:
        """Return the stock model's logits of two tokens."""
        tokens = self.two_tokens()
        logits: Tensor = self.stock(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False
        ).logits
        return logits

    def see_as_whole(self, layer: int) -> None:
        """Forget the parts of a block that does more than adding attention and MLP.

        Raises ModelError unless it has further parts, or others than all layers of its family, or
        is of a family that TransformerLens does not know.
        """
        block, family = self.blocks[layer], type(self.stock).__name__
        does = "does more to the residual stream than adding attention and MLP"
        own = [name for name, _ in [*block.module.named_buffers(recurse=False)]]
        more = [*filter(partial(_if_there, block.module), self.others), *own]
        is_plain = not self.why_own and all(each.mixer == ATTENTION for each in self.blocks)
        if not more and is_plain:
            raise ModelError(f"block {layer} of {family} {does}; it cannot be taken apart")
        why = f"its block {does}" + (f" ({', '.join(more)})" if more else "")
        blocks = [*self.blocks]
        blocks[layer] = block.as_whole(why)
        self.blocks = tuple(blocks)

    @torch.no_grad()
    def _find_blocks(self, paths: ModulePaths) -> tuple[Block, ...]:
        """Find every block's modules and see, on two tokens, what they return."""
        named = dict(self.stock.get_submodule(paths.blocks).named_children())
        modules = list(named.values())
        returned: Seen = {}

        def see(module: nn.Module, _args: object, output: Any) -> None:
            returned[module] = output

        inside = [each for module in modules for each in module.modules()]

        def see_last(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.last_read = args[0] if args else next(iter(kwargs.values()))

        handles = [module.register_forward_hook(see) for module in inside]
        handles += [self.ln_final.register_forward_pre_hook(see_last, with_kwargs=True)]
        try:
            self.two_logits = self.run_two_tokens()
        finally:
            for handle in handles:
                handle.remove()
        mixers = mixers_of(self.config, n_layers=len(modules))
        if not paths.why_own and ({*mixers} == {ATTENTION} or not paths.of_block.others):
            self._refuse_without(paths.of_block)
        return tuple(
            _block(
                f"{paths.blocks}.{name}", module, paths.of_block, self.config, returned, mixer=mixer
            )
            for (name, module), mixer in zip(named.items(), mixers, strict=True)
        )

    def _refuse_without(self, paths: BlockPaths) -> None:
        """Raise ModelError for a family whose attention or MLP has no name."""
        parts = (("attn", paths.attn is not None), ("mlp", paths.has_mlp))
        if lacking := [part for part, is_there in parts if not is_there]:
            raise ModelError(
                f"family {architecture(self.stock)!r} has no {' and no '.join(lacking)}"
                " in its blocks"
            )


def _block(
    name: str, module: nn.Module, paths: BlockPaths, config: Any, returned: Seen, *, mixer: str
) -> Block:
    if hasattr(module, "_orig_mod"):
        raise ModelError(
            "blocks compiled by torch.compile(block) given;"
            " compile in place (block.compile()) or not at all"
        )
    call = Signature.of(module, returned[module])
    nothing = Unnamed("")
    block = Block(
        name=name,
        module=module,
        attn=nothing,
        attn_write=nothing,
        mlp_write=nothing,
        z_reader=None,
        mlp_post_reader=None,
        experts=None,
        n_heads=int(getattr(config, "num_attention_heads", 0)),
        is_parallel=paths.is_parallel,
        call=call,
        attn_call=call,
        cache_parameter=_cache_parameter(module, call.parameters),
        write_scale=float(getattr(config, "residual_multiplier", None) or 1.0),
        mixer=mixer,
    )
    if (why := _why_whole(module, paths, mixer)) is not None:
        return block.as_whole(why)
    attn = module.get_submodule(own := _mixers(module, paths, mixer)[0])
    ends = (paths.attn_post, paths.mlp_post, paths.z_reader, paths.mlp_post_reader)
    attn_post, mlp_post, reader, mlp_reader = (_if_there(module, path) for path in ends)
    return replace(
        block,
        attn=attn,
        attn_write=_writer(module, own, attn_post, reader),
        mlp_write=_writer(module, paths.mlp, mlp_post, mlp_reader),
        z_reader=None if reader is None else module.get_submodule(reader),
        mlp_post_reader=None if mlp_reader is None else module.get_submodule(mlp_reader),
        experts=None if paths.mlp is None else find_experts(module.get_submodule(paths.mlp)),
        attn_call=Signature.of(attn, returned[attn]),
    )


def _mixers(block: nn.Module, paths: BlockPaths, mixer: str) -> list[str]:
    """Return the paths of the modules that mix a block's positions."""
    names = [paths.attn] if mixer == ATTENTION else [paths.attn, *paths.others]
    return [name for name in names if _if_there(block, name) is not None]  # type: ignore[misc]


def _why_whole(block: nn.Module, paths: BlockPaths, mixer: str) -> str | None:
    """Return why a block's parts have no names here; None if they have."""
    own = _mixers(block, paths, mixer)
    if len(own) == 1 and paths.has_mlp:
        return None
    held = ", ".join(name for name, _ in block.named_children())
    return f"a block of {held} is not one mixer of positions and one MLP"


def _if_there(block: nn.Module, path: str | None) -> str | None:
    """Return a path if a block has such a module; layers of one family differ."""
    if path is None:
        return None
    try:
        block.get_submodule(path)
    except AttributeError:
        return None
    return path


def _cache_parameter(block: nn.Module, parameters: tuple[str, ...]) -> str:
    for name in _CACHES:
        if name in parameters:
            return name
    raise ModelError(
        f"{type(block).__name__} has no parameter for a cache: {', '.join(parameters)}"
    )


def _writer(
    block: nn.Module, sublayer: str | None, post: str | None, last: str | None
) -> nn.Module:
    """Return the module whose output is added to the stream."""
    if post is not None:
        return block.get_submodule(post)
    if sublayer is not None:
        module = block.get_submodule(sublayer)
        if "residual" not in inspect.signature(module.forward).parameters or last is None:
            return module
    if last is None:
        raise ModelError(f"{type(block).__name__} has no module that returns what its MLP writes")
    return block.get_submodule(last)


@torch.no_grad()
def prove(modules: Modules, recording: Recording) -> None:
    """Raise ModelError unless blocks add attention and MLP to the stream, and logits are as read.

    `recording` is one of two tokens.
    """
    family, depth = type(modules.stock).__name__, len(modules.blocks)
    for layer, block in enumerate(modules.blocks):
        if block.why_whole:
            continue
        writes = [recording.clean(Site(kind, layer)) for kind in ("attn_out", "mlp_out")]
        if not is_sum(recording.resid(layer + 1), recording.resid(layer), *writes):
            modules.see_as_whole(layer)
    last, logits = modules.last_read, modules.two_logits
    modules.last_read = modules.two_logits = None
    ours = recording.resid(depth)
    if last is None or not is_near(ours, last.reshape(ours.shape), depth=depth):
        raise ModelError(
            f"{family} does more than run its blocks one after the other; it cannot be taken apart"
        )
    if logits is None or not is_near(modules.unembed(last.reshape(ours.shape)), logits):
        raise ModelError(f"{family} does something to its logits that this library does not know")


def n_kv_heads(recording: Recording) -> int:
    """Return the K/V heads of the first layer that keeps keys and values; 0 if none does."""
    layer = next((i for i, block in enumerate(recording.blocks) if block.has_kv), None)
    return 0 if layer is None else int(recording.kv(layer)[0].shape[1])
