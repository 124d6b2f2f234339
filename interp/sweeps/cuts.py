"""Attention that cannot read some keys, in a window of layers around each layer."""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import repeat
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import AnalysisError, SiteError
from interp.models import Model
from interp.replay import Recording
from interp.sweeps.two_hop import require_subject
from interp.tasks.batch import TokenBatch
from interp.tasks.prompts import key_of

Key = Literal["subject", "start", "phrase"]
Query = Literal["last", "subject", "all"]


@dataclass(frozen=True)
class Cut:
    """Earlier keys of each prompt that some queries may not attend to, in windows of layers."""

    queries: Bool[Tensor, "batch pos"]
    keys: Bool[Tensor, "batch pos"]
    half_width: int = 0

    @property
    def hidden(self) -> Bool[Tensor, "batch query key"]:
        """Return which keys are hidden from which queries; a position always attends to itself."""
        n_pos = self.queries.shape[1]
        earlier = torch.ones(n_pos, n_pos, dtype=torch.bool, device=self.queries.device).tril(-1)
        hidden: Tensor = self.queries[:, :, None] & self.keys[:, None] & earlier
        return hidden

    @property
    def start(self) -> int:
        """Return the first position at which anything changes."""
        return max(1, int(self.hidden.any(2).any(0).int().argmax()))

    def window(self, centre: int, n_layers: int) -> range:
        """Return the layers around a centre."""
        return range(max(0, centre - self.half_width), min(n_layers, centre + self.half_width + 1))


def half_width_of(n_layers: int, asked: int | None) -> int:
    """Return the given half width, or the published share of the layers, 3 in 32."""
    return round(3 * n_layers / 32) if asked is None else asked


def cut_of(
    shard: TokenBatch, *, key: Key = "subject", query: Query = "last", half_width: int = 0
) -> Cut:
    """Return a cut from the first-hop phrase's last token, its first ("start"), or all of it.

    Queries: the prompt's last token, the phrase's last, or all after the keys. Raises
    AnalysisError, naming the prompt, where no query stands after a key.
    """
    end = require_subject(shard)
    start = end if shard.subject_start is None else shard.subject_start
    pos = torch.arange(shard.tokens.shape[1], device=end.device)
    first, last = (end if key == "subject" else start), (start if key == "start" else end)
    keys = (pos >= first[:, None]) & (pos <= last[:, None])
    at = {"last": shard.last, "subject": end}
    queries = pos > last[:, None] if query == "all" else pos == at[query][:, None]
    cut = Cut(queries, keys, half_width)
    empty = (~cut.hidden.any(2).any(1)).tolist()
    if any(empty):
        which = shard.prompts[empty.index(True)].id
        raise AnalysisError(
            f"prompt {which!r}: no query {query!r} stands after the key {key!r};"
            " there is nothing to hide"
        )
    return cut


def cut_elsewhere(shard: TokenBatch, cut: Cut, *, seed: int = 0) -> Cut:
    """Return a cut from as many other keys of each prompt, drawn from those before its queries.

    Position 0 is taken only where no other is left. Raises AnalysisError, naming the prompt, where
    there are too few.
    """
    keys = torch.zeros_like(cut.keys)
    for row, prompt in enumerate(shard.prompts):
        first_query = int(cut.hidden[row].any(1).int().argmax())
        n = int(cut.keys[row].sum())
        others = [pos for pos in range(1, first_query) if not cut.keys[row, pos]]
        generator = torch.Generator().manual_seed((key_of(prompt.id) + seed) % 2**63)
        drawn = [others[i] for i in torch.randperm(len(others), generator=generator).tolist()]
        drawn += [] if bool(cut.keys[row, 0]) else [0]
        if len(drawn) < n:
            raise AnalysisError(
                f"prompt {prompt.id!r} has {len(drawn)} other positions before its queries;"
                f" {n} are needed (control=False)"
            )
        keys[row, drawn[:n]] = True
    return Cut(cut.queries, keys, cut.half_width)


@torch.no_grad()
def require_hiding(model: Model, shard: TokenBatch) -> None:
    """Raise SiteError unless attention to a key can be cut in every layer, tried on two tokens.

    A block's output at the second must not depend on the first token's keys and values where they
    are hidden. It is tried once while a model runs.
    """
    with model.running:
        if "hiding" not in model.running.memo:
            _require_hiding(model, shard)
            model.running.memo["hiding"] = True


def _require_hiding(model: Model, shard: TokenBatch) -> None:
    whole = model.record(shard)
    recording = whole.of(whole.tokens[:1, :2])
    generator = torch.Generator().manual_seed(0)
    resid = torch.randn(1, 2, model.d_model, generator=generator).to(
        recording.tokens.device, model.dtype
    )
    hidden = torch.tensor([[[True, False]]], device=resid.device)
    for layer in range(model.n_layers):
        keys, values = recording.block_kv(layer, resid)[1]
        outputs = [
            recording.tail(layer, resid[:, 1:], start=1, prefix=prefix, hidden=hidden)
            for prefix in ((keys, values), (keys + 1, values + 1))
        ]
        if not torch.equal(*outputs):
            raise SiteError(
                f"keys cannot be hidden: the attention of layer {layer} reads what its mask hides"
            )


def ends_of_cuts(recording: Recording, cut: Cut) -> Float[Tensor, "centre batch d_model"]:
    """Return the last residual at the last position where a window around each layer is cut.

    Layers before the window and positions before the first query are as in the clean pass, so they
    are not run.
    """
    layers, start, hidden = recording.n_layers, cut.start, cut.hidden[:, cut.start :]
    centres: list[int] = []
    rows = recording.resid(0)[None, :, start:][:0]
    for layer in range(layers):
        joining = [centre for centre in range(layers) if cut.window(centre, layers).start == layer]
        centres += joining
        clean = repeat(
            recording.resid(layer)[:, start:],
            "batch pos d -> centre batch pos d",
            centre=len(joining),
        )
        is_cut = torch.tensor(
            [layer in cut.window(centre, layers) for centre in centres], device=hidden.device
        )
        unseen = is_cut[:, None, None, None] & hidden
        rows = recording.run(layer, torch.cat([rows, clean]), start=start, hidden=unseen)
    return rows[:, :, -1]


def cut_steps(n_layers: int, *, half_width: int) -> int:
    """Return how many blocks `ends_of_cuts` runs."""
    return sum(n_layers - max(0, centre - half_width) for centre in range(n_layers))
