"""Two workers against one thread on `layer_skip`, and how well a dry run foretells the time."""

import json
import os
import subprocess
import sys
import tempfile
from statistics import median
from typing import Any

from benchmarks.harness import Row, ratio

_SHARES = """
import json, pathlib, sys, time, torch
from interp.runs import Study, execute
torch.set_num_threads(1)
seen = []
def progress(now):
    if now.share:
        seen.append((now.share, time.monotonic()))
analyses = {"layer_skip": {"scopes": ["all", "future", "direct"]}}
study = Study(("zoo/hops-8l",), ("two-hop",), analyses, n=1500)
began = time.monotonic()
execute(study, pathlib.Path(sys.argv[2]) / "run", workers=int(sys.argv[1]), progress=progress)
(before, first), (done, last) = seen[7], seen[-1]  # all workers have loaded the model by then
print(json.dumps({"whole": (last - first) / (done - before), "start": first - began}))
"""
_SIZE = """
import json, sys, time, torch, interp
from interp.runs.registry import make_analysis
torch.set_num_threads(1)
model = interp.load_model("zoo/hops-8l")
task = interp.load_task("two-hop", n=32)
shard = model.tokenize(max(model.shards(task), key=len))
model.logits(shard)
began = time.monotonic()
for _ in range(10):
    model.logits(shard)
forward = (time.monotonic() - began) / 10
ratios = {}
for name in ("layer_skip", "residual_erasure", "back_patching", "void_skip", "depth_score"):
    analysis = make_analysis(name, {})
    prepared = analysis.prepare(model, task)
    stated = (1 + analysis.cost(model, shard).forwards) * forward
    began = time.monotonic()
    with torch.no_grad():
        analysis.measure(model.record(shard), shard, prepared)
    ratios[name] = round((time.monotonic() - began) / stated, 2)
print(json.dumps(ratios))
"""


def run() -> dict[str, Row]:
    """Return medians of five interleaved repeats."""
    rounds = [{n: _measured(_SHARES, str(n)) for n in (1, 2)} for _ in range(5)]
    shards = ratio([(each[2]["whole"], each[1]["whole"]) for each in rounds])
    rows: dict[str, Row] = {
        "time of the shards, two workers / one thread": (
            shards | {"bound": 0.5, "goal": round(1 / 1.6, 3)}
        )
    }
    for n in (1, 2):
        rows[f"until shards flow, {n} worker(s)"] = {
            "seconds": round(median(each[n]["start"] for each in rounds), 1)
        }
    for name, share in _measured(_SIZE).items():
        rows[f"measured time / stated forwards × a forward's time, {name}"] = {"ratio": share}
    return rows


def _measured(program: str, *args: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", program, *args, folder],
            capture_output=True,
            check=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    return json.loads(done.stdout.splitlines()[-1])
