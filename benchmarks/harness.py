"""Interleaved timing: ours and the peer's take turns, so that a noisy machine hits both."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import interp
from interp.models import Model
from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch


def compare(ours: Callable[[], object], peer: Callable[[], object], *, repeats: int = 5) -> dict[str, float]:
    """Return the median seconds of both and the ratio of ours to the peer's, with the range of paired ratios."""
    ours(), peer()
    pairs = [(_seconds(ours), _seconds(peer)) for _ in range(repeats)]
    ratios = sorted(a / b for a, b in pairs)
    seconds = [statistics.median(side) for side in zip(*pairs, strict=True)]
    return {
        "ours_s": round(seconds[0], 4),
        "peer_s": round(seconds[1], 4),
        "ratio": round(seconds[0] / seconds[1], 3),
        "lowest": round(ratios[0], 3),
        "highest": round(ratios[-1], 3),
    }


def machine() -> dict[str, object]:
    """Return what a result depends on besides the code: date, machine, versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = ("torch", "transformers", "transformer-lens", "nnsight")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {cores} cores, {torch.get_num_threads()} threads",
        "versions": {"interp": interp.__version__} | {name: version(name) for name in packages if _is_there(name)},
    }


def _is_there(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def random_llama(*, n_layers: int, d_model: int, d_vocab: int = 2048, seed: int = 0) -> Model:
    """Return a Llama with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=d_vocab, hidden_size=d_model, intermediate_size=8 * d_model // 3, num_hidden_layers=n_layers,
        num_attention_heads=d_model // 32, num_key_value_heads=d_model // 64, tie_word_embeddings=True,
    )  # fmt: skip
    return Model(f"llama-{n_layers}x{d_model}", AutoModelForCausalLM.from_config(config).float())


def random_batch(model: Model, *, batch: int, n_pos: int, seed: int = 0) -> TokenBatch:
    """Return random tokens of one length, where the model is."""
    ids = torch.randint(3, model.d_vocab, (batch, n_pos), generator=torch.Generator().manual_seed(seed)).to(model.device)
    prompts = tuple(Prompt(str(i), "x") for i in range(batch))
    last = torch.full((batch,), n_pos - 1, device=model.device)
    return TokenBatch(prompts, ids, torch.ones_like(ids, dtype=torch.bool), last)
