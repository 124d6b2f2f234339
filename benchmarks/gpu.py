"""One call for a GPU: real configurations in bf16, timed against the machine's ceilings.

`python -m benchmarks.gpu --model llama-3.1-8b --out DIR` needs no download: configurations are
built here, weights are random. It measures what matrix products and copies reach on this machine,
then a stock forward, a forward with capture, the clean pass of a recording and the sweep over all
skipped layers, each as a share of those ceilings, up to the longest prompt that fits; then how many
variants of a prompt one block takes at once, and the sweep with blocks that are read from disk.
Models are dense or, as bamba-9b, hybrids. `--model tiny --device cpu` is for tests.
"""

import gc
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.harness import machine, random_batch
from interp.analyses.layer_skip import LayerSkip
from interp.models import Model, load_model
from interp.models.dtypes import name_of
from interp.sites import Site

CONFIGS: dict[str, tuple[str, dict[str, int | bool | list[int]]]] = {
    "llama-3.1-8b": (
        "llama",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        },
    ),
    "qwen2.5-14b": (
        "qwen2",
        {
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_hidden_layers": 48,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "vocab_size": 152064,
        },
    ),
    "gpt2-xl": ("gpt2", {"n_embd": 1600, "n_layer": 48, "n_head": 25, "vocab_size": 50257}),
    "bamba-9b": (  # a hybrid: three layers of attention, all others recurrent
        "bamba",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "attn_layer_indices": [9, 18, 27],
            "mamba_n_heads": 128,
            "mamba_d_head": 64,
            "mamba_d_state": 256,
            "vocab_size": 128256,
        },
    ),
    "tiny-hybrid": (
        "bamba",
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "attn_layer_indices": [1],
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 16,
            "mamba_chunk_size": 8,
            "vocab_size": 128,
        },
    ),
    "tiny": (
        "llama",
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": 128,
        },
    ),
}
_LENGTHS = (128, 512, 2048, 8192, 32768)
_MOST_VARIANTS = 4096


def main(
    model: Annotated[
        list[str] | None,
        typer.Option(help=f"One of {', '.join(CONFIGS)}; without it all but the tiny ones."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("benchmarks/results"),
    device: str = "cuda",
    repeats: int = 5,
) -> None:
    """Measure model after model and write gpu-NAME.json after each, so that results stay."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    ceilings = _ceilings(device, dtype, size=8192 if device == "cuda" else 256)
    out.mkdir(parents=True, exist_ok=True)
    for name in model or [name for name in CONFIGS if not name.startswith("tiny")]:
        lengths = (16, 32) if name.startswith("tiny") else _LENGTHS
        measured = {
            "about": __doc__,
            **machine(),
            "device": _device_name(device),
            "ceilings": ceilings,
        }
        measured["results"] = measure(
            name, device=device, dtype=dtype, lengths=lengths, ceilings=ceilings, repeats=repeats
        )
        (out / f"gpu-{name}.json").write_text(
            json.dumps(measured, indent=1) + "\n", encoding="utf-8"
        )
        typer.echo(json.dumps(measured["results"], indent=1))
        _forget(device)


@torch.no_grad()
def measure(
    name: str,
    *,
    device: str,
    dtype: torch.dtype,
    lengths: tuple[int, ...],
    ceilings: dict[str, float],
    repeats: int,
) -> dict[str, Any]:
    """Return seconds and shares of the ceiling by work and length, up to the longest that fits."""
    model = _random(name, device=device, dtype=dtype)
    n_weights = (
        sum(p.numel() for p in model.module.parameters())
        - model.module.get_input_embeddings().weight.numel()
    )
    sites = [Site("resid_pre", layer) for layer in range(model.n_layers)]
    sweep = LayerSkip(scopes=("all",))
    works: dict[str, tuple[float, Callable[[Any], object]]] = {
        "stock forward": (1.0, model.logits),
        "forward with capture": (1.0, lambda batch: model.forward(batch, capture=sites)),
        "recording": (1.0, lambda batch: model.record(batch).resid(model.n_layers)),
        "skip every layer": (
            (model.n_layers + 1) / 2 + 1,
            lambda b: sweep.measure(model.record(b), b, {}),
        ),
    }
    results: dict[str, Any] = {}
    for work, (forwards, do) in works.items():
        for n_pos in lengths:
            if n_pos > getattr(
                model.module.config, "n_positions", n_pos
            ):  # learned positions end there
                break
            batch = random_batch(model, batch=1, n_pos=n_pos)
            _forget(device)
            try:
                seconds = _median(lambda d=do, b=batch: d(b), device, repeats)
            except torch.OutOfMemoryError:
                results[f"{work}, T = {n_pos}"] = {"fits": False}
                break
            flops = 2 * n_weights * n_pos * forwards
            results[f"{work}, T = {n_pos}"] = {
                "seconds": round(seconds, 5),
                "forwards": [forwards],
                "fits": True,
                "share_of_matmul": round(flops / seconds / ceilings["flops"], 4),
                "share_of_bandwidth": round(
                    n_weights * dtype.itemsize * forwards / seconds / ceilings["bytes"], 4
                ),
                "peak_mb": torch.cuda.max_memory_allocated() // 2**20 if device == "cuda" else None,
            }
    n_pos = min(512, *lengths)
    results[f"variants of one prompt that a block takes at once, T = {n_pos}"] = {
        "value": _variants(model, n_pos, device)
    }
    in_memory = results[f"skip every layer, T = {n_pos}"].get("seconds")
    results[f"skip every layer from disk, T = {n_pos}"] = _from_disk(
        model, sweep, n_pos=n_pos, device=device, in_memory=in_memory
    )
    return results


@torch.no_grad()
def _from_disk(
    model: Model, sweep: LayerSkip, *, n_pos: int, device: str, in_memory: float | None
) -> dict[str, Any]:
    """Return what a sweep takes whose blocks lie on disk, and how often it reads them, by two."""
    with tempfile.TemporaryDirectory() as folder:
        model.module.save_pretrained(folder)
        asked = {"device": device, "dtype": name_of(model.dtype), "device_map": "disk"}
        streamed = load_model(folder, **asked)
        batch = random_batch(streamed, batch=1, n_pos=n_pos)
        before, began = streamed.stream.bytes_read, time.perf_counter()
        sweep.measure(streamed.record(batch), batch, {})["all.kl_mean"].cpu()
        seconds = time.perf_counter() - began
        passes = (streamed.stream.bytes_read - before) / streamed.stream.disk_bytes
    ratio = None if in_memory is None else round(seconds / in_memory, 3)
    read = round(passes / 2, 3)
    return {"seconds": round(seconds, 5), "fits": True, "by_memory": ratio, "read_by_two": read}


@torch.no_grad()
def _variants(model: Model, n_pos: int, device: str) -> int:
    """Return the largest power of two that fits."""
    recording = model.record(random_batch(model, batch=1, n_pos=n_pos))
    resid, fits = recording.resid(1), 0
    while fits < _MOST_VARIANTS:
        _forget(device)
        try:
            recording.block(1, resid.repeat(max(1, 2 * fits), 1, 1))
        except torch.OutOfMemoryError:
            break
        fits = max(1, 2 * fits)
    return fits


def _forget(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _random(name: str, *, device: str, dtype: torch.dtype) -> Model:
    kind, shape = CONFIGS[name]
    config = AutoConfig.for_model(kind, **shape)
    torch.manual_seed(0)
    with torch.device(device):
        module = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return Model(name, module.eval().requires_grad_(requires_grad=False))


def _ceilings(device: str, dtype: torch.dtype, *, size: int) -> dict[str, float]:
    """Return what a large matrix product and a large copy reach, in FLOP/s and bytes/s."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    product = _median(lambda: a @ a, device, 10)
    copied = _median(lambda: a.clone(), device, 10)
    return {"flops": 2 * size**3 / product, "bytes": 2 * a.numel() * dtype.itemsize / copied}


def _median(work: Callable[[], object], device: str, repeats: int) -> float:
    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    work(), wait()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work(), wait()
        times.append(time.perf_counter() - began)
    return median(times)


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device


if __name__ == "__main__":
    typer.run(main)
