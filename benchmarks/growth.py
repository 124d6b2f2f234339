"""How time and memory of a sweep grow with layers, tokens and prompts: exponents of fitted powers.

Skipping every layer replays (L + 1) / 2 of the blocks of L + 1 forwards: quadratic in L like the
naive loop, at half its cost. All back-patches at one token are cubic in L, in blocks of one token;
the naive loop is cubic in L too, in blocks of all tokens. In tokens the exponent is between 1
(matrix products) and 2 (attention), in prompts of a shard 1. Small sizes use the machine less well,
so measured exponents are below the counted ones. Memory is the growth of a fresh process's peak,
recording included.
"""

import numpy as np

from benchmarks import back_patching, layer_skip
from benchmarks.harness import Row, Work, grown_mb, medians, random_batch, random_llama

_SIZES = {"layers": (4, 8, 16, 32), "tokens": (32, 64, 128, 256), "prompts": (1, 2, 4, 8)}
_BASE = {"layers": 8, "tokens": 64, "prompts": 2}
_LARGER = {"layers": 8, "tokens": 256, "prompts": 8}  # for memory, which is counted in pages


def _works(layers: int, tokens: int, prompts: int) -> dict[str, Work]:
    model = random_llama(n_layers=layers, d_model=128)
    batch = random_batch(model, batch=prompts, n_pos=tokens)
    return {
        "skip every layer": lambda: layer_skip.ours(model, batch, "all"),
        "skip every layer, naive": lambda: layer_skip.naive_all(model, batch),
        "all back-patches": lambda: back_patching.ours(model, batch),
        "capture 3 sites × L": lambda: model.record(batch).resid(0),
    }


def _alone(work: str, sizes: dict[str, int]) -> Work:
    _works(2, 8, 1)[work]()
    return _works(**sizes)[work]


def run() -> dict[str, Row]:
    """Return exponents by what grows."""
    rows: dict[str, Row] = {}
    for what, sizes in _SIZES.items():
        timed = [medians(_works(**_BASE | {what: size})) for size in sizes]
        for work in timed[0]:
            rows[f"time of {work} against {what}"] = _fitted(
                sizes, [each[work] for each in timed], "s"
            )
    for work in ("skip every layer", "all back-patches", "capture 3 sites × L"):
        for what, sizes in _SIZES.items():
            grown = [grown_mb(_alone, work, _LARGER | {what: size}) for size in sizes]
            rows[f"memory of {work} against {what}"] = _fitted(sizes, grown, "MB")
    return rows


def _fitted(sizes: tuple[int, ...], values: list[float], unit: str) -> Row:
    slope = float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)[0])
    listed = ", ".join(
        f"{size}: {value:.3g} {unit}" for size, value in zip(sizes, values, strict=True)
    )
    return {"exponent": round(slope, 2), "values": listed}
