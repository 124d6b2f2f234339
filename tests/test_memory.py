"""Memory that analyses state is what they take, on a model with many tokens."""

import json
import os
import subprocess
import sys

import pytest

# a fresh process for each: what one frees would count as free for the next
MEASURE = """
import json, sys, torch
from dataclasses import replace
from pathlib import Path
from benchmarks.harness import memory_mb, random_llama
from benchmarks.relevance_patching import paired
from interp.runs.registry import make_analysis

torch.set_num_threads(1)
model = random_llama(n_layers=6, d_model=128, d_vocab=50_000)
shard = paired(model, batch=8, n_pos=24)
shard = replace(shard, subject=torch.full((8,), 12), subject_start=torch.full((8,), 12))
shard = replace(shard, bridge=shard.tokens[:, 4])
name, parameters = sys.argv[1], json.loads(sys.argv[2])
analysis = make_analysis(name, parameters)
prepared = {"mean": torch.zeros(7, 128), "kept": torch.ones(0)}
clean = (3 * model.n_layers + 1) * model.d_model * shard.tokens.numel()
stated = 4 * (clean + analysis.cost(model, shard).held) / 2**20
with model.running, torch.no_grad():
    model.bridge.unembed, model.forward(shard, positions=slice(1))
    before = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    analysis.measure(model.record(shard), shard, prepared)
print(json.dumps([stated, memory_mb("VmHWM") - before]))
"""
MEASURED: dict[str, dict[str, object]] = {"logit_lens": {}}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("name", MEASURED)
def test_stated_memory_is_near_the_peak(name: str) -> None:
    command = [sys.executable, "-c", MEASURE, name, json.dumps(MEASURED[name])]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)},  # what is freed counts as free
    )
    stated, peak = json.loads(done.stdout.splitlines()[-1])
    assert peak / 1.3 <= stated <= 1.3 * peak, f"{stated:.0f} MB stated, {peak:.0f} MB taken"
