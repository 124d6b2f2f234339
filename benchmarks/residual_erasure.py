"""Erasing every position at every site, against (L + 1) T whole forwards with plain hooks.

Only what comes after an erased position, and above its layer, is run again: a quarter of the
blocks. The clean pass is counted in.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Row, compare, random_batch, random_llama, size_of
from interp.analyses.residual_erasure import ResidualErasure
from interp.models import Model
from interp.tasks.batch import TokenBatch


@torch.no_grad()
def naive(
    model: Model, batch: TokenBatch, mean: Tensor, *, sites: Sequence[int] | None = None
) -> Tensor:
    """Return the changes [batch site pos] of the last probabilities, a whole forward for each."""
    blocks = model.module.model.layers
    n, n_pos = batch.tokens.shape

    def probabilities() -> Tensor:
        return (
            model.module(input_ids=batch.tokens, use_cache=False).logits[:, -1].float().softmax(-1)
        )

    clean, changes = probabilities(), torch.zeros(n, len(blocks) + 1, n_pos)
    places = [*blocks, model.module.model.norm]
    for site in range(len(places)) if sites is None else sites:
        for position in range(n_pos):

            def erase(
                _module: object,
                args: tuple[Tensor, ...],
                site: int = site,
                position: int = position,
            ) -> Any:
                resid = args[0].clone()
                resid[:, position] = mean[site]
                return (resid, *args[1:])

            handle = places[site].register_forward_pre_hook(erase)
            changes[:, site, position] = (clean - probabilities()).norm(dim=-1)
            handle.remove()
    return changes


@torch.no_grad()
def ours(model: Model, batch: TokenBatch, mean: Tensor) -> tuple[Tensor, float]:
    """Return the same, and how many forwards it took beyond the clean pass, which is counted in."""
    recording = model.record(batch)
    parts = ResidualErasure(scopes=("position",)).measure(recording, batch, {"mean": mean})
    return parts["position.output"], recording.work.block_tokens / (
        batch.tokens.numel() * model.n_layers
    )


def run() -> dict[str, Row]:
    """Compare blocks and time at several sizes, after checking that both agree."""
    rows: dict[str, Row] = {}
    for n_layers, d_model, batch_size, n_pos in (
        (4, 128, 8, 16),
        (12, 128, 1, 64),
        (12, 384, 1, 32),
    ):
        model = random_llama(n_layers=n_layers, d_model=d_model)
        batch = random_batch(model, batch=batch_size, n_pos=n_pos)
        mean = torch.zeros(n_layers + 1, d_model)
        changes, forwards = ours(model, batch, mean)
        torch.testing.assert_close(changes, naive(model, batch, mean), rtol=1e-4, atol=1e-5)
        row = compare(
            lambda m=model, b=batch, u=mean: ours(m, b, u),
            lambda m=model, b=batch, u=mean: naive(m, b, u),
            repeats=5,
        )
        n_naive = (n_layers + 1) * n_pos
        counted = {
            "forwards": [round(forwards, 1), n_naive],
            "bound": round(forwards / n_naive, 3),
            "goal": 0.35,
        }
        rows[size_of(model, batch)] = row | counted
    return rows
