"""Capturing a long corpus: peak memory against its length, seconds against forward and raw write, reading against np.memmap.

All residuals of `zoo/hops-8l`, kept as float16, of prompts of 128 tokens: 2.3 kB a token. Every measurement is a process of
its own; ours and the peer's take turns. The peer runs the same batches without hooks and writes as many bytes to one file.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_COMMON = """
import os, pathlib, sys, time
import numpy as np, torch, interp
from interp import Site
from interp.capture import capture
from interp.store import ActivationStore, Settings, open_corpus
torch.set_num_threads(1)
folder, n_tokens = pathlib.Path(sys.argv[1]), int(sys.argv[2])
def rows():
    generator = torch.Generator().manual_seed(0)
    for _ in range(n_tokens // 128):
        yield torch.randint(3, 351, (128,), generator=generator)
def peak():
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024
"""
_CAPTURE = """
model = interp.load_model("zoo/hops-8l", device="cpu")
sites = [Site("resid_pre", 0), *(Site("resid_post", layer) for layer in range(8))]
store = ActivationStore(folder / "store", model=model.fingerprint, settings=Settings(dtype="float16"))
began = time.perf_counter()
capture(model, rows(), sites=sites, name="corpus", store=store)
print(time.perf_counter() - began, peak())
"""
_PEER = """
model = interp.load_model("zoo/hops-8l", device="cpu")
began = time.perf_counter()
written = np.ones(9 * 32 * 128 * 128, dtype=np.float16)
batch = []
with open(folder / "raw", "wb") as file, torch.no_grad():
    for row in rows():
        batch.append(row)
        if len(batch) == 32:
            model.module(input_ids=torch.stack(batch), use_cache=False)
            file.write(written.data)
            batch = []
    file.flush()
    os.fsync(file.fileno())
print(time.perf_counter() - began, peak())
"""
_READ = """
corpus = open_corpus(folder / "store", "corpus")
column = np.concatenate([piece.numpy() for piece in corpus.column(Site("resid_post", 4))])
np.save(folder / "column.npy", column)
out = np.empty_like(column)
def ours():
    row = 0
    for piece in corpus.column(Site("resid_post", 4)):
        out[row : row + len(piece)] = piece.numpy()
        row += len(piece)
def peer():
    out[:] = np.load(folder / "column.npy", mmap_mode="r")
def seconds(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
ours(), peer()
pairs = [(seconds(ours), seconds(peer)) for _ in range(15)]
assert (out == column).all()
print(*map(lambda side: sorted(side)[len(side) // 2], zip(*pairs)))
"""


def _run(program: str, folder: str, n_tokens: int) -> list[float]:
    command = [sys.executable, "-c", _COMMON + program, folder, str(n_tokens)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return [float(number) for number in done.stdout.split()]


def run(n_tokens: int = 2_000_000, *, repeats: int = 3) -> dict[str, Any]:
    """Return peaks in MB and their ratio, and throughputs as shares of the peers'."""
    tokens = n_tokens // 4096 * 4096
    seconds, peers, peaks = [], [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            ours, peak = _run(_CAPTURE, folder, tokens)
            peer, _ = _run(_PEER, folder, tokens)
            (Path(folder) / "raw").unlink()
            read, mapped = _run(_READ, folder, tokens)
        seconds, peers, peaks = [*seconds, ours], [*peers, peer], [*peaks, peak]
    with tempfile.TemporaryDirectory() as folder:
        _, small = _run(_CAPTURE, folder, tokens // 10)
    return {
        "tokens": tokens,
        "peak_mb": {str(tokens // 10): round(small), str(tokens): round(max(peaks))},
        "peak ratio": round(max(peaks) / small, 3),
        "capture_s": round(statistics.median(seconds), 1),
        "forward and raw write_s": round(statistics.median(peers), 1),
        "throughput": round(statistics.median(p / s for p, s in zip(peers, seconds, strict=True)), 3),
        "read one site_s": round(read, 3),
        "np.memmap_s": round(mapped, 3),
        "read throughput": round(mapped / read, 3),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(int(sys.argv[1])), indent=1) + "\n")
