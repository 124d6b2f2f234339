"""The tokens of multiple-choice options, each behind its prompt."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from interp.models import Model
from interp.tasks import Prompt

Options = Int[Tensor, "prompt option pos"]


def option_tokens(
    model: Model, prompts: Sequence[Prompt], orders: Sequence[Sequence[int]]
) -> Options:
    """Return the tokens of every prompt's options, numbered in the orders given, padded with -1 in
    both directions.

    Raises TaskError, naming the prompt, where its own tokens change when an option follows.
    """
    rows = [
        model.options(prompt, [prompt.choices[i] for i in order])
        for prompt, order in zip(prompts, orders, strict=True)
    ]
    n_options, width = max(map(len, rows)), max(len(option) for row in rows for option in row)
    padded = torch.full((len(rows), n_options, width), -1)
    for i, row in enumerate(rows):
        for j, option in enumerate(row):
            padded[i, j, : len(option)] = torch.tensor(option)
    return padded


def longer_options(options: Options) -> dict[int, Int[Tensor, "pair 2"]]:
    """Return by number of tokens, from 2 on, which options (prompt, option) have it: those that
    need a text of their own.
    """
    lengths = (options >= 0).sum(-1)
    return {n: (lengths == n).nonzero() for n in sorted(set(lengths.flatten().tolist())) if n > 1}
