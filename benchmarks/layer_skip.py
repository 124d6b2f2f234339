"""Layer skip against one full forward per skipped layer (and split), with plain hooks on the stock model.

The bound counts blocks: all positions (L + 1) / 2L of the naive L + 1 forwards; with futures and direct effects 0.28–0.30.
"""

from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import compare, random_batch, random_llama
from interp.analyses.layer_skip import LayerSkip
from interp.models import Model
from interp.sweeps.staircase import relative_change
from interp.tasks.batch import TokenBatch


@torch.no_grad()
def naive_all(model: Model, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Return [skipped affected prompt] effects and output changes by L + 1 full forwards."""
    blocks = model.module.model.layers

    def forward(skipped: int | None) -> tuple[Tensor, Tensor]:
        writes: dict[int, Tensor] = {}

        def hook(layer: int) -> Any:
            def see(_module: object, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
                if layer == skipped:
                    output = torch.cat([output[:, :1], args[0][:, 1:]], dim=1)
                writes[layer] = output - args[0]
                return output

            return see

        handles = [block.register_forward_hook(hook(layer)) for layer, block in enumerate(blocks)]
        probs = model.module(input_ids=batch.tokens, use_cache=False).logits.float().softmax(-1)
        for handle in handles:
            handle.remove()
        return torch.stack(list(writes.values())), probs

    clean, clean_probs = forward(None)
    effects, outputs = [], []
    for skipped in range(len(blocks)):
        writes, probs = forward(skipped)
        effects.append(relative_change(clean, writes)[:, :, 1:].amax(-1))
        outputs.append((clean_probs - probs).norm(dim=-1)[:, 1:].amax(-1))
    return torch.stack(effects), torch.stack(outputs)


@torch.no_grad()
def ours(model: Model, batch: TokenBatch, *scopes: str) -> dict[str, Tensor]:
    """Return the same from one staircase, recording included."""
    return LayerSkip(scopes=scopes).measure(model.record(batch), batch, {})


def run() -> dict[str, Any]:
    """Compare both at several sizes, after checking that they agree."""
    results: dict[str, Any] = {}
    for n_layers, d_model, batch_size, n_pos in ((12, 384, 1, 64), (12, 384, 8, 64), (12, 128, 8, 32), (48, 128, 1, 64)):
        model = random_llama(n_layers=n_layers, d_model=d_model)
        batch = random_batch(model, batch=batch_size, n_pos=n_pos)
        effects, outputs = naive_all(model, batch)
        arrays = ours(model, batch, "all")
        torch.testing.assert_close(arrays["all.max"].permute(1, 2, 0), effects, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(arrays["all.output_max"].T, outputs, rtol=1e-4, atol=1e-5)
        key = f"L={n_layers} d={d_model} B={batch_size} T={n_pos}"
        results[f"all positions, {key}"] = compare(
            lambda m=model, b=batch: ours(m, b, "all"), lambda m=model, b=batch: naive_all(m, b)
        ) | {"bound": round((n_layers + 1) / (2 * n_layers), 3)}
        if n_layers == 12:
            times = compare(
                lambda m=model, b=batch: ours(m, b, "all", "future", "direct"), lambda m=model, b=batch: naive_all(m, b)
            )
            results[f"all, future and direct with 4 splits, {key}"] = _scaled(times, n_layers)
    return results


def _scaled(times: dict[str, float], n_layers: int) -> dict[str, Any]:
    """Return ratios to the 10 L + 1 forwards of the naive loops, where L + 1 of them were timed."""
    scale = (n_layers + 1) / (10 * n_layers + 1)
    ratios = {key: round(times[key] * scale, 3) for key in ("ratio", "lowest", "highest")}
    return times | ratios | {"bound": 0.30, "naive": f"{10 * n_layers + 1} forwards, scaled from {n_layers + 1}"}
