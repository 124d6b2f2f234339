"""Erasing every position at every site, against one whole forward for each, with plain hooks on the stock model."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import compare, random_batch, random_llama
from interp.analyses.residual_erasure import ResidualErasure
from interp.models import Model
from interp.tasks.batch import TokenBatch


@torch.no_grad()
def naive(model: Model, batch: TokenBatch, mean: Tensor) -> Tensor:
    """Return the changes [batch site pos] of the last position's probabilities by sites x positions whole forwards."""
    blocks = model.module.model.layers
    n, n_pos = batch.tokens.shape

    def probabilities() -> Tensor:
        return model.module(input_ids=batch.tokens, use_cache=False).logits[:, -1].float().softmax(-1)

    clean, changes = probabilities(), torch.zeros(n, len(blocks) + 1, n_pos)
    for site, block in enumerate([*blocks, model.module.model.norm]):
        for position in range(n_pos):

            def erase(_module: object, args: tuple[Tensor, ...], site: int = site, position: int = position) -> Any:
                resid = args[0].clone()
                resid[:, position] = mean[site]
                return (resid, *args[1:])

            handle = block.register_forward_pre_hook(erase)
            changes[:, site, position] = (clean - probabilities()).norm(dim=-1)
            handle.remove()
    return changes


@torch.no_grad()
def ours(model: Model, batch: TokenBatch, mean: Tensor) -> tuple[Tensor, float]:
    """Return the same, and how many forwards it took beyond the clean pass, which is counted in."""
    recording = model.record(batch)
    parts = ResidualErasure(scopes=("position",)).measure(recording, batch, {"mean": mean})
    return parts["position.output"], recording.work.block_tokens / (batch.tokens.numel() * model.n_layers)


def run() -> dict[str, Any]:
    """Compare blocks and time at several sizes, after checking that both agree."""
    results: dict[str, Any] = {}
    for n_layers, d_model, batch_size, n_pos in ((4, 128, 8, 16), (12, 128, 1, 64), (12, 384, 2, 32)):
        model = random_llama(n_layers=n_layers, d_model=d_model)
        batch = random_batch(model, batch=batch_size, n_pos=n_pos)
        answer = torch.full((batch_size, 1), 3)
        batch = replace(batch, answer=answer[:, 0], answer_tokens=answer)
        mean = torch.zeros(n_layers + 1, d_model)
        changes, forwards = ours(model, batch, mean)
        torch.testing.assert_close(changes, naive(model, batch, mean), rtol=1e-4, atol=1e-5)
        times = compare(
            lambda m=model, b=batch, u=mean: ours(m, b, u), lambda m=model, b=batch, u=mean: naive(m, b, u), repeats=3
        )
        counted = {"ratio of blocks": round(forwards / ((n_layers + 1) * n_pos), 3), "bound": 0.35}
        results[f"L={n_layers} d={d_model} B={batch_size} T={n_pos}"] = counted | times
    return results
