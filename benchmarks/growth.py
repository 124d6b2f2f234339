"""How the time of a sweep grows with layers, tokens and prompts: exponents of a fitted power, beside the naive loop's.

Skipping every layer replays (L + 1) / 2 of the blocks of L + 1 forwards: quadratic in L like the naive loop, at half
its cost. In tokens the exponent is between 1 (matrix products) and 2 (attention), in prompts 1.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from benchmarks.harness import random_batch, random_llama
from benchmarks.layer_skip import naive_all, ours

_SIZES = {"layers": (4, 8, 16, 32), "tokens": (32, 64, 128, 256), "prompts": (1, 2, 4, 8)}
_BASE = {"layers": 8, "tokens": 64, "prompts": 2}


def run(repeats: int = 5) -> dict[str, Any]:
    """Return exponents by what grows."""
    results: dict[str, Any] = {}
    for what, sizes in _SIZES.items():
        times: dict[str, list[float]] = {"ours": [], "naive": []}
        for size in sizes:
            at = _BASE | {what: size}
            model = random_llama(n_layers=at["layers"], d_model=128)
            batch = random_batch(model, batch=at["prompts"], n_pos=at["tokens"])
            works = {"ours": lambda m=model, b=batch: ours(m, b, "all"), "naive": lambda m=model, b=batch: naive_all(m, b)}
            for name, seconds in _interleaved(works, repeats).items():
                times[name].append(seconds)
        for name, seconds in times.items():
            slope = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
            told = ", ".join(f"{size}: {each:.3f} s" for size, each in zip(sizes, seconds, strict=True))
            results[f"{name}, time against {what} ({told})"] = {"exponent": round(slope, 2)}
    return results


def _interleaved(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - began)
    return {name: median(each) for name, each in times.items()}
