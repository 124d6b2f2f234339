"""Capturing a long corpus: memory by length, speed, and reading against np.memmap.

All residuals of `zoo/hops-8l`, kept as float16, of prompts of 128 tokens: 2.3 kB a token. Ours and
the peer take turns, a tenth of the tokens at a time, in one process; the peer runs the same batches
without hooks and writes as many bytes to one file. Reading adds up one site's bytes, in shards
against one file that stays mapped, the page cache warm, the disk idle and the shards verified.
"""

import json
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks.harness import Row, ratio

_PROGRAM = """
import json, os, pathlib, sys, time
import numpy as np, torch, interp
from interp import Site
from interp.capture import capture
from interp.store import ActivationStore, Settings
torch.set_num_threads(1)
folder, n_parts, has_peer = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[4] == "peer"
n_rows = int(sys.argv[3]) // 128 // 32 * 32
model = interp.load_model("zoo/hops-8l", device="cpu")
sites = [Site("resid_pre", 0), *(Site("resid_post", layer) for layer in range(8))]
settings = Settings(dtype="float16")
store = ActivationStore(folder / "store", model=model.fingerprint, settings=settings)

def rows(part):
    generator = torch.Generator().manual_seed(part)
    for _ in range(n_rows):
        yield torch.randint(3, 351, (128,), generator=generator)

def seconds(work, *args):
    began = time.perf_counter()
    work(*args)
    return time.perf_counter() - began

def peak():
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024

def ours(part):
    capture(model, rows(part), sites=sites, name=f"part{part}", store=store)

written = np.ones(len(sites) * 32 * 128 * 128, dtype=np.float16)

@torch.no_grad()
def peer(part):
    batch = []
    with open(folder / "raw", "wb") as file:
        for row in rows(part):
            batch.append(row)
            if len(batch) == 32:
                model.module(input_ids=torch.stack(batch), use_cache=False)
                file.write(written.data)
                batch = []
        file.flush()
        os.fsync(file.fileno())

pairs = []
for part in range(n_parts):
    pair = [seconds(ours, part), seconds(peer, part) if has_peer else 1.0]
    pairs.append(pair)
print(json.dumps({"tokens": n_parts * n_rows * 128, "pairs": pairs, "peak": peak()}), flush=True)
if not has_peer:
    sys.exit()
(folder / "raw").unlink()
texts = (row for part in range(n_parts) for row in rows(part))
corpus = capture(model, texts, sites=sites, name="all", store=store)
column = np.lib.format.open_memmap(folder / "column.npy", "w+", np.float16, (corpus.n_tokens, 128))
column[:] = np.concatenate([piece.numpy() for piece in corpus.column(sites[4])])
column.flush()
del column
os.sync()  # nothing is on its way to the disk any more

def read():
    return sum(int(piece.view(torch.int64).sum()) for piece in corpus.column(sites[4]))

column = torch.from_numpy(np.load(folder / "column.npy", mmap_mode="c").view(np.int64))

def mapped():
    return int(column.sum())

# sums of 64-bit integers wrap, Python's do not
assert (read() - mapped()) % 2**64 == 0
print(json.dumps([[seconds(read), seconds(mapped)] for _ in range(15)]))
"""


def _run(n_parts: int, n_tokens: int, peer: str) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _PROGRAM, folder, str(n_parts), str(n_tokens), peer]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def run(n_tokens: int = 2_000_000) -> dict[str, Row]:
    """Return peaks and their ratio, and times beside the peers'."""
    (small,) = _run(1, n_tokens // 10, "alone")
    (large,) = _run(10, n_tokens // 10, "alone")
    timed, read = _run(10, n_tokens // 10, "peer")
    peaks = {
        f"peak of a capture of {about['tokens']:,} tokens": {"mb": round(about["peak"])}
        for about in (small, large)
    }
    return peaks | {
        "the larger peak / the smaller": {
            "ratio": round(large["peak"] / small["peak"], 3),
            "bound": 1.0,
            "goal": 1.2,
        },
        "capture / forward and raw write of the bytes": (
            ratio(timed["pairs"]) | {"bound": 1.0, "goal": 1.25}
        ),
        "read one site of all prompts / np.memmap": (
            ratio(read) | {"bound": 1.0, "goal": round(1 / 0.7, 3)}
        ),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(int(sys.argv[1])), indent=1) + "\n")
