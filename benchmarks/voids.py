"""Voids: the cost of 20 thresholds over one, and of capturing a response over generating it.

Any number of thresholds takes one forward; what grows is the table with its intervals.
"""

import dataclasses

import torch

from benchmarks.harness import Row, compare, random_batch, random_llama, size_of
from interp.analyses.void_detection import VoidDetection
from interp.analyses.void_detection.responses import respond
from interp.models import Model
from interp.sweeps.voids import norms_of
from interp.tasks.batch import TokenBatch


@torch.no_grad()
def detect(model: Model, batch: TokenBatch, *, n_alphas: int) -> float:
    """Find voids at so many thresholds, frame included, and return the forwards that it took."""
    recording = model.record(batch)
    analysis = VoidDetection(
        alpha=0.05, alphas=tuple((i + 1) / 20 for i in range(n_alphas)), max_new_tokens=0
    )
    analysis.combine([analysis.measure(recording, batch, {})]).to_frame()
    return recording.work.block_tokens / (batch.tokens.numel() * model.n_layers)


def run() -> dict[str, Row]:
    """Compare both, after checking norms captured while generating against one forward."""
    rows: dict[str, Row] = {}
    for n_layers, d_model, batch_size, n_pos, new in (
        (12, 384, 8, 64, 16),
        (12, 384, 1, 64, 32),
        (6, 128, 32, 16, 8),
    ):
        model = random_llama(n_layers=n_layers, d_model=d_model)
        batch = random_batch(model, batch=batch_size, n_pos=n_pos)
        size = size_of(model, batch)
        one, twenty = detect(model, batch, n_alphas=1), detect(model, batch, n_alphas=20)
        times = compare(
            lambda m=model, b=batch: detect(m, b, n_alphas=20),
            lambda m=model, b=batch: detect(m, b, n_alphas=1),
        )
        rows[f"20 thresholds against 1, frames and intervals included, {size}"] = times | {
            "forwards": [twenty, one]
        }
        _check(model, batch, new=new)
        rows[f"norms of {new} new tokens against plain generation, {size}"] = compare(
            lambda m=model, b=batch, n=new: respond(m, b, max_new_tokens=n),
            lambda m=model, b=batch, n=new: m.generate(b, max_new_tokens=n),
        ) | {"bound": 1.0, "goal": 1.15}
    return rows


@torch.no_grad()
def _check(model: Model, batch: TokenBatch, *, new: int) -> None:
    response = respond(model, batch, max_new_tokens=new)
    text = response.tokens[:, :-1]
    whole = dataclasses.replace(batch, tokens=text, mask=torch.ones_like(text, dtype=torch.bool))
    expected = norms_of(model.record(whole))[:, :, response.span]
    torch.testing.assert_close(response.norms, expected, rtol=1e-4, atol=1e-5)
