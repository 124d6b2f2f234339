"""A model's modules, found by TransformerLens's names, and proven to be all that it does."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from interp.errors import ModelError
from interp.models.bridge.building import ModulePaths, module_paths
from interp.models.bridge.routing import find_experts
from interp.models.rounding import is_near, is_sum
from interp.replay import Arguments, Block, Recording, dry_pass
from interp.replay.blocks import Signature
from interp.sites import Site

_CACHES = ("past_key_values", "layer_past", "past_key_value")
Seen = dict[nn.Module, Any]  # what each module returned


class Modules:
    """The decoder blocks of a stock module, its final norm and its unembedding."""

    def __init__(self, stock: PreTrainedModel) -> None:
        paths = module_paths(stock)
        self.stock = stock
        self.config = stock.config.get_text_config()
        self.ln_final = stock.get_submodule(paths.ln_final)
        self.w_u = stock.get_submodule(paths.unembed)
        self.blocks = self._find_blocks(paths)

    def unembed(self, resid: Tensor) -> Tensor:
        """Return logits [... d_vocab] of residuals: final norm, W_U, scale and soft-cap."""
        logits: Tensor = self.w_u(self.ln_final(resid))
        scale = getattr(self.config, "logit_scale", None) or 1.0
        logits = logits * scale / getattr(self.config, "logits_scaling", 1.0)
        cap = getattr(self.config, "final_logit_softcapping", None)
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
        padding = getattr(self.config, "pad_token_id", None)
        return torch.full((1, 2), int(padding == 0), dtype=torch.long, device=self.stock.device)

    def run_two_tokens(self) -> Tensor:
        """Return the stock model's logits of two tokens."""
        tokens = self.two_tokens()
        logits: Tensor = self.stock(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False
        ).logits
        return logits

    @torch.no_grad()
    def _find_blocks(self, paths: ModulePaths) -> tuple[Block, ...]:
        """Find every block's modules and see, on two tokens, what they return."""
        named = dict(self.stock.get_submodule(paths.blocks).named_children())
        modules = list(named.values())
        returned: Seen = {}

        def see(module: nn.Module, _args: object, output: Any) -> None:
            returned[module] = output

        watched = [*modules, *(module.get_submodule(paths.attn) for module in modules)]
        handles = [module.register_forward_hook(see) for module in watched]
        try:
            self.run_two_tokens()
        finally:
            for handle in handles:
                handle.remove()
        return tuple(
            _block(f"{paths.blocks}.{name}", module, paths, self.config, returned)
            for name, module in named.items()
        )


def _block(name: str, module: nn.Module, paths: ModulePaths, config: Any, returned: Seen) -> Block:
    attn = module.get_submodule(paths.attn)
    if hasattr(module, "_orig_mod"):
        raise ModelError(
            "blocks compiled by torch.compile(block) given;"
            " compile in place (block.compile()) or not at all"
        )
    call = Signature.of(module, returned[module])
    return Block(
        name=name,
        module=module,
        attn=attn,
        attn_write=_writer(module, paths.attn, paths.attn_post, paths.z_reader),
        mlp_write=_writer(module, paths.mlp, paths.mlp_post, paths.mlp_post_reader),
        z_reader=_inside(module, paths.z_reader),
        mlp_post_reader=_inside(module, paths.mlp_post_reader),
        experts=None if paths.mlp is None else find_experts(module.get_submodule(paths.mlp)),
        n_heads=int(config.num_attention_heads),
        is_parallel=paths.is_parallel,
        call=call,
        attn_call=Signature.of(attn, returned[attn]),
        cache_parameter=_cache_parameter(module, call.parameters),
        write_scale=float(getattr(config, "residual_multiplier", None) or 1.0),
    )


def _inside(block: nn.Module, path: str | None) -> nn.Module | None:
    return None if path is None else block.get_submodule(path)


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
    for layer in range(depth):
        writes = [recording.clean(Site(kind, layer)) for kind in ("attn_out", "mlp_out")]
        if not is_sum(recording.resid(layer + 1), recording.resid(layer), *writes):
            raise ModelError(
                f"block {layer} of {family} does more to the residual stream than adding attention"
                " and MLP; it cannot be taken apart"
            )
    last: list[Tensor] = []

    def see(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        last.append(args[0] if args else next(iter(kwargs.values())))

    handle = modules.ln_final.register_forward_pre_hook(see, with_kwargs=True)
    try:
        logits = modules.run_two_tokens()
    finally:
        handle.remove()
    ours = recording.resid(depth)
    if not (last and is_near(ours, last[0].reshape(ours.shape), depth=depth)):
        raise ModelError(
            f"{family} does more than run its blocks one after the other; it cannot be taken apart"
        )
    if not is_near(modules.unembed(last[0].reshape(ours.shape)), logits):
        raise ModelError(f"{family} does something to its logits that this library does not know")
