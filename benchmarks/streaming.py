"""Blocks read from disk, against the same model in memory and against accelerate's disk offload.

The work is layer skip of every layer: a clean pass and one sweep for every prompt, so that a block
has to be read twice. The checkpoint is random, in bfloat16, of 8 layers and d = 512; `python -m
benchmarks.streaming` takes a 3B model's shape, or another (`--layers 4 --d-model 256`). Every model
is measured in a process of its own. Offloading loads a block for every call, so one forward of it
is measured, and what layer skip takes of them is counted.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from benchmarks.harness import Row, memory_mb
from interp.analyses.layer_skip import LayerSkip
from interp.models import Model, load_model
from interp.models.streaming import stream_of
from interp.tasks import Prompt, Task


@dataclass(frozen=True)
class Shape:
    """A model's shape; by default that of Llama 3.2 3B."""

    layers: int = 28
    d_model: int = 3072
    d_mlp: int = 8192
    heads: int = 24
    kv_heads: int = 8
    d_vocab: int = 128256

    @classmethod
    def small(cls, *, layers: int, d_model: int) -> "Shape":
        """Return a shape of the same proportions."""
        heads = max(2, d_model // 128)
        return cls(layers, d_model, 8 * d_model // 3, heads, max(1, heads // 3), 2048)

    def config(self) -> LlamaConfig:
        """Return the configuration of a Llama."""
        return LlamaConfig(
            vocab_size=self.d_vocab,
            hidden_size=self.d_model,
            intermediate_size=self.d_mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            tie_word_embeddings=True,
            dtype="bfloat16",
        )


def write_checkpoint(folder: Path, shape: Shape) -> None:
    """Write random weights, a file for the embedding and one for each layer."""
    shape.config().save_pretrained(folder)
    places: dict[str, str] = {}
    torch.manual_seed(0)
    for i, sizes in enumerate(_files(shape)):
        name = f"model-{i:05d}.safetensors"
        tensors = {key: (0.02 * torch.randn(size)).bfloat16() for key, size in sizes.items()}
        tensors |= {key: torch.ones_like(t) for key, t in tensors.items() if t.ndim == 1}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _files(shape: Shape) -> Iterator[dict[str, tuple[int, ...]]]:
    d, mlp, kv = shape.d_model, shape.d_mlp, shape.d_model // shape.heads * shape.kv_heads
    yield {"model.embed_tokens.weight": (shape.d_vocab, d), "model.norm.weight": (d,)}
    for layer in range(shape.layers):
        own: dict[str, tuple[int, ...]] = {
            "input_layernorm": (d,),
            "post_attention_layernorm": (d,),
            "self_attn.q_proj": (d, d),
            "self_attn.k_proj": (kv, d),
            "self_attn.v_proj": (kv, d),
            "self_attn.o_proj": (d, d),
            "mlp.gate_proj": (mlp, d),
            "mlp.up_proj": (mlp, d),
            "mlp.down_proj": (d, mlp),
        }
        yield {f"model.layers.{layer}.{name}.weight": size for name, size in own.items()}


def task_of(shape: Shape, *, n: int, n_pos: int) -> Task:
    """Return prompts of token ids, in shards of lengths that differ a little."""
    generator = torch.Generator().manual_seed(1)
    prompts = []
    for i in range(n):
        length = n_pos + (i * 4 // n)
        *ids, answer = torch.randint(5, shape.d_vocab, (length + 1,), generator=generator).tolist()
        prompts.append(Prompt(f"{i}", "", "A", tokens=tuple(ids), spelling={"A": (answer,)}))
    return Task("random", tuple(prompts))


def in_memory(folder: str, asked: dict[str, Any]) -> Row:
    """Return the seconds of the model in memory."""
    return _measured(load_model(folder, dtype="bfloat16", device="cpu"), asked)


def on_disk(folder: str, asked: dict[str, Any]) -> Row:
    """Return the seconds of the model on disk, and how often its blocks were read."""
    model = load_model(folder, dtype="bfloat16", device="cpu", device_map="disk")
    stream = stream_of(model.module)
    if stream is None:
        raise ValueError("the blocks are in memory")
    before = stream.bytes_read
    row = _measured(model, asked)
    passes = (stream.bytes_read - before) / stream.disk_bytes
    return row | {"passes_read": round(passes, 3), "gb": round(stream.disk_bytes / 1e9, 3)}


def offloaded(folder: str, asked: dict[str, Any]) -> Row:
    """Return the seconds of layer skip with accelerate's offloading, from those of one forward."""
    places: dict[str, int | str] = {
        "model.embed_tokens": "cpu",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
    }
    n_layers = asked["shape"]["layers"]
    places |= {"lm_head": "cpu"} | {f"model.layers.{i}": "disk" for i in range(n_layers)}
    model = load_model(folder, dtype="bfloat16", device_map=places)
    batch = model.tokenize(model.shards(_task(asked))[0])
    model.logits(batch)
    began = time.perf_counter()
    model.logits(batch)
    forward = time.perf_counter() - began
    n_shards = len(model.shards(_task(asked)))
    calls = n_shards * (1 + (n_layers - 1) / 2)  # blocks after each skip, a call for each
    return {"seconds": round(calls * forward, 2), "forward_s": round(forward, 3)}


def _task(asked: dict[str, Any]) -> Task:
    return task_of(Shape(**asked["shape"]), n=asked["n"], n_pos=asked["n_pos"])


def _measured(model: Model, asked: dict[str, Any]) -> Row:
    task = _task(asked)
    began = time.perf_counter()
    result = LayerSkip(scopes=("all",)).run(model, task)
    seconds = time.perf_counter() - began
    anonymous = memory_mb("RssAnon")
    return {
        "seconds": round(seconds, 2),
        "anonymous_mb": round(anonymous),
        "sum": float(result.to_frame().select_dtypes("float").sum().sum()),
    }


def run(_part: str = "", **asked: Any) -> dict[str, Row]:
    """Return the rows: ratios of wall time, passes read by a sweep's two, and anonymous memory."""
    small = asdict(Shape.small(layers=8, d_model=512))
    asked = {"shape": small, "n": 32, "n_pos": 24, "folder": None, **asked}
    with tempfile.TemporaryDirectory(dir=asked["folder"]) as folder:
        write_checkpoint(Path(folder), Shape(**asked["shape"]))
        here, disk, peer = (_alone(each, folder, asked) for each in (in_memory, on_disk, offloaded))
    if here.pop("sum") != disk.pop("sum"):
        raise ValueError("the numbers of the two models differ")
    wall = round(disk["seconds"] / here["seconds"], 3)
    read = round(disk["passes_read"] / 2, 3)
    ahead = round(disk["seconds"] / peer["seconds"], 4)
    return {
        "wall time, by the model in memory": {"ratio": wall, "goal": 1.3, **disk},
        "wall time, by accelerate's offloading": {"ratio": ahead, **peer},
        "weights read, by two passes": {"value": read, "bound": 1.0, "goal": 1.1},
        "anonymous memory": {"mb": disk["anonymous_mb"], "goal": 3000, "in_memory": here},
    }


def _alone(measure: Any, folder: str, asked: dict[str, Any]) -> Row:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        row: Row = process.submit(measure, folder, asked).result()
    return row


def main() -> None:
    """Measure what the command line asks for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, help="of a smaller model")
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--folder", help="where the checkpoint is written, and removed")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=24)
    given = parser.parse_args()
    shape = Shape()
    if given.layers is not None:
        shape = Shape.small(layers=given.layers, d_model=given.d_model)
    rows = run(shape=asdict(shape), n=given.prompts, n_pos=given.tokens, folder=given.folder)
    sys.stdout.write(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
