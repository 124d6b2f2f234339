"""What benchmarks share: interleaved timing, memory peaks, counted forwards, random models.

A benchmark is a module whose `run()` returns rows by name. What a row may hold: `ratio` of medians,
ours by the peer's, or `seconds`, `mb`, an `exponent`, a `value`; beside it `lowest` and `highest`,
the `bound`, the `goal` (never above it), and `forwards` counted, ours and the peer's.
"""

import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import interp
from interp.models import Model
from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch

Row = dict[str, Any]
Work = Callable[[], object]


def compare(ours: Work, peer: Work, *, repeats: int = 5) -> Row:
    """Time both in turns; return the ratio of medians and the range of paired ratios.

    Taking turns lets a noisy machine hit both.
    """
    ours(), peer()
    return ratio([(seconds(ours), seconds(peer)) for _ in range(repeats)])


def ratio(pairs: list[tuple[float, float]]) -> Row:
    """Return the row of paired seconds, ours and the peer's."""
    ratios = sorted(a / b for a, b in pairs)
    ours, peer = (statistics.median(side) for side in zip(*pairs, strict=True))
    return {
        "ours_s": round(ours, 5),
        "peer_s": round(peer, 5),
        "ratio": round(ours / peer, 4),
        "lowest": round(ratios[0], 4),
        "highest": round(ratios[-1], 4),
    }


def seconds(work: Work) -> float:
    """Return the wall time of a piece of work."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def medians(works: dict[str, Work], *, repeats: int = 5) -> dict[str, float]:
    """Let all take turns and return their median seconds."""
    for work in works.values():
        work()
    times = [{name: seconds(work) for name, work in works.items()} for _ in range(repeats)]
    return {name: statistics.median(each[name] for each in times) for name in works}


def grown_mb(prepare: Callable[..., Work], *args: Any) -> float:
    """Return how many MB a fresh process's peak grows by while it runs `prepare(*args)()`.

    Every tensor gets pages of its own there, so that what is freed counts as free, and not as a
    hole in the heap.
    """
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 16)  # read by glibc when the process starts
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(_grown, prepare, args).result()


def _grown(prepare: Callable[..., Work], args: tuple[Any, ...]) -> float:
    torch.set_num_threads(1)
    work = prepare(*args)
    before = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    work()
    return memory_mb("VmHWM") - before


def memory_mb(what: str) -> float:
    """Return this process's resident memory (VmRSS) or its peak (VmHWM).

    getrusage would count a larger parent's.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) / 1024


def machine() -> dict[str, object]:
    """Return what a result depends on besides the code: date, machine, versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = ("torch", "transformers", "transformer-lens", "nnsight")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": (
            f"{platform.system()} {platform.machine()}, {cores} cores, {torch.get_num_threads()}"
            " thread(s)"
        ),
        "versions": (
            {"interp": interp.__version__}
            | {name: version(name) for name in packages if _is_there(name)}
        ),
    }


def _is_there(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def random_llama(*, n_layers: int, d_model: int, d_vocab: int = 2048, seed: int = 0) -> Model:
    """Return a Llama with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=d_vocab,
        hidden_size=d_model,
        intermediate_size=8 * d_model // 3,
        num_hidden_layers=n_layers,
        num_attention_heads=d_model // 32,
        num_key_value_heads=d_model // 64,
        tie_word_embeddings=True,
    )
    return Model(f"llama-{n_layers}x{d_model}", AutoModelForCausalLM.from_config(config).float())


def random_batch(model: Model, *, batch: int, n_pos: int, seed: int = 0) -> TokenBatch:
    """Return random tokens of one length, where the model is, whose answers are one token each."""
    ids = torch.randint(
        3, model.d_vocab, (batch, n_pos), generator=torch.Generator().manual_seed(seed)
    ).to(model.device)
    prompts = tuple(Prompt(str(i), "x", answer="x") for i in range(batch))
    last = torch.full((batch,), n_pos - 1, device=model.device)
    answer = torch.full((batch, 1), 3, device=model.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    return TokenBatch(prompts, ids, mask, last, answer=answer[:, 0], answer_tokens=answer)


def size_of(model: Model, batch: TokenBatch) -> str:
    """Return the size of a piece of work in words."""
    n, n_pos = batch.tokens.shape
    return f"L = {model.n_layers}, d = {model.d_model}, batch {n}, T = {n_pos}"
