"""What every check compares with: stock Hugging Face passes of a model over a few tokens."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.errors import SiteError
from interp.models import Model
from interp.models.bridge.building import eager_twin
from interp.models.rounding import allowed, error
from interp.replay import Recording, first, with_first
from interp.sites import BLOCK_KINDS, INNER_KINDS, Site
from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch

Hook = Callable[[Tensor], Tensor]


@dataclass
class ModelUnderTest:
    """Random tokens [batch pos] of a model, without padding, and its stock modules.

    `layers` are those that checks of single layers look at; `near` is the largest allowed error,
    relative to the largest value compared: rounding errors of a deep model grow with its depth.
    What passes without an edit compute is kept, so that all checks of a site share them.
    """

    model: Model
    batch_size: int = 2
    n_pos: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        self._sites: dict[Site, Tensor] = {}
        self._edited: dict[tuple[Any, ...], Tensor] = {}

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """Return the first, the middle and the last layer, and the first of every kind of block."""
        last = self.model.n_layers - 1
        first_of_kind = {kind: layer for layer, kind in reversed([*enumerate(self._kinds())])}
        return tuple(sorted({0, (last + 1) // 2, last, *first_of_kind.values()}))

    def _kinds(self) -> Iterator[tuple[Any, ...]]:
        """Yield what each block is made of: its modules, and its name in the configuration."""
        named = getattr(self.stock.config.get_text_config(), "layer_types", None)
        for layer, block in enumerate(self.blocks):
            parts = tuple((name, type(module)) for name, module in block.named_modules())
            yield (parts, named[layer] if named else None)

    @property
    def near(self) -> float:
        """Return the largest allowed error, relative to the largest value."""
        if self.model.dtype == torch.float32:
            return 1e-5 * max(4, self.model.n_layers)
        return allowed(self.model.dtype, depth=self.model.n_layers)

    @cached_property
    def batch(self) -> TokenBatch:
        """Return random tokens, none from the vocabulary's ends, where special ones often are."""
        n_vocab, random = self.model.d_vocab, torch.Generator().manual_seed(self.seed)
        ids = torch.randint(
            n_vocab // 20, n_vocab - n_vocab // 20, (self.batch_size, self.n_pos), generator=random
        )
        return batch_of(ids.to(self.model.device))

    @property
    def stock(self) -> PreTrainedModel:
        """Return the Hugging Face model as it is."""
        return self.model.module

    @cached_property
    def blocks(self) -> Sequence[nn.Module]:
        """Return the decoder blocks without any adapter: its first list of n_layers modules."""
        decoder = self.stock.get_decoder() or self.stock  # where there is a vision part too
        lists = (module for module in decoder.modules() if isinstance(module, nn.ModuleList))
        return next(list(blocks) for blocks in lists if len(blocks) == self.model.n_layers)

    @cached_property
    def eager(self) -> PreTrainedModel:
        """Return a copy that shares every parameter and computes attention step by step."""
        return eager_twin(self.stock)

    @cached_property
    def recording(self) -> Recording:
        """Return a recording of the tokens."""
        return self.model.record(self.batch)

    def logits(self, module: nn.Module | None = None, **more: Any) -> Tensor:
        """Return fp32 logits of a stock pass."""
        module = self.stock if module is None else module
        logits: Tensor = module(input_ids=self.batch.tokens, use_cache=False, **more).logits
        return logits.float()

    @cached_property
    def streams(self) -> list[Tensor]:
        """Return a stock pass's residuals [batch pos d_model]: every input, and the last output."""
        seen: list[Tensor] = []
        with ExitStack() as stack:
            for block in self.blocks:
                stack.enter_context(reading(block, seen.append))
            stack.enter_context(returning(self.blocks[-1], seen.append))
            self.logits()
        return seen

    @cached_property
    def direction(self) -> Tensor:
        """Return a random change [batch pos d_model] of the residual stream, of about its size."""
        random = torch.Generator().manual_seed(self.seed + 1)
        shape = (self.batch_size, self.n_pos, self.model.d_model)
        size = float(self.streams[1].float().std())
        return (size * torch.randn(shape, generator=random)).to(self.model.device, self.model.dtype)

    def site(self, kind: Any, layer: int) -> Tensor:
        """Return what a clean pass captures at a site.

        One pass captures all that the blocks hold, another one all that is inside them.
        """
        if Site(kind, layer) not in self._sites:
            kinds = next(kinds for kinds in (BLOCK_KINDS, INNER_KINDS) if kind in kinds)
            likely = [Site(each, where) for each in kinds for where in self.layers]
            sites = {Site(kind, layer), *filter(self._is_there, likely)}
            self._sites |= self.model.forward(self.batch, capture=sites).activations
        return self._sites[Site(kind, layer)]

    def once(self, key: tuple[Any, ...], edited: Callable[[], Tensor]) -> Tensor:
        """Return what an edited pass computes; it runs when it is first asked for."""
        if key not in self._edited:
            self._edited[key] = edited()
        return self._edited[key]

    def _is_there(self, site: Site) -> bool:
        try:
            self.model.refuse(site)
        except SiteError:
            return False
        return True

    @cached_property
    def clean(self) -> Tensor:
        """Return fp32 logits of the stock pass."""
        return self.logits()

    @cached_property
    def patterns(self) -> dict[int, Tensor]:
        """Return the patterns that Hugging Face's eager attention returns, by layer with any."""
        returned: Sequence[Tensor] = self.eager(
            input_ids=self.batch.tokens, use_cache=False, output_attentions=True
        ).attentions
        layers = [*range(self.model.n_layers)]
        if len(returned) < len(layers):
            layers = [layer for layer in layers if self.model.blocks[layer].has_kv]
        return dict(zip(layers, returned, strict=True))

    @cached_property
    def read(self) -> dict[nn.Module, Tensor]:
        """Return the inputs of the stock modules that read heads, neurons and experts' tokens."""
        held: dict[nn.Module, Tensor] = {}
        with ExitStack() as stack:
            for block in (self.model.blocks[layer] for layer in self.layers):
                for module in (block.z_reader, block.mlp_post_reader, block.experts):
                    if module is not None:
                        stack.enter_context(reading(module, partial(held.__setitem__, module)))
            self.logits()
        return held

    def compare(
        self,
        actual: Tensor,
        expected: Tensor,
        what: str,
        *,
        near: float | None = None,
        of: Tensor | None = None,
    ) -> None:
        """Raise AssertionError, saying by how much, if two tensors differ beyond rounding errors.

        `of` are the larger numbers whose difference is compared, if it is one.
        """
        if actual.shape != expected.shape:
            raise AssertionError(
                f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
            )
        actual, expected = actual.float(), expected.float()
        if not torch.isfinite(actual).all():
            raise AssertionError(f"{what}: NaN or infinite values")
        if self.model.dtype == torch.float32:
            off, size = (
                float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-6)),
                "largest value",
            )
        else:
            off, size = error(actual, expected, of=of), "length"
        if off > (self.near if near is None else near):
            raise AssertionError(f"{what}: off by {off:.1e} of the {size}")


def batch_of(tokens: Tensor, mask: Tensor | None = None) -> TokenBatch:
    """Return a batch of tokens, padded on the right where `mask` is False."""
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    prompts = tuple(Prompt(str(i), "tokens") for i in range(len(tokens)))
    return TokenBatch(prompts, tokens, mask, mask.sum(1) - 1)


@contextmanager
def reading(module: nn.Module, hook: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Let `hook` see, and perhaps replace, what a stock module reads."""

    def before(
        _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        name = "hidden_states" if not args else None
        new = hook(kwargs[name] if name else args[0])
        if new is None:
            return None
        return ((), kwargs | {name: new}) if name else ((new, *args[1:]), kwargs)

    handle = module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def returning(module: nn.Module, hook: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Let `hook` see, and perhaps replace, what a stock module returns."""

    def after(_module: Any, _args: Any, output: Any) -> Any:
        new = hook(first(output))
        return None if new is None else with_first(output, new)

    handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()
