"""Streams without information in place of a model's own, and how the layers continue them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from interp.replay import Recording


@dataclass(frozen=True)
class Erased:
    """The last residuals of the taps at which `position` was erased."""

    position: int
    taps: Sequence[int]
    start: int
    resid: Float[Tensor, "tap batch pos_from_start d_model"]


def erased_positions(
    recording: Recording, mean: Float[Tensor, "tap d_model"], taps: Sequence[int]
) -> Iterator[Erased]:
    """Erase one position at each of these taps, one tap at a time.

    Only positions from it on are run, over the clean keys and values before it. One sweep over the
    layers serves all taps; a tap's row joins before its layer.
    """
    for position in range(recording.n_pos):
        rows = _erased(recording, taps[0], mean, position)
        for layer in range(taps[0], recording.n_layers):
            rows = recording.run(layer, rows, start=position)
            if layer + 1 in taps:
                rows = torch.cat([rows, _erased(recording, layer + 1, mean, position)])
        yield Erased(position, taps, position, rows)


def _erased(recording: Recording, tap: int, mean: Tensor, position: int) -> Tensor:
    """Return the clean residuals from a position on, that one erased [1 batch pos d_model]."""
    rows = recording.resid(tap)[None, :, position:].clone()
    rows[:, :, 0] = mean[tap]
    return rows


def erased_prefixes(
    recording: Recording, mean: Float[Tensor, "tap d_model"], taps: Sequence[int]
) -> Iterator[Erased]:
    """Erase positions 1 to `position` at each of these taps.

    Erasing every position gives the same streams up to `position`, so that is run once per tap, and
    only the later positions are run anew, over its keys and values.
    """
    for tap in taps:
        clean = recording.resid(tap)
        n, n_pos, _ = clean.shape
        rest = repeat(mean[tap], "d_model -> batch pos d_model", batch=n, pos=n_pos - 1)
        everything = torch.cat([clean[:, :1], rest], 1)
        prefixes = {}
        for layer in range(tap, recording.n_layers):
            everything, prefixes[layer] = recording.block_kv(layer, everything)
        for position in range(1, recording.n_pos):
            rows = clean[:, position + 1 :]
            for layer in range(tap, recording.n_layers) if position + 1 < recording.n_pos else ():
                rows = recording.tail(layer, rows, start=position + 1, prefix=prefixes[layer])
            resid = torch.cat([everything[:, 1 : position + 1], rows], dim=1)[None]
            yield Erased(position, [tap], 1, resid)


ERASE = {"position": erased_positions, "prefix": erased_prefixes}
