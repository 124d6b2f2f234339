"""Which tokens are punctuation."""

import unicodedata
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


def punctuation_of(tokenizer: Any, tokens: Iterable[int]) -> Int[Tensor, " token"]:
    """Return which tokens are only punctuation and symbols; none without a tokenizer."""
    if tokenizer is None:
        return torch.zeros(0, dtype=torch.long)
    marks = [
        token for token in sorted(set(tokens)) if _is_punctuation(tokenizer.decode([token]).strip())
    ]
    return torch.tensor(
        [token for token in marks if token not in tokenizer.all_special_ids], dtype=torch.long
    )


def _is_punctuation(text: str) -> bool:
    return text != "" and all(unicodedata.category(character)[0] in "PS" for character in text)
