"""A decoder block's modules, how it is called, and what it reads and writes while it runs."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from interp.errors import SiteError
from interp.shapes import KV
from interp.sites import Site, SiteKind

Arguments = dict[str, Any]  # what one block receives besides the residual, by parameter name


@dataclass(frozen=True)
class Signature:
    """A module's `parameters`, and the length of the tuple that it returns (0: a bare tensor)."""

    parameters: tuple[str, ...]
    n_returned: int

    @classmethod
    def of(cls, module: nn.Module, output: Any) -> "Signature":
        """Return the signature of a module that returned `output`."""
        parameters = tuple(inspect.signature(module.forward).parameters)
        return cls(parameters, len(output) if isinstance(output, tuple) else 0)

    def named(self, args: Sequence[Any], kwargs: Arguments) -> Arguments:
        """Return the arguments of a call by parameter name."""
        return dict(zip(self.parameters, args, strict=False)) | kwargs

    def returning(self, tensor: Tensor) -> Any:
        """Return what the module must return for `tensor` to be its result, and None all else."""
        return (tensor, *[None] * (self.n_returned - 1)) if self.n_returned else tensor


@dataclass(frozen=True)
class Block:
    """A decoder block's modules, and how the block (`call`) and its attention are called.

    `name` is the module's in the model. `write_scale` times what `attn_write` and `mlp_write`
    return is added to the stream. `z_reader` reads what the `n_heads` heads return, side by side;
    `mlp_post_reader` reads the neurons, and `experts` the router's choice, where there are any.
    `mixer` says what mixes positions; where that is not "attention", `attn` is that module, if it
    is one, and the block keeps no keys and values. A block run only as a whole has `Unnamed` parts,
    and `why_whole` says why.
    """

    name: str
    module: nn.Module
    attn: nn.Module
    attn_write: nn.Module
    mlp_write: nn.Module
    z_reader: nn.Module | None
    mlp_post_reader: nn.Module | None
    experts: nn.Module | None
    n_heads: int
    is_parallel: bool
    call: Signature
    attn_call: Signature
    cache_parameter: str
    write_scale: float = 1.0
    mixer: str = "attention"
    why_whole: str = ""

    @property
    def has_kv(self) -> bool:
        """Tell whether the block writes keys and values, from which a later position can start."""
        return self.mixer == "attention"

    def require_parts(self, site: Site) -> None:
        """Raise SiteError for a place between the parts of a block that runs only as a whole."""
        if self.why_whole and site.kind not in ("resid_pre", "resid_post"):
            raise SiteError(f"{site} does not exist: {self.why_whole}")

    def as_whole(self, why: str) -> "Block":
        """Return the block without names for its parts."""
        nothing = Unnamed(why)
        return replace(
            self,
            attn=nothing,
            attn_write=nothing,
            mlp_write=nothing,
            z_reader=None,
            mlp_post_reader=None,
            experts=None,
            why_whole=why,
        )

    def added(self, output: Any, resid: Tensor) -> Tensor:
        """Return what is added to the stream when `attn_write` or `mlp_write` returns `output`."""
        write = first(output) if self.write_scale == 1.0 else first(output) * self.write_scale
        return write.reshape(resid.shape)  # some families flatten batch and position in their MLP

    def adding(self, write: Tensor, output: Any) -> Any:
        """Return what `attn_write` or `mlp_write` must return so that `write` is added."""
        return with_first(output, (write / self.write_scale).reshape(first(output).shape))


class Unnamed(nn.Module):
    """Stands for a part that a block has no module for; using it raises SiteError."""

    def __init__(self, why: str) -> None:
        super().__init__()
        self.why = why

    def forward(self, *_: Any, **__: Any) -> Tensor:
        """Raise SiteError."""
        raise SiteError(self.why)

    def register_forward_hook(self, *_: Any, **__: Any) -> RemovableHandle:
        """Raise SiteError."""
        raise SiteError(self.why)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Raise SiteError."""
        raise SiteError(self.why)

    def modules(self, remove_duplicate: bool = True) -> Iterator[nn.Module]:
        """Raise SiteError."""
        raise SiteError(self.why)


class CacheStandIn:
    """A stand-in for a cache: gives a block a prefix's keys and values, and keeps what it wrote."""

    is_compileable = False

    def __init__(self, prefix: KV | None = None) -> None:
        self.prefix = prefix
        self.written: KV | None = None

    def update(self, keys: Tensor, values: Tensor, *_: object, **__: object) -> KV:
        """Return the prefix's keys and values followed by the new ones."""
        self.written = (keys, values)
        if self.prefix is None:
            return keys, values
        return torch.cat([self.prefix[0], keys], dim=-2), torch.cat(
            [self.prefix[1], values], dim=-2
        )

    def get_seq_length(self, *_: object) -> int:
        """Return the number of positions of the prefix."""
        return 0 if self.prefix is None else int(self.prefix[0].shape[-2])


def first(output: Any) -> Tensor:
    """Return the tensor that a module returned, alone or first in a tuple."""
    tensor = output[0] if isinstance(output, tuple) else output
    if not isinstance(tensor, Tensor):
        raise TypeError(f"a tensor was expected, {type(tensor).__name__} was returned")
    return tensor


def with_first(output: Any, tensor: Tensor) -> Any:
    """Return a module's output with its first tensor replaced."""
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace what `module` computes inside the `with` block."""
    had_own = "forward" in vars(module)
    own = module.forward
    module.forward = forward
    try:
        yield
    finally:
        if had_own:
            module.forward = own
        else:
            del module.forward


def require_kv(blocks: Sequence[Block], *layers: int) -> None:
    """Raise SiteError for the first of these layers that keeps no keys and values."""
    for layer in layers:
        if not blocks[layer].has_kv:
            raise SiteError(
                f"layer {layer} keeps no keys and values (its mixer is {blocks[layer].mixer});"
                " its block runs on whole prompts alone"
            )


class Stop(Exception):
    """Ends a pass whose rest is not needed."""


def dry_pass(blocks: Sequence[Block], run: Callable[[], object]) -> tuple[Tensor, list[Arguments]]:
    """Return the embedding [batch pos d_model] and every block's arguments; runs no block."""
    recorded: list[Arguments] = []
    embeddings: list[Tensor] = []

    def identity(block: Block) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            arguments = block.call.named(args, kwargs)
            resid = arguments.pop(block.call.parameters[0])
            embeddings.append(resid)
            recorded.append(arguments)
            if len(recorded) == len(blocks):
                raise Stop
            return block.call.returning(resid)

        return forward

    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(replaced_forward(block.module, identity(block)))
        with suppress(Stop):
            run()
    return embeddings[0], recorded


_OF_ALL_ROWS = (
    "position_bias",
)  # MPT's [head 1 pos], whose first axis may look like one of prompts


def for_rows(value: Any, *, batch: int, rows: int) -> Any:
    """Repeat recorded tensors to the number of rows, variant-major, if they have a batch axis."""
    if isinstance(value, Tensor) and value.ndim > 1:
        if value.shape[0] == 1:
            return value.expand(rows, *value.shape[1:])
        if rows > batch and value.shape[0] % batch == 0:
            return repeat(value, "batch ... -> (variant batch) ...", variant=rows // batch)
        return value
    if isinstance(value, tuple):
        return tuple(for_rows(item, batch=batch, rows=rows) for item in value)
    if isinstance(value, dict):
        return {
            key: item if key in _OF_ALL_ROWS else for_rows(item, batch=batch, rows=rows)
            for key, item in value.items()
        }
    return value


def of_prompts(value: Any, prompts: Int[Tensor, " rows"], *, batch: int) -> Any:
    """Return recorded tensors for rows that belong to the given prompts, in any order."""
    if isinstance(value, Tensor) and value.ndim > 1:
        if value.shape[0] == 1 or value.shape[0] % batch:
            return for_rows(value, batch=batch, rows=len(prompts))
        # attention's biases may hold heads after the prompt
        own = rearrange(value, "(batch head) ... -> batch head ...", batch=batch)
        return own[prompts].flatten(0, 1)
    if isinstance(value, tuple):
        return tuple(of_prompts(item, prompts, batch=batch) for item in value)
    if isinstance(value, dict):
        return {
            key: item if key in _OF_ALL_ROWS else of_prompts(item, prompts, batch=batch)
            for key, item in value.items()
        }
    return value


def without_hidden(
    arguments: Arguments, hidden: Tensor, *, start: int, dtype: torch.dtype
) -> Tensor:
    """Return the attention mask that a block received, without the hidden keys [rows query key]."""
    mask = arguments.get("attention_mask")
    if "attention_mask" not in arguments or not (
        mask is None or (isinstance(mask, Tensor) and mask.ndim == 4)
    ):
        raise SiteError("keys cannot be hidden: this attention takes no mask of queries and keys")
    if mask is None:
        rows, n_queries, n_keys = hidden.shape
        later = (
            torch.arange(n_keys, device=hidden.device)
            > start + torch.arange(n_queries, device=hidden.device)[:, None]
        )
        mask = torch.zeros(rows, 1, n_queries, n_keys, dtype=dtype, device=hidden.device)
        mask = mask.masked_fill(later, torch.finfo(dtype).min)
    if mask.dtype == torch.bool:
        return mask & ~hidden[:, None]
    return mask.masked_fill(hidden[:, None], torch.finfo(mask.dtype).min)


@contextmanager
def replacing(
    block: Block, at: SiteKind, edit: Callable[[Tensor], Tensor], resid: Tensor, *, site: Site
) -> Iterator[None]:
    """Replace what stands `at` a place inside a block while it runs."""
    shape = resid.shape[:2]
    read = {"z": block.z_reader, "mlp_post": block.mlp_post_reader}
    written = {"attn_out": block.attn_write, "mlp_out": block.mlp_write}
    if at in written:
        handle = written[at].register_forward_hook(
            lambda _m, _a, output: block.adding(edit(block.added(output, resid)), output)
        )
    elif (reader := read.get(at)) is not None:
        handle = reader.register_forward_pre_hook(
            lambda _m, args: (edit(args[0].reshape(*shape, -1)).reshape(args[0].shape), *args[1:])
        )
    else:
        raise SiteError(f"{site} cannot be replaced in a single block of this family")
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def without_attention(block: Block, resid: Tensor) -> Iterator[None]:
    """Have a block's attention not run, and write nothing to the stream `resid`."""

    def nothing(*args: Any, **kwargs: Any) -> Any:
        given = block.attn_call.named(args, kwargs)
        zero = given["residual"] if "residual" in given else torch.zeros_like(resid)
        return block.attn_call.returning(zero)

    with ExitStack() as stack:
        stack.enter_context(replaced_forward(block.attn, nothing))
        if block.attn_write is not block.attn:
            stack.enter_context(replaced_forward(block.attn_write, torch.zeros_like))
        yield


@contextmanager
def writes_of(block: Block, resid: Tensor) -> Iterator[dict[SiteKind, Tensor]]:
    """Catch what attention and MLP add to the stream when the block runs on `resid`, if named."""
    written: dict[SiteKind, Tensor] = {}

    def catch(name: SiteKind) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, output: Any) -> None:
            written[name] = block.added(
                output, resid
            ).clone()  # some families add one write to the other in place

        return hook

    parts: dict[SiteKind, nn.Module] = {}
    if not block.why_whole:
        parts = {"attn_out": block.attn_write, "mlp_out": block.mlp_write}
    handles = [part.register_forward_hook(catch(kind)) for kind, part in parts.items()]
    try:
        yield written
    finally:
        for handle in handles:
            handle.remove()
