"""Skipping every layer at all positions, against the loops that users of other libraries would write.

The same numbers are asserted first: the largest relative change of what each later layer writes, and of the output.
nnsight is needed for its row (`pip install nnsight`), and left out where it is not there.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import compare, random_batch, random_llama
from benchmarks.layer_skip import naive_all, ours
from interp.models import Model
from interp.sweeps.staircase import relative_change
from interp.tasks.batch import TokenBatch

Pass = tuple[Tensor, Tensor]  # writes [layer batch pos d_model], probabilities [batch pos d_vocab]


@torch.no_grad()
def with_transformer_lens(model: Model, batch: TokenBatch) -> Pass:
    """Return effects and output changes by a loop of `run_with_hooks`."""
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

    return _effects([forward(skipped) for skipped in (None, *layers)])


@torch.no_grad()
def with_nnsight(traced: Any, batch: TokenBatch) -> Pass:
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

    return _effects([forward(skipped) for skipped in (None, *range(len(blocks)))])


def _effects(passes: list[Pass]) -> Pass:
    (clean, clean_probs), *others = passes
    effects = [relative_change(clean, writes)[:, :, 1:].amax(-1) for writes, _ in others]
    outputs = [(clean_probs - probs).norm(dim=-1)[:, 1:].amax(-1) for _, probs in others]
    return torch.stack(effects), torch.stack(outputs)


def run() -> dict[str, Any]:
    """Compare at two batch sizes."""
    results: dict[str, Any] = {}
    for batch_size in (1, 8):
        model = random_llama(n_layers=12, d_model=128)
        batch = random_batch(model, batch=batch_size, n_pos=64)
        peers: dict[str, Any] = {
            "plain hooks": lambda m=model, b=batch: naive_all(m, b),
            "TransformerLens": lambda m=model, b=batch: with_transformer_lens(m, b),
        }
        if find_spec("nnsight"):
            import nnsight

            traced = nnsight.NNsight(model.module)
            peers["nnsight"] = lambda t=traced, b=batch: with_nnsight(t, b)
        arrays = ours(model, batch, "all")
        for name, peer in peers.items():
            effects, outputs = peer()
            torch.testing.assert_close(arrays["all.max"].permute(1, 2, 0), effects, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(arrays["all.output_max"].T, outputs, rtol=1e-4, atol=1e-5)
            key = f"skip every layer, L = 12, d = 128, batch {batch_size}, T = 64, against {name}"
            results[key] = compare(lambda m=model, b=batch: ours(m, b, "all"), peer) | {"bound": 0.542}
    return results
