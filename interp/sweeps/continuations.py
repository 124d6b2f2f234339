"""Greedy texts where every pass goes along a path of layers: some left out, repeated or moved."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import AnalysisError, TaskError
from interp.models import Model
from interp.replay import Recording, Work
from interp.replay.rows import variants_at_once
from interp.shapes import Resid
from interp.sweeps.texts import Texts
from interp.sweeps.walks import along, ends_together
from interp.tasks.batch import TokenBatch

Layers = Sequence[int]  # those that run, in order


def n_written_to(n_pos: int, n_new: int) -> int:
    """Return at how many positions one path runs, for a prompt of `n_pos` and a text of `n_new`."""
    return sum(n_pos + written for written in range(n_new))


@torch.no_grad()
def texts_along(
    model: Model,
    shard: TokenBatch,
    paths: Sequence[Layers],
    *,
    max_new_tokens: int,
    work: Work | None = None,
) -> Texts:
    """Return the prompts' greedy continuations, by path, as texts.

    For every token, the prompt and what has been written so far run along the path anew, so that a
    path may name layers in any order and any number of times. A text ends as in `Model.generate`;
    the path of all layers in order gives that method's texts. Prompts must be of one length. What
    runs is counted in `work` too.
    Raises AnalysisError for layers that do not exist, TaskError for prompts of several lengths and
    for texts longer than the model reads.
    """
    for path in paths:
        _require_layers(model, path)
    if shard.is_padded:
        raise TaskError("prompts of several lengths given; texts along paths need one length")
    model.refuse_responses(shard, max_new_tokens)
    batch, n_pos = shard.tokens.shape
    n_pos += max_new_tokens
    size = variants_at_once(model.tokens_at_once(), batch=batch, n_pos=n_pos, start=0)
    texts: Texts = []
    with model.running:
        recording = model.record(shard, work=work)
        for first in range(0, len(paths), size):
            some = [tuple(path) for path in paths[first : first + size]]
            texts += _texts(model, recording, shard, some, max_new_tokens)
    return texts


def _require_layers(model: Model, path: Layers) -> None:
    for layer in path:
        if not 0 <= layer < model.n_layers:
            raise AnalysisError(
                f"layer {layer} in a path; the model's last layer is {model.n_layers - 1}"
            )


def _texts(
    model: Model, recording: Recording, shard: TokenBatch, paths: Sequence[Layers], n_new: int
) -> Texts:
    """Return the texts of a few paths, which run together."""
    n, prompts = len(paths), shard.tokens.repeat(len(paths), 1)
    every = torch.ones_like(prompts, dtype=torch.bool)
    copies = TokenBatch(shard.prompts * n, prompts, every, shard.last.repeat(n))
    choose = model.chooser(copies, max_new_tokens=n_new)
    ends = torch.tensor(choose.ends, dtype=torch.long, device=prompts.device)
    new, alive = prompts[:, :0], every[:, :0]
    is_alive = every[:, 0]
    while new.shape[1] < n_new and bool(is_alive.any()):
        so_far = recording.of(torch.cat([prompts, new], dim=1), is_stored=False)
        last = so_far.logits(_last_along(so_far, paths))[:, 0]
        chosen = choose(new, last)
        new, alive = torch.cat([new, chosen[:, None]], 1), torch.cat([alive, is_alive[:, None]], 1)
        is_alive = is_alive & ~torch.isin(chosen, ends)
    rows = [row[own].tolist() for row, own in zip(new, alive, strict=True)]
    written = model.tokenizer.batch_decode(rows, skip_special_tokens=True)
    size = len(shard.prompts)
    return [tuple(written[start : start + size]) for start in range(0, n * size, size)]


def _last_along(recording: Recording, paths: Sequence[Layers]) -> Float[Tensor, "rows 1 d_model"]:
    """Return the last position's residual after the last layer of each path, path-major.

    The recording is of as many prompts for each path. The lowest layer that is next on a path runs
    for all paths that it is next on: so paths without some layers run together.
    """
    embedded, _ = recording.runner.dry(recording.tokens, None, start=0)
    whose = torch.arange(len(embedded), device=embedded.device).chunk(len(paths))

    def run(layer: int, some: Sequence[int], streams: Sequence[Resid]) -> Sequence[Resid]:
        prompts = torch.cat([whose[i] for i in some])
        return recording.rows(layer, torch.cat([*streams]), prompts).chunk(len(some))

    starts = embedded.chunk(len(paths))
    walks = [along(path, stream) for path, stream in zip(paths, starts, strict=True)]
    return torch.cat(ends_together(walks, run))[:, -1:]
