"""Skipping every layer, against full forwards with plain hooks on the stock model, one by one.

*All positions* is the naive L + 1 forwards; *everything* the 10 L + 1 of the paper's loops: all
positions, and for four splits future tokens and direct effects (arXiv 2505.13898, section 3.2).
Ours counts its recording in. The bound counts blocks, the stock forward's output head left out;
below it, several variants run as one batch, which small matrices use better than one prompt at a
time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Row, compare, random_batch, random_llama, size_of
from interp.analyses.layer_skip import LayerSkip
from interp.models import Model
from interp.sweeps.staircase import relative_change
from interp.tasks.batch import TokenBatch

Pass = tuple[Tensor, Tensor]  # writes [layer batch pos d_model], probabilities [batch pos d_vocab]
SIZES = (
    (4, 128, 8, 64),
    (12, 128, 1, 64),
    (12, 128, 1, 512),
    (12, 128, 8, 32),
    (12, 384, 1, 64),
    (12, 384, 8, 64),
    (12, 1024, 1, 64),
    (24, 384, 1, 64),
    (48, 128, 1, 64),
    (48, 128, 8, 64),
)


@torch.no_grad()
def forward(
    model: Model, batch: TokenBatch, *, before: Callable[..., Tensor], after: Callable[..., Tensor]
) -> Pass:
    """Run the stock model with hooks on every block.

    `before(layer, resid)` is what a block reads, `after(layer, resid, output)` what it returns.
    """
    writes: list[Tensor] = []

    def reading(layer: int) -> Any:
        return lambda _module, args: (before(layer, args[0]), *args[1:])

    def writing(layer: int) -> Any:
        def hook(_module: object, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            output = after(layer, args[0], output)
            writes.append(output - args[0])
            return output

        return hook

    handles = []
    for layer, block in enumerate(model.module.model.layers):
        handles.append(block.register_forward_pre_hook(reading(layer)))
        handles.append(block.register_forward_hook(writing(layer)))
    probs = model.module(input_ids=batch.tokens, use_cache=False).logits.float().softmax(-1)
    for handle in handles:
        handle.remove()
    return torch.stack(writes), probs


def as_is(_layer: int, resid: Tensor) -> Tensor:
    """Return what a block of the stock model reads."""
    return resid


def skipping(layer: int | None, *, stop: int | None = None) -> Callable[..., Tensor]:
    """Return an `after` that leaves `layer` out at positions 1 .. stop - 1."""

    def after(at: int, resid: Tensor, output: Tensor) -> Tensor:
        if at != layer:
            return output
        rest = [] if stop is None else [output[:, stop:]]
        return torch.cat([output[:, :1], resid[:, 1:stop], *rest], dim=1)

    return after


def effects(clean: Pass, passes: list[Pass], *, start: int) -> Pass:
    """Return the largest changes of writes [skipped affected batch] and output [skipped batch]."""
    start = max(start, 1)
    changes = [relative_change(clean[0], writes)[:, :, start:].amax(-1) for writes, _ in passes]
    outputs = [(clean[1] - probs).norm(dim=-1)[:, start:].amax(-1) for _, probs in passes]
    return torch.stack(changes), torch.stack(outputs)


def naive_all(model: Model, batch: TokenBatch, *, layers: Sequence[int] | None = None) -> Pass:
    """Skip every layer, or some, at all positions, by a forward each and a clean one."""
    clean, *passes = [
        forward(model, batch, before=as_is, after=skipping(s))
        for s in (None, *(range(model.n_layers) if layers is None else layers))
    ]
    return effects(clean, passes, start=0)


def naive_everything(
    model: Model, batch: TokenBatch, splits: list[int], *, layers: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """Skip every layer, or some, in all scopes, as published, by (2 + 2 splits) L + 1 forwards."""
    layers = range(model.n_layers) if layers is None else layers
    largest: dict[str, Tensor] = {}
    resid: list[Tensor] = []

    def see(_layer: int, read: Tensor) -> Tensor:
        resid.append(read)
        return read

    clean = forward(model, batch, before=see, after=skipping(None))

    def without(skipped: int, stop: int | None) -> Pass:
        def before(layer: int, _read: Tensor) -> Tensor:
            if layer <= skipped:
                return resid[layer]
            read = resid[layer].clone()
            read[:, 1:stop] -= clean[0][skipped][:, 1:stop]
            return read

        return forward(model, batch, before=before, after=skipping(None))

    for start in (0, *splits):
        stop = start or None
        skips = [forward(model, batch, before=as_is, after=skipping(s, stop=stop)) for s in layers]
        changes, outputs = effects(clean, skips, start=start)
        direct, _ = effects(clean, [without(s, stop) for s in layers], start=start)
        skip, alone = ("future", "direct_future") if start else ("all", "direct")
        for key, value in (
            (f"{skip}.max", changes),
            (f"{skip}.output_max", outputs),
            (f"{alone}.max", direct),
        ):
            largest[key] = torch.maximum(largest[key], value) if key in largest else value
    return largest


@torch.no_grad()
def ours(model: Model, batch: TokenBatch, *scopes: str) -> dict[str, Tensor]:
    """Return the same from one staircase, recording included."""
    return LayerSkip(scopes=scopes).measure(model.record(batch), batch, {})


def blocks_run(model: Model, batch: TokenBatch, *scopes: str) -> float:
    """Return how many forwards' worth of blocks ours takes, recording included."""
    recording = model.record(batch)
    with torch.no_grad():
        LayerSkip(scopes=scopes).measure(recording, batch, {})
    return round(recording.work.block_tokens / (batch.tokens.numel() * model.n_layers), 2)


def check(arrays: dict[str, Tensor], naive: dict[str, Tensor]) -> None:
    """Raise unless all effects are the naive ones."""
    for key, value in naive.items():
        order = (1, 2, 0) if value.ndim == 3 else (1, 0)
        torch.testing.assert_close(arrays[key].permute(*order), value, rtol=1e-4, atol=2e-5)


def even_splits(n_pos: int) -> list[int]:
    """Return where four splits lie."""
    return sorted({round(t) for t in np.linspace(2, n_pos - 2, 4)})


def run() -> dict[str, Row]:
    """Compare at several sizes, after checking that both agree."""
    rows: dict[str, Row] = {}
    every = ("all", "future", "direct")
    for n_layers, d_model, batch_size, n_pos in SIZES:
        model = random_llama(n_layers=n_layers, d_model=d_model)
        batch = random_batch(model, batch=batch_size, n_pos=n_pos)
        changes, outputs = naive_all(model, batch)
        check(ours(model, batch, "all"), {"all.max": changes, "all.output_max": outputs})
        bound = (n_layers + 1) / (2 * n_layers)
        row = compare(
            lambda m=model, b=batch: ours(m, b, "all"), lambda m=model, b=batch: naive_all(m, b)
        )
        counted = {"forwards": [blocks_run(model, batch, "all"), n_layers + 1]}
        goal = {"goal": round(1.15 * bound, 3)} if n_layers in (12, 48) else {}
        rows[f"all positions, {size_of(model, batch)}"] = (
            row | counted | {"bound": round(bound, 3)} | goal
        )
        if n_layers == 12 and n_pos <= 64 and (d_model, batch_size) in ((128, 8), (384, 1)):
            splits = even_splits(n_pos)
            check(ours(model, batch, *every), naive_everything(model, batch, splits))
            row = compare(
                lambda m=model, b=batch: ours(m, b, *every),
                lambda m=model, b=batch, s=splits: naive_everything(m, b, s),
            )
            counted = {
                "forwards": [blocks_run(model, batch, *every), 10 * n_layers + 1],
                "bound": 0.3,
                "goal": 0.35,
            }
            rows[f"everything, {size_of(model, batch)}"] = row | counted
    return rows
