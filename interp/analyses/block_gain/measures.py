"""The gain of a block along directions, the sizes of its stream and write, and cosines of writes.

Position 0, often an attention sink, is neither moved nor read.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import normalize

from interp.replay import Recording
from interp.shapes import Resid
from interp.sweeps.cosines import SMALLEST_NORM
from interp.tasks.prompts import Prompt, key_of

DIRECTIONS = ("random direction", "previous write", "stream itself")
SIZES = ("write / stream", "1 / stream")
_FROM = 1  # the first position that is moved and read
_STEPS = {torch.float16: 3e-2, torch.bfloat16: 1e-1}  # of the stream's length, either way
_STEP = 1e-3

Vectors = Float[Tensor, "batch pos d_model"]


def rounding_of(dtype: torch.dtype) -> float:
    """Return about how large a gain is that rounding the streams alone can make."""
    return torch.finfo(dtype).eps / (2 * _STEPS.get(dtype, _STEP))


def random_directions(
    prompts: Sequence[Prompt], shape: Sequence[int], *, seed: int
) -> Float[Tensor, "direction batch pos d_model"]:
    """Return directions [direction pos d_model] of each prompt, which follow from its id."""
    drawn = []
    for prompt in prompts:
        generator = torch.Generator().manual_seed((key_of(prompt.id) + seed) % 2**63)
        drawn.append(torch.randn(*shape, generator=generator))
    return torch.stack(drawn, dim=1)


def gains(
    recording: Recording, layer: int, drawn: Float[Tensor, "direction batch pos d_model"]
) -> Float[Tensor, "batch measure"]:
    """Return the mean gain over positions along each of `DIRECTIONS`; NaN where nothing is before.

    That of random directions is their root mean square, which estimates the Jacobian's Frobenius
    norm without bias.
    """
    stream = recording.resid(layer)
    along = [*drawn.to(stream.device), stream.float()]
    if layer:
        along.append(stream.float() - recording.resid(layer - 1).to(stream.device).float())
    each = torch.stack([gain_along(recording, layer, direction) for direction in along])
    n = len(drawn)
    of_random = each[:n].square().mean(0).sqrt()
    previous = each[n + 1] if layer else torch.full_like(of_random, torch.nan)
    return torch.stack([of_random, previous, each[n]], dim=-1).mean(1).cpu()


def gain_along(
    recording: Recording, layer: int, direction: Vectors
) -> Float[Tensor, "batch read_pos"]:
    """Return ||F(h + v) - F(h - v)|| / ||2 v|| at each position, all moved at once, in fp32.

    v is as long as a small share of h. F is what the block writes, and 2 v what is left of the
    step after rounding.
    """
    stream = recording.resid(layer)
    size = _STEPS.get(stream.dtype, _STEP) * vector_norm(stream.float(), dim=-1, keepdim=True)
    step = size * normalize(direction.float(), dim=-1, eps=SMALLEST_NORM)
    step[:, :_FROM] = 0
    moved = torch.stack([stream.float() + step, stream.float() - step]).to(stream.dtype)
    behind = recording.run(layer, moved).float()
    apart = moved[0].float() - moved[1].float()
    change = behind[0] - behind[1] - apart
    gain: Tensor = vector_norm(change, dim=-1) / vector_norm(apart, dim=-1).clamp_min(SMALLEST_NORM)
    return gain[:, _FROM:]


def sizes_of(recording: Recording, layer: int) -> Float[Tensor, "batch measure"]:
    """Return the means over positions of `SIZES`."""
    stream, behind = _read(recording, layer), _read(recording, layer + 1)
    length = vector_norm(stream, dim=-1).clamp_min(SMALLEST_NORM)
    write = vector_norm(behind.to(stream.device) - stream, dim=-1)
    return torch.stack([write / length, 1 / length], dim=-1).mean(1).cpu()


def write_cosines(recording: Recording) -> Float[Tensor, "batch layer layer 2"]:
    """Return the mean cosine of what every two layers write, to one token and to different ones.

    A different token is half of the prompt's positions further on, from the end to the beginning.
    """
    writes = []
    for layer in range(recording.n_layers):
        stream, behind = _read(recording, layer), _read(recording, layer + 1)
        write = (behind.to(stream.device) - stream).to(recording.resid(0).device)
        writes.append(normalize(write, dim=-1, eps=SMALLEST_NORM))
    units = torch.stack(writes, dim=1)
    n_pos = units.shape[2]
    others = units.roll(n_pos // 2, dims=2)
    both = [torch.einsum("bipd,bjpd->bij", units, each) / n_pos for each in (units, others)]
    return torch.stack(both, dim=-1).cpu()


def _read(recording: Recording, tap: int) -> Resid:
    return recording.resid(tap)[:, _FROM:].float()
