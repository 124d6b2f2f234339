"""What happens inside single heads: patterns, values, and what a head writes to the stream."""

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.errors import SiteError
from interp.models import Model
from interp.models.norms import Gain
from interp.replay import Block, Recording
from interp.sites import Site, SiteKind

INSIDE: tuple[SiteKind, ...] = ("pattern", "v", "z")
_HELD = 1 << 27  # numbers of patterns that are held at once


def require_heads(model: Model) -> None:
    """Raise SiteError where patterns, values or outputs of single heads cannot be read."""
    for kind in INSIDE:
        model.refuse(Site(kind, 0))
    z_reader_of(model.blocks[0])


def z_reader_of(block: Block) -> nn.Module:
    """Return the module that reads what heads return; raise SiteError where there is none."""
    if block.z_reader is None:
        family = type(block.module).__name__
        raise SiteError(f"{family}: what single heads write cannot be told apart here")
    return block.z_reader


def norm_behind(reader: nn.Module, writer: nn.Module) -> nn.Module | None:
    """Return the norm between a sublayer's last matrix and the stream; None if there is none.

    What a sublayer adds to the stream is the output of `writer`: the sublayer, its `reader` (of
    heads or neurons), or a norm after them.
    """
    return None if any(module is reader for module in writer.modules()) else writer


def written_by_heads(
    block: Block, z: Float[Tensor, "rows pos heads"]
) -> Float[Tensor, "rows pos d_model"]:
    """Return what attention adds to the stream in fp32 where its heads return `z`."""
    reader = z_reader_of(block)
    written = reader(z)
    if (norm := norm_behind(reader, block.attn_write)) is not None:
        written = norm(written)
    added: Tensor = written.float() * block.write_scale
    return added


def layers_at_once(n_layers: int, n_heads: int, shape: Sequence[int]) -> int:
    """Return of how many layers the patterns of tokens [batch pos] are held at once."""
    n, n_pos = shape
    return min(n_layers, max(1, _HELD // (n_heads * n * n_pos**2)))


def n_passes(n_layers: int, n_heads: int, shape: Sequence[int]) -> int:
    """Return how many passes `inside_heads` takes."""
    return math.ceil(n_layers / layers_at_once(n_layers, n_heads, shape))


def inside_heads(
    recording: Recording,
    tokens: Int[Tensor, "batch pos"],
    kinds: Sequence[SiteKind],
    *,
    n_heads: int,
) -> Iterator[tuple[int, dict[SiteKind, Tensor]]]:
    """Yield every layer's activations of some kinds, in fp32: one pass if they fit into memory."""
    size = layers_at_once(recording.n_layers, n_heads, tokens.shape)
    for start in range(0, recording.n_layers, size):
        layers = range(start, min(start + size, recording.n_layers))
        sites = [Site(kind, layer) for layer in layers for kind in kinds]
        seen = recording.forward(tokens, capture=sites, positions=slice(-1, None)).activations
        for layer in layers:
            yield layer, {kind: seen[Site(kind, layer)].float() for kind in kinds}


def output_map(
    recording: Recording, layer: int, values: Float[Tensor, "batch pos head d_value"]
) -> Float[Tensor, "head d_value d_model"]:
    """Return W_O of every head of a layer, in fp32, with the gain of a norm behind it.

    It is what the layer's own module makes of unit vectors, so that it holds for every kind of
    module; a bias, which belongs to no head, is taken off. The norm's scale is `output_scale`.
    """
    block, (n_heads, d_value) = recording.blocks[layer], values.shape[2:]
    reader = z_reader_of(block)
    dtype = recording.resid(layer).dtype
    units = torch.eye(n_heads * d_value, dtype=dtype, device=values.device)[None]
    written = (reader(units) - reader(torch.zeros_like(units[:, :1]))).float()
    if (norm := norm_behind(reader, block.attn_write)) is not None:
        written = Gain.of(norm, written.to(dtype)).times(written)
    maps: Tensor = written.reshape(n_heads, d_value, -1)
    return maps


def output_scale(
    block: Block, z: Float[Tensor, "batch pos heads"]
) -> Float[Tensor, "batch pos"] | None:
    """Return what a norm behind W_O scales by, frozen where heads return `z`; None without one."""
    reader = z_reader_of(block)
    if (norm := norm_behind(reader, block.attn_write)) is None:
        return None
    written = reader(z).flatten(0, 1)
    return Gain.of(norm, written).at(norm, written).scale.reshape(z.shape[:2])


def lengths(
    values: Float[Tensor, "batch pos head d_value"], maps: Float[Tensor, "head d_value d_model"]
) -> Float[Tensor, "batch head pos"]:
    """Return how long what each head would write of each value is: ‖v W_O‖."""
    square = maps @ maps.transpose(1, 2)
    squares = torch.einsum("bkhd,hde,bkhe->bhk", values, square, values)
    return squares.clamp(min=0).sqrt()
