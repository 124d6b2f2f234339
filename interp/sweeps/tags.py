"""Prompts' ids and tags as tensors, so that nothing depends on how prompts are grouped."""

import hashlib

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from interp.tasks.batch import TokenBatch

_TAG_BYTES = 48


def key_of(prompt_id: str) -> int:
    """Return a number that stands for a prompt's id in tensors, and is a seed of its own."""
    return int.from_bytes(hashlib.blake2b(prompt_id.encode(), digest_size=8).digest(), "big") >> 1


def keys_of(shard: TokenBatch) -> Int[Tensor, " batch"]:
    """Return the number that stands for each prompt's id."""
    return torch.tensor([key_of(prompt.id) for prompt in shard.prompts])


def tags_of(shard: TokenBatch, name: str) -> UInt8[Tensor, "batch byte"]:
    """Return each prompt's value of a tag as UTF-8, padded with 0; all 0 where it has none."""
    texts = [prompt.tags.get(name, "").encode()[:_TAG_BYTES] for prompt in shard.prompts]
    return torch.tensor(
        [[*text, *[0] * (_TAG_BYTES - len(text))] for text in texts], dtype=torch.uint8
    )


def read_tags(tags: UInt8[np.ndarray, "prompt byte"]) -> list[str]:
    """Return the values that `tags_of` wrote."""
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in tags]
