"""A family's modules without TransformerLens: found by what they read and return in one pass.

Nothing goes by a family's name, and nothing found here is believed: what it makes of the blocks is
proven like everything else when a model is loaded.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.errors import ModelError
from interp.models.mixers import ATTENTION, mixers_of
from interp.models.paths import BlockPaths, ModulePaths, architecture

_OF_MIXERS = ("attention_mask", "past_key_values", "past_key_value", "layer_past", "cache_params")


@dataclass(frozen=True)
class _Call:
    """One call of a module: the first tensor that it was given, and the first it returned."""

    module: nn.Module
    read: Tensor | None
    returned: Tensor | None

    def reads(self, tensor: Tensor | None) -> bool:
        """Tell whether the module was given these numbers."""
        return _same(self.read, tensor)


def two_ids(stock: PreTrainedModel) -> list[list[int]]:
    """Return a row of two tokens' ids that are not padding, about which transformers would warn."""
    padding = getattr(stock.config.get_text_config(), "pad_token_id", None)
    return [[int(padding == 0)] * 2]


def two_tokens(stock: PreTrainedModel) -> Tensor:
    """Return two tokens [1 2] that are not padding."""
    return torch.tensor(two_ids(stock), device=stock.device)


@torch.no_grad()
def find_paths(stock: PreTrainedModel, why: str) -> ModulePaths:
    """Return where a family's modules are, from one pass over two tokens.

    `why` says why TransformerLens did not. Raises ModelError where there is no list of blocks, no
    final norm or no unembedding, and for modules without numbers.
    """
    family = f"family {architecture(stock)!r}"
    if stock.device.type == "meta":
        raise ModelError(f"{family} cannot be taken apart without its weights: {why}")
    calls = _calls(stock)
    named = {module: name for name, module in stock.named_modules()}
    blocks = _blocks(stock, calls)
    unembed = stock.get_output_embeddings()
    if blocks is None or unembed is None:
        lacking = "list of its blocks" if blocks is None else "unembedding"
        raise ModelError(f"{family} has no {lacking} that can be seen, and {why}")
    ends = [i for i, call in enumerate(calls) if call.module is blocks[-1]]
    if len(ends) != 1:
        times = f"runs its last block {len(ends)} times in a pass"
        raise ModelError(f"{family} {times}; only stacks that run once can be taken apart")
    last = calls[ends[0]].returned
    if last is None or last.ndim != 3:
        shape = "no tensor" if last is None else f"a tensor of shape {tuple(last.shape)}"
        raise ModelError(f"{family} returns {shape} from its blocks, not [batch pos d_model]")
    ln_final = next((call.module for call in calls[ends[0] :] if call.reads(last)), None)
    if ln_final is None or ln_final is unembed:
        raise ModelError(f"{family} has no final norm that can be seen, and {why}")
    at = [_Parts.of(block, calls) for block in blocks]
    mixers = mixers_of(stock.config.get_text_config(), n_layers=len(at))
    return ModulePaths(
        blocks=named[blocks],
        ln_final=named[ln_final],
        unembed=named[unembed],
        of_block=_common(at, mixers),
        why_own=why,
    )


def _common(parts: "Sequence[_Parts]", mixers: Sequence[str]) -> BlockPaths:
    """Return the names that layers share: those of the first with attention and one MLP."""
    whole = [i for i, each in enumerate(parts) if each.paths.attn and each.paths.has_mlp]
    first = parts[next((i for i in whole if mixers[i] == ATTENTION), (whole or [0])[0])]
    readers = (each.paths.mlp_post_reader for each in parts)
    own = {first.paths.attn, first.paths.mlp, *first.matrices}
    others = dict.fromkeys(name for each in parts for name in each.heavy if name not in own)
    return replace(
        first.paths, mlp_post_reader=next(filter(None, readers), None), others=tuple(others)
    )


@dataclass(frozen=True)
class _Parts:
    """A block's parts, by their names in it; `heavy` are all that hold matrices.

    `matrices` are those of an MLP that the block holds itself.
    """

    paths: BlockPaths
    heavy: tuple[str, ...]
    matrices: tuple[str, ...]

    @classmethod
    def of(cls, block: nn.Module, calls: Sequence[_Call]) -> "_Parts":
        """Return the parts of one block, by what they read and returned."""
        inside = {module: name for name, module in block.named_modules()}
        own = [call for call in calls if call.module in inside]
        children = {*block.children()}
        direct = [call for call in own if call.module in children]
        heavy = [call for call in direct if _has_matrix(call.module)]
        mixers = [call for call in heavy if _mixes(call.module)]
        rest = [call for call in heavy if call not in mixers]
        matrices = rest if all(_is_matrix(call.module) for call in rest) else []
        mixer = mixers[0] if len(mixers) == 1 else None
        mlp = rest[0] if len(rest) == 1 and not matrices else None
        post = _behind(mixer, direct), _behind(rest[-1] if rest else None, direct)
        read = next((call.read for call in own if call.module is block), None)
        before = (mlp or rest[0]).read if rest else None
        normed = next((call.read for call in direct if _same(call.returned, before)), before)
        paths = BlockPaths(
            attn=None if mixer is None else inside[mixer.module],
            attn_post=None if post[0] is None else inside[post[0].module],
            mlp=None if mlp is None else inside[mlp.module],
            mlp_post=None if post[1] is None else inside[post[1].module],
            z_reader=_last_in(mixer, own, inside),
            mlp_post_reader=inside[matrices[-1].module] if matrices else _last_in(mlp, own, inside),
            is_parallel=_same(normed, read),
            has_mlp=mlp is not None or bool(matrices),
        )
        return cls(
            paths,
            heavy=tuple(inside[call.module] for call in heavy),
            matrices=tuple(inside[call.module] for call in matrices),
        )


def _calls(stock: PreTrainedModel) -> list[_Call]:
    """Return every call of a module in a pass over two tokens, in the order in which they end."""
    calls: list[_Call] = []
    given: dict[nn.Module, Tensor | None] = {}

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        given[module] = _first([*args, *kwargs.values()])

    def after(module: nn.Module, _args: Any, returned: Any) -> None:
        several = returned if isinstance(returned, tuple) else (returned,)
        calls.append(_Call(module, given[module], _first(several)))

    handles = [
        handle
        for module in stock.modules()
        for handle in (
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after),
        )
    ]
    tokens = two_tokens(stock)
    try:
        stock(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _blocks(stock: PreTrainedModel, calls: Sequence[_Call]) -> nn.ModuleList | None:
    """Return the list of decoder blocks: of all layers, and all called."""
    n_layers = getattr(stock.config.get_text_config(), "num_hidden_layers", None)
    called = {call.module for call in calls}
    lists = (module for module in stock.modules() if isinstance(module, nn.ModuleList))
    return next((each for each in lists if len(each) == n_layers and called >= {*each}), None)


def _behind(call: _Call | None, direct: Sequence[_Call]) -> _Call | None:
    """Return the last of the norms and scales through which a sublayer's output goes."""
    last = None
    while call is not None and not _adds_itself(call.module):
        light = (
            each for each in direct if each.reads(call.returned) and each.module != call.module
        )
        call = next((each for each in light if _is_norm(each.module)), None)
        last = call or last
    return last


def _last_in(
    call: _Call | None, calls: Sequence[_Call], inside: dict[nn.Module, str]
) -> str | None:
    """Return the matrix in a sublayer that returns what the sublayer does, if there is one."""
    if call is None:
        return None
    leaves = [
        each.module
        for each in calls
        if each.module in {*call.module.modules()} - {call.module}
        and _is_matrix(each.module)
        and (_same(each.returned, call.returned) or _adds_itself(call.module))
    ]
    return inside[leaves[-1]] if leaves else None


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Tell whether two tensors have the same numbers, in whatever shape."""
    if one is None or other is None or one.numel() != other.numel():
        return False
    return torch.equal(one.flatten(), other.flatten().to(one.dtype))


def _first(values: Sequence[Any]) -> Tensor | None:
    return next((each.clone() for each in values if _is_floating(each)), None)


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


def _has_matrix(module: nn.Module) -> bool:
    return any(tensor.ndim > 1 for tensor in _tensors(module))


def _is_norm(module: nn.Module) -> bool:
    tensors = [*_tensors(module)]
    return bool(tensors) and all(tensor.ndim <= 1 for tensor in tensors)


def _is_matrix(module: nn.Module) -> bool:
    is_leaf = not any(True for _ in module.children())
    return is_leaf and max((tensor.ndim for tensor in _tensors(module)), default=0) == 2


def _adds_itself(module: nn.Module) -> bool:
    """Tell whether a sublayer is handed the stream, and adds what it writes to it."""
    return "residual" in inspect.signature(module.forward).parameters


def _mixes(module: nn.Module) -> bool:
    """Tell whether a module is told about other positions: by a mask or a cache."""
    return not {*_OF_MIXERS}.isdisjoint(inspect.signature(module.forward).parameters)
