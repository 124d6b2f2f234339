"""Prompts' ids and tags as tensors, so that nothing depends on how prompts are grouped."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch
from interp.tasks.prompts import key_of

_TAG_BYTES = 48


def draw_seed(prompt_id: str, *, seed: int = 0) -> int:
    """Return a seed for draws that differ between prompts and between seeds."""
    return int.from_bytes(blake2b(f"{seed}:{prompt_id}".encode(), digest_size=7).digest(), "little")


def keys_of(prompts: Sequence[Prompt]) -> Int[Tensor, " batch"]:
    """Return the number that stands for each prompt's id."""
    return torch.tensor([key_of(prompt.id) for prompt in prompts], dtype=torch.int64)


def rows_of(keys: Int[Tensor, " prompt"], prompts: Sequence[Prompt]) -> list[int]:
    """Return the rows of some prompts among the `keys` of all."""
    row_of = {key: row for row, key in enumerate(keys.tolist())}
    return [row_of[key_of(prompt.id)] for prompt in prompts]


def tags_of(shard: TokenBatch, name: str) -> UInt8[Tensor, "batch byte"]:
    """Return each prompt's value of a tag as bytes; all 0 where it has none."""
    return bytes_of([prompt.tags.get(name, "") for prompt in shard.prompts], width=_TAG_BYTES)


def bytes_of(texts: Sequence[str], *, width: int | None = None) -> UInt8[Tensor, "batch byte"]:
    """Return texts as UTF-8, padded with 0 or cut to `width`; by default to the longest's."""
    encoded = [text.encode()[:width] for text in texts]
    width = max(map(len, encoded)) if width is None else width
    return torch.tensor(
        [[*text, *[0] * (width - len(text))] for text in encoded], dtype=torch.uint8
    )


def texts_of(rows: UInt8[np.ndarray, "prompt byte"]) -> list[str]:
    """Return the texts that `bytes_of` encoded."""
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in rows]
