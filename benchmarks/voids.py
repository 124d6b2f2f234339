"""Voids: what 20 thresholds cost more than one, and what capturing a response costs more than generating it.

Bounds: no forward more for any number of thresholds; 1.15 of plain generation with a K/V cache.
"""

import dataclasses
from typing import Any

import torch

from benchmarks.harness import compare, random_batch, random_llama
from interp.analyses.void_detection import VoidDetection
from interp.models import Model
from interp.sweeps.voids import norms_of, respond
from interp.tasks.batch import TokenBatch


@torch.no_grad()
def detect(model: Model, batch: TokenBatch, *, n_alphas: int) -> float:
    """Find voids at so many thresholds, frame included, and return the forwards that it took."""
    recording = model.record(batch)
    analysis = VoidDetection(alpha=0.05, alphas=tuple((i + 1) / 20 for i in range(n_alphas)), max_new_tokens=0)
    analysis.combine([analysis.measure(recording, batch, {})]).to_frame()
    return recording.work.block_tokens / (batch.tokens.numel() * model.n_layers)


def run() -> dict[str, Any]:
    """Compare both, after checking that norms captured while generating are those of one forward over the whole text."""
    results: dict[str, Any] = {}
    for n_layers, d_model, batch_size, n_pos, new in ((12, 384, 8, 64, 16), (12, 384, 1, 64, 32), (6, 128, 32, 16, 8)):
        model = random_llama(n_layers=n_layers, d_model=d_model)
        batch = random_batch(model, batch=batch_size, n_pos=n_pos)
        key = f"L={n_layers} d={d_model} B={batch_size} T={n_pos}"
        one, twenty = detect(model, batch, n_alphas=1), detect(model, batch, n_alphas=20)
        times = compare(
            lambda m=model, b=batch: detect(m, b, n_alphas=20), lambda m=model, b=batch: detect(m, b, n_alphas=1)
        )
        results[f"20 thresholds against 1, {key}"] = times | {"forwards": [twenty, one], "bound_of_forwards": 1.0}
        _check(model, batch, new=new)
        results[f"norms of {new} new tokens, {key}"] = compare(
            lambda m=model, b=batch, n=new: respond(m, b, max_new_tokens=n),
            lambda m=model, b=batch, n=new: m.generate(b, max_new_tokens=n),
        ) | {"bound": 1.15}
    return results


@torch.no_grad()
def _check(model: Model, batch: TokenBatch, *, new: int) -> None:
    response = respond(model, batch, max_new_tokens=new)
    text = response.tokens[:, :-1]
    whole = dataclasses.replace(batch, tokens=text, mask=torch.ones_like(text, dtype=torch.bool))
    expected = norms_of(model.record(whole))[:, :, response.span]
    torch.testing.assert_close(response.norms, expected, rtol=1e-4, atol=1e-5)
