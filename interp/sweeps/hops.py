"""Where a two-hop prompt's entities are written, read and needed: per prompt and layer."""

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import TaskError
from interp.replay import Recording
from interp.sites import Site
from interp.sweeps.answers import require_answers
from interp.sweeps.patching import ranks
from interp.tasks.batch import TokenBatch

TARGETS = ("bridge", "answer", "prediction")
PARTS = ("attention", "MLP", "stream")


def require_bridge(shard: TokenBatch) -> Int[Tensor, " batch"]:
    """Return each prompt's bridge; raise TaskError, naming the first prompt, if one is missing."""
    if shard.bridge is None:
        which = next(prompt.id for prompt in shard.prompts if prompt.bridge is None)
        raise TaskError(f"prompt {which!r} has no bridge; the answer of its first hop is needed")
    return shard.bridge


def predictions(recording: Recording) -> Float[Tensor, "batch d_vocab"]:
    """Return the clean logits at the last position."""
    return recording.logits(recording.resid(recording.n_layers), positions=[-1])[:, 0]


def written_ranks(
    recording: Recording, shard: TokenBatch, positions: Int[Tensor, " batch"]
) -> Int[Tensor, "batch part layer target"]:
    """Return how many tokens stand above each of `TARGETS` where each of `PARTS` is unembedded alone.

    Parts: what attention, and what the MLP, adds at each prompt's position, and the stream behind the layer.
    """
    rows = torch.arange(len(positions), device=positions.device)
    tokens = (require_bridge(shard), require_answers(shard)[:, 0], predictions(recording).argmax(-1))
    found = []
    for part in PARTS:
        for layer in range(recording.n_layers):
            kind = {"attention": "attn_out", "MLP": "mlp_out"}.get(part)
            write = recording.resid(layer + 1) if kind is None else recording.clean(Site(kind, layer))  # type: ignore[arg-type]
            logits = recording.logits(write[rows, positions][:, None])[:, 0]
            found.append(torch.stack([ranks(logits, token) for token in tokens], dim=-1))
    shown: Tensor = rearrange(torch.stack(found), "(part layer) batch target -> batch part layer target", part=len(PARTS))
    return shown


def first_layer(is_there: Bool[Tensor, "batch layer"]) -> Float[Tensor, " batch"]:
    """Return the first layer at which something is true of each prompt; NaN if it never is."""
    layer = is_there.int().argmax(1).float()
    return torch.where(is_there.any(1), layer, torch.nan)


@dataclass(frozen=True)
class Cut:
    """Queries that may not attend to one key of each prompt, in a window of layers around each layer."""

    queries: Bool[Tensor, "batch pos"]
    key: Int[Tensor, " batch"]
    half_width: int = 0

    @property
    def start(self) -> int:
        """Return the first position that anything changes at."""
        return int(self.queries.any(0).int().argmax())

    def window(self, centre: int, n_layers: int) -> range:
        """Return the layers around a centre."""
        return range(max(0, centre - self.half_width), min(n_layers, centre + self.half_width + 1))


def ends_of_cuts(recording: Recording, cut: Cut) -> Float[Tensor, "centre batch d_model"]:
    """Return the last residual at the last position where a window around each layer is cut.

    Layers before the window and positions before the first query are as in the clean pass, so they are not run.
    """
    layers, start = recording.n_layers, cut.start
    keys = torch.arange(recording.n_pos, device=cut.key.device)
    pairs = cut.queries[:, start:, None] & (keys == cut.key[:, None])[:, None]
    centres: list[int] = []
    rows = recording.resid(0)[None, :, start:][:0]
    for layer in range(layers):
        joining = [centre for centre in range(layers) if cut.window(centre, layers).start == layer]
        centres += joining
        clean = repeat(recording.resid(layer)[:, start:], "batch pos d -> centre batch pos d", centre=len(joining))
        rows = torch.cat([rows, clean])
        is_cut = torch.tensor([layer in cut.window(centre, layers) for centre in centres], device=keys.device)
        hidden = rearrange(is_cut[:, None, None, None] & pairs, "centre batch query key -> (centre batch) query key")
        flat = rearrange(rows, "centre batch pos d -> (centre batch) pos d")
        flat = recording.tail(layer, flat, start=start, hidden=hidden)
        rows = rearrange(flat, "(centre batch) pos d -> centre batch pos d", centre=len(centres))
    return rows[:, :, -1]


def cut_steps(n_layers: int, *, half_width: int) -> int:
    """Return how many blocks `ends_of_cuts` runs."""
    return sum(n_layers - max(0, centre - half_width) for centre in range(n_layers))
