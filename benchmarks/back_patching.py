"""All back-patches at the last token, against one hooked forward for each pair of layers.

Ours counts its clean pass in: one forward, then (L-1)L(2L-1)/6 blocks on one token, against
L(L-1)/2 forwards.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.harness import Row, compare, random_batch, random_llama, size_of
from interp.analyses.back_patching import BackPatching
from interp.models import Model
from interp.tasks.batch import TokenBatch


@torch.no_grad()
def naive(model: Model, batch: TokenBatch, *, sources: Sequence[int] | None = None) -> Tensor:
    """Return the changes [batch source target] of the answer's log-probability.

    They take L(L-1)/2 whole forwards, or those of some sources.
    """
    blocks = model.module.model.layers
    outputs: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda _m, _a, out: outputs.append(out[:, -1].clone()))
        for block in blocks
    ]

    def answers() -> Tensor:
        logits = model.module(input_ids=batch.tokens, use_cache=False).logits[:, -1].float()
        return logits.log_softmax(-1).gather(1, batch.answer[:, None])[:, 0]

    clean = answers()
    for handle in handles:
        handle.remove()
    changes = torch.zeros(len(clean), len(blocks), len(blocks))
    for source in range(len(blocks)) if sources is None else sources:
        for target in range(source):

            def patch(_module: object, _args: object, out: Tensor, source: int = source) -> Tensor:
                out = out.clone()
                out[:, -1] = outputs[source]
                return out

            handle = blocks[target].register_forward_hook(patch)
            changes[:, source, target] = answers() - clean
            handle.remove()
    return changes


@torch.no_grad()
def ours(model: Model, batch: TokenBatch) -> tuple[Tensor, float]:
    """Return the same, and how many forwards it took, the clean pass counted in."""
    recording = model.record(batch)
    parts = BackPatching(position="last", controls=(), known_only=False).measure(
        recording, batch, {}
    )
    return parts["own.log_prob"], recording.work.block_tokens / (
        batch.tokens.numel() * model.n_layers
    )


def run() -> dict[str, Row]:
    """Compare blocks and time at several sizes, after checking that both agree."""
    rows: dict[str, Row] = {}
    sizes = ((12, 384, 1, 64), (12, 128, 8, 64), (12, 128, 1, 256), (32, 128, 1, 64))
    for n_layers, d_model, batch_size, n_pos in sizes:
        model = random_llama(n_layers=n_layers, d_model=d_model)
        batch = random_batch(model, batch=batch_size, n_pos=n_pos)
        changes, forwards = ours(model, batch)
        torch.testing.assert_close(changes, naive(model, batch), rtol=1e-4, atol=1e-5)
        row = compare(
            lambda m=model, b=batch: ours(m, b),
            lambda m=model, b=batch: naive(m, b),
        )
        n_naive = n_layers * (n_layers - 1) // 2
        counted = {
            "forwards": [round(forwards, 2), n_naive],
            "bound": round(forwards / n_naive, 3),
            "goal": round(1 / 18, 4),
        }
        rows[size_of(model, batch)] = row | counted
    return rows
