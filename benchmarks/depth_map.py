"""Depth maps in closed form, against 2,000 AdamW steps of the paper's recipe.

The recipe (arXiv 2505.13898 and its code): one linear layer with bias from a source site to all
target sites at once, plain mean squared error, 64 sequences a step, weight decay 0.01, gradient
norm clipped at 0.25, 200 steps of warm-up, then a cosine to a tenth. Scaled: 2,000 steps, not
10,000, and sequences of a dozen tokens. Beside its learning rate, ten times that is tried, and
every pair of sites is judged at the better one. Both sides read residuals that are known already.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.harness import Row
from interp import load_model, load_task
from interp.analyses.depth_map import DepthMap
from interp.analyses.depth_map.split import Role, batches_by_role
from interp.analyses.depth_map.tap_maps import TapMaps
from interp.analyses.depth_map.taps import taps
from interp.files.paths import shipped_models
from interp.models import Model
from interp.tasks.batch import TokenBatch

STEPS, SEQUENCES, WARMUP, RATES = 2000, 64, 200, (2.5e-4, 2.5e-3)


class _Flops(TorchDispatchMode):
    """Counts products; torch's own counter hooks modules, so that what is stored is not read."""

    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def trained(x: Tensor, y: Tensor, *, batch: int, rate: float, seed: int = 0) -> torch.nn.Linear:
    """Return a map from x [token d1] to y [token d2], trained as published."""
    torch.manual_seed(seed)
    layer = torch.nn.Linear(x.shape[1], y.shape[1])
    optimizer = torch.optim.AdamW(
        layer.parameters(), lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
    )
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / WARMUP, total_iters=WARMUP)
    cool = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS - WARMUP, eta_min=rate / 10)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cool], [WARMUP])
    for _ in range(STEPS):
        rows = torch.randint(len(x), (batch,))
        loss = mse_loss(layer(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(layer.parameters(), 0.25)
        optimizer.step()
        schedule.step()
    return layer.requires_grad_(False)


def tokens_of(model: Model, batches: Sequence[TokenBatch]) -> Tensor:
    """Return every residual [tap token d_model] without position 0."""
    return torch.cat(
        [taps(model.record(batch), "residual")[:, :, 1:].flatten(1, 2) for batch in batches], dim=1
    )


def run(source: str = "zoo/hops-4l", target: str | None = None, *, n: int = 1200) -> dict[str, Row]:
    """Fit and test both on the same tokens; fail if the best sources predict worse.

    Single pairs may: both minimise squared errors, and are judged by the mean of ‖y - ŷ‖ / ‖y‖.
    """
    target = target or ("zoo/hops-8l" if "zoo/hops-8l" in shipped_models() else source)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        ours, theirs = (load_model(name, store=Path(folder)) for name in (source, target))
        analysis = DepthMap(target=target)
        batches = batches_by_role(ours, ours.shards(load_task("two-hop", n=n)), seed=0)
        analysis.check(ours, batches["test"][0])
        maps = TapMaps(ours, ours if source == target else theirs)
        for _ in range(2):  # fill the store, and verify it
            maps.fit_and_test(batches)
        error, our_seconds, our_flops = _ours(maps, batches)
        learnt = [*batches["fit"], *batches["validation"]]
        x, y = tokens_of(ours, learnt), tokens_of(theirs, learnt)
        held_x, held_y = tokens_of(ours, batches["test"]), tokens_of(theirs, batches["test"])
    x, y, held_x, held_y = x.clone(), y.clone(), held_x.clone(), held_y.clone()
    wide, batch = (
        y.transpose(0, 1).flatten(1),
        SEQUENCES * x.shape[1] // sum(len(b.prompts) for b in learnt),
    )
    peers, seconds = [], []
    for rate in RATES:
        began, by_source = time.process_time(), []
        for source_x, held in zip(x, held_x, strict=True):
            layer = trained(source_x, wide, batch=batch, rate=rate)
            missed = (held_y - layer(held).unflatten(1, (len(y), -1)).transpose(0, 1)).norm(dim=-1)
            by_source.append((missed / held_y.norm(dim=-1)).mean(1))
        seconds.append(time.process_time() - began)
        peers.append(torch.stack(by_source))
    flops = (
        4 * STEPS * batch * len(x) * x.shape[2] * wide.shape[1]
    )  # forward, and the weights' gradients; none flow into x
    peer = torch.stack(peers).amin(0)
    worst = float((error - peer).max())
    if _best(error) > _best(peer):
        raise AssertionError(f"training maps better: {_best(error)}, {_best(peer)}")
    seconds_row = {"ours_s": round(our_seconds, 2), "peer_s": round(min(seconds), 1)}
    return {
        f"{source} → {target}, {x.shape[1]} tokens fitted, FLOPs": {
            "ratio": round(our_flops / flops, 5),
            "goal": 0.01,
        },
        "the same, CPU time": seconds_row | {"ratio": round(our_seconds / min(seconds), 5)},
        f"error at the best source, {held_x.shape[1]} tokens held out, ours": {
            "value": _best(error)
        },
        "the same, trained": {"value": _best(peer)},
        "largest of ours minus trained, over all pairs": {"value": round(worst, 5)},
    }


def _best(error: Tensor) -> float:
    return round(float(error[1:, 1:].amin(0).mean()), 4)


def _ours(maps: TapMaps, batches: dict[Role, list[TokenBatch]]) -> tuple[Tensor, float, float]:
    """Return held-out errors [source target], seconds and FLOPs.

    FLOPs are the products counted, and 25 d³ for every factorisation.
    """
    began = time.process_time()
    prepared = maps.fit_and_test(batches)
    seconds = time.process_time() - began
    with _Flops() as counter:
        maps.fit_and_test(batches)
    n_factorised = 2 * (maps.source.n_layers + 1)
    n_tokens = sum(batch.tokens[:, 1:].numel() for batch in batches["test"])
    error = sum(value[0, :-1] for key, value in prepared.items() if key != "ridge") / n_tokens
    return error, seconds, counter.total + n_factorised * 25 * maps.source.d_model**3
