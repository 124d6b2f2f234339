"""Parallel windows against running every window by itself, and the logit lens against whole rows of logits.

Bounds: all windows cost (L + 1)/2 forwards, clean pass included, where one by one they cost (L + 1)(L + 2)/6 (and a clean
pass); the lens does the same unembeddings as its peer, in less memory.
"""

import json
import subprocess
import sys
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import compare, random_batch, random_llama
from interp.analyses.logit_lens import LogitLens
from interp.analyses.parallel_window import ParallelWindow
from interp.models import Model
from interp.tasks.batch import TokenBatch

_PEAK = """
import pathlib, sys
from benchmarks.harness import random_batch, random_llama
from benchmarks.reductions import lens, naive_lens
look = {"ours": lens, "peer": naive_lens}[sys.argv[1]]
def peak():  # not ru_maxrss, which a process inherits from the one that starts it
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
model = random_llama(n_layers=4, d_model=128, d_vocab=65536)
look(model, random_batch(model, batch=1, n_pos=8))
before = peak()
look(model, random_batch(model, batch=1, n_pos=1024))
print(peak() - before)
"""


@torch.no_grad()
def naive_windows(model: Model, batch: TokenBatch) -> Tensor:
    """Return the relative error [batch first last] of every window, run by itself on the clean residuals."""
    recording, layers = model.record(batch), model.n_layers
    errors = torch.zeros(len(batch.tokens), layers, layers)
    for first in range(layers):
        resid = recording.resid(first)
        for last in range(first, layers):
            writes = sum((recording.block(layer, resid) - resid for layer in range(first, last + 1)), torch.zeros(()))
            after = recording.resid(last + 1)
            errors[:, first, last] = ((resid + writes - after).norm(dim=-1) / (after - resid).norm(dim=-1)).mean(1)
    return errors


@torch.no_grad()
def windows(model: Model, batch: TokenBatch) -> Tensor:
    """Return the same from half a sweep."""
    return ParallelWindow().measure(model.record(batch), batch, {})["windows"][..., 0]


@torch.no_grad()
def naive_lens(model: Model, batch: TokenBatch) -> Tensor:
    """Return KL(lens‖final) and the top-5 overlap [batch layer 2], means over positions, from whole logits."""
    output = model.module(batch.tokens, output_hidden_states=True, use_cache=False)
    final = output.logits.float().log_softmax(-1)
    tops = torch.zeros_like(final).scatter_(-1, final.topk(5).indices, 1.0)
    curves = []
    for resid in output.hidden_states[:-1]:
        lens_logits = model.unembed(resid).float().log_softmax(-1)
        kl = (lens_logits.exp() * (lens_logits - final)).sum(-1)
        shared = (torch.zeros_like(final).scatter_(-1, lens_logits.topk(5).indices, 1.0) * tops).sum(-1) / 5
        curves.append(torch.stack([kl.mean(1), shared.mean(1)], dim=-1))
    return torch.stack(curves, dim=1)


@torch.no_grad()
def lens(model: Model, batch: TokenBatch) -> Tensor:
    """Return the same a few tokens at a time, clean pass included."""
    read = LogitLens().measure(model.record(batch), batch, {})["readings"]
    return read[:, :-1, :, [0, 2]].mean(2)


def run() -> dict[str, Any]:
    """Compare both at several sizes, after checking that they agree."""
    results: dict[str, Any] = {}
    for n_layers, d_model, batch_size, n_pos in ((12, 384, 1, 64), (12, 128, 8, 32), (24, 128, 1, 64)):
        model = random_llama(n_layers=n_layers, d_model=d_model)
        batch = random_batch(model, batch=batch_size, n_pos=n_pos)
        torch.testing.assert_close(windows(model, batch), naive_windows(model, batch), rtol=1e-4, atol=1e-4)
        key = f"all parallel windows / one by one, L={n_layers} d={d_model} B={batch_size} T={n_pos}"
        times = compare(lambda m=model, b=batch: windows(m, b), lambda m=model, b=batch: naive_windows(m, b))
        one_by_one = (n_layers + 1) * (n_layers + 2) / 6 + 1
        results[key] = times | {"bound": round((n_layers + 1) / 2 / one_by_one, 3)}
    for d_vocab, n_pos in ((2048, 64), (32768, 256)):
        model = random_llama(n_layers=12, d_model=384, d_vocab=d_vocab)
        batch = random_batch(model, batch=2, n_pos=n_pos)
        torch.testing.assert_close(lens(model, batch), naive_lens(model, batch), rtol=1e-4, atol=1e-4)
        results[f"logit lens / whole logits, V={d_vocab} B=2 T={n_pos}"] = compare(
            lambda m=model, b=batch: lens(m, b), lambda m=model, b=batch: naive_lens(m, b), repeats=3
        )
    peaks = {who: _peak(who) for who in ("ours", "peer")}
    results["peak memory of the lens / whole logits, V=65536 B=1 T=1024"] = {
        f"{who}_mb": round(mb) for who, mb in peaks.items()
    } | {"ratio": round(peaks["ours"] / peaks["peer"], 3)}
    return results


def _peak(who: str) -> float:
    """Return the growth of the peak in MB of a process that looks through the lens."""
    done = subprocess.run([sys.executable, "-c", _PEAK, who], capture_output=True, check=True, text=True)
    return float(json.loads(done.stdout))
