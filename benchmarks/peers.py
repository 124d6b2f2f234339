"""The same work in other libraries: loops as their users would write them.

Skipping every layer at all positions by `run_with_hooks` of TransformerLens and by traces of
nnsight, L + 1 forwards each; patching every residual by `transformer_lens.patching`, L x T
forwards. The same numbers are asserted first. nnsight is needed for its rows (`pip install
nnsight`), and left out where it is not there. Bounds count blocks of the loops.
"""

from collections.abc import Sequence
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Row, compare, random_batch, random_llama, size_of
from benchmarks.layer_skip import Pass, blocks_run, check, effects, ours
from benchmarks.relevance_patching import exact, paired
from interp.models import Model
from interp.tasks.batch import TokenBatch


@torch.no_grad()
def with_transformer_lens(
    model: Model, batch: TokenBatch, *, skips: Sequence[int] | None = None
) -> Pass:
    """Return effects and output changes of all skips, or some, by a loop of `run_with_hooks`."""
    bridge, layers = model.bridge, range(model.n_layers)

    def forward(skipped: int | None) -> Pass:
        before: dict[int, Tensor] = {}
        writes: dict[int, Tensor] = {}

        def see(resid: Tensor, hook: Any) -> None:
            before[int(hook.name.split(".")[1])] = resid

        def change(resid: Tensor, hook: Any) -> Tensor:
            layer = int(hook.name.split(".")[1])
            if layer == skipped:
                resid = torch.cat([resid[:, :1], before[layer][:, 1:]], dim=1)
            writes[layer] = resid - before[layer]
            return resid

        hooks = [(f"blocks.{i}.hook_resid_pre", see) for i in layers] + [
            (f"blocks.{i}.hook_resid_post", change) for i in layers
        ]
        logits = bridge.run_with_hooks(batch.tokens, fwd_hooks=hooks)
        return torch.stack(list(writes.values())), logits.float().softmax(-1)

    clean, *passes = [forward(each) for each in (None, *(layers if skips is None else skips))]
    return effects(clean, passes, start=0)


@torch.no_grad()
def with_nnsight(traced: Any, batch: TokenBatch, *, skips: Sequence[int] | None = None) -> Pass:
    """Return the same by a loop of traces."""
    blocks = traced.model.layers

    def forward(skipped: int | None) -> Pass:
        with traced.trace(batch.tokens, use_cache=False):
            writes = list().save()
            for layer, block in enumerate(blocks):
                resid = block.input
                if layer == skipped:
                    block.output = torch.cat([block.output[:, :1], resid[:, 1:]], dim=1)
                writes.append(block.output - resid)
            logits = traced.output.logits.save()
        return torch.stack(list(writes)), logits.float().softmax(-1)

    wanted = range(len(blocks)) if skips is None else skips
    clean, *passes = [forward(skipped) for skipped in (None, *wanted)]
    return effects(clean, passes, start=0)


@torch.no_grad()
def patched_with_transformer_lens(model: Model, shard: TokenBatch) -> Tensor:
    """Return the mean effects [layer pos] of patching residuals, by its own L x T forwards."""
    from transformer_lens.patching import get_act_patch_resid_pre

    rows = torch.arange(len(shard.tokens))

    def difference(logits: Tensor) -> Tensor:
        return (logits[rows, -1, shard.answer] - logits[rows, -1, shard.wrong]).mean()

    _, cache = model.bridge.run_with_cache(
        shard.tokens, names_filter=lambda name: name.endswith("hook_resid_pre")
    )
    start = difference(model.bridge(shard.corrupted))
    with redirect_stderr(StringIO()):  # its bar of progress
        return get_act_patch_resid_pre(model.bridge, shard.corrupted, cache, difference) - start


def run() -> dict[str, Row]:
    """Compare at several sizes."""
    rows: dict[str, Row] = {}
    for n_layers, batch_size, n_pos in ((12, 1, 64), (12, 8, 64), (48, 1, 64), (48, 8, 32)):
        model = random_llama(n_layers=n_layers, d_model=128)
        batch = random_batch(model, batch=batch_size, n_pos=n_pos)
        peers: dict[str, Any] = {
            "TransformerLens": lambda m=model, b=batch: with_transformer_lens(m, b)
        }
        if find_spec("nnsight"):
            import nnsight

            traced = nnsight.NNsight(model.module)
            peers["nnsight"] = lambda t=traced, b=batch: with_nnsight(t, b)
        arrays = ours(model, batch, "all")
        counted = {
            "forwards": [blocks_run(model, batch, "all"), n_layers + 1],
            "bound": (n_layers + 1) / (2 * n_layers),
        }
        for name, peer in peers.items():
            changes, outputs = peer()
            check(arrays, {"all.max": changes, "all.output_max": outputs})
            key = f"skip every layer, against {name}, {size_of(model, batch)}"
            rows[key] = compare(lambda m=model, b=batch: ours(m, b, "all"), peer) | counted
    model = random_llama(n_layers=12, d_model=128)
    shard = paired(model, batch=4, n_pos=24)
    torch.testing.assert_close(
        exact(model, shard).mean(0),
        patched_with_transformer_lens(model, shard),
        rtol=1e-3,
        atol=1e-4,
    )
    rows[f"patch every residual, against `transformer_lens.patching`, {size_of(model, shard)}"] = (
        compare(lambda: exact(model, shard), lambda: patched_with_transformer_lens(model, shard))
        | {"bound": 13 / 24, "goal": 0.55}
    )
    return rows
