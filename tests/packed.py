"""Small GGUF files, as llama.cpp writes them."""

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

SIZES = {
    "block_count": 2,
    "context_length": 64,
    "embedding_length": 32,
    "feed_forward_length": 64,
    "head_count": 2,
    "head_count_kv": 1,
    "vocab_size": 40,
}


def shapes(architecture: str) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a small Llama, or of a small Qwen 2."""
    block = {
        "attn_q.weight": (32, 32),
        "attn_k.weight": (16, 32),
        "attn_v.weight": (16, 32),
        "attn_output.weight": (32, 32),
        "ffn_gate.weight": (64, 32),
        "ffn_up.weight": (64, 32),
        "ffn_down.weight": (32, 64),
        "attn_norm.weight": (32,),
        "ffn_norm.weight": (32,),
    }
    if architecture == "qwen2":
        block |= {"attn_q.bias": (32,), "attn_k.bias": (16,), "attn_v.bias": (16,)}
    named = {f"blk.{i}.{name}": shape for i in range(2) for name, shape in block.items()}
    return named | {"token_embd.weight": (40, 32), "output_norm.weight": (32,)}


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    kind: str = "F32",
    seed: int = 0,
    has_tokenizer: bool = True,
    extra: Mapping[str, tuple[int, ...]] | None = None,
    without: str = "",
) -> None:
    """Write a model of two layers and 40 tokens; its matrices are of one of GGUF's types.

    `extra` are more tensors, by name; the tensor `without` is left out.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for name, size in SIZES.items():
        getattr(writer, f"add_{name}")(size)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(16)
    if has_tokenizer:
        _add_tokenizer(writer)
    random, of_type = np.random.default_rng(seed), gguf.GGMLQuantizationType[kind]
    for name, shape in (shapes(architecture) | dict(extra or {})).items():
        if name == without:
            continue
        numbers = random.standard_normal(shape).astype(np.float32)
        if len(shape) == 1 or kind == "F32":
            writer.add_tensor(name, numbers)
        else:
            packed = gguf.quantize(numbers, of_type)
            writer.add_tensor(name, packed, raw_dtype=of_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(chr(33 + i) for i in range(35)), '!"', "Ġ"])
    writer.add_token_types([3, 3, 3, *[1] * 37])
    writer.add_token_merges(['! "'])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
