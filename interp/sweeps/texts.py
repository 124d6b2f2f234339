"""Texts after prompts in which residuals are written over; later tokens are ordinary."""

from collections.abc import Iterator, Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.interventions import NO_INTERVENTION, Patch, Plan
from interp.models import Model
from interp.sites import Site
from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch

_CHUNK_TOKENS = 2**13  # read and generated together

Texts = list[tuple[str, ...]]


def patched_texts(
    model: Model,
    shard: TokenBatch,
    values: Float[Tensor, "variant batch span d_model"],
    *,
    layer: int,
    positions: Int[Tensor, "batch span"],
    max_new_tokens: int,
) -> Texts:
    """Return the prompts' greedy continuations by variant of `layer`'s output at `positions`.

    The values may come from any run of a model of this width. Raises SiteError for positions in the
    padding.
    """
    texts: Texts = []
    for chunk in torch.split(values, _n_copies(shard, max_new_tokens)):
        rows = rearrange(chunk, "variant batch span d_model -> (variant batch) span d_model")
        plan = [
            Patch(Site("resid_post", layer), rows[:, i : i + 1], positions=at.repeat(len(chunk)))
            for i, at in enumerate(positions.T)
        ]
        texts += _of_copies(model, shard, n=len(chunk), plan=plan, max_new_tokens=max_new_tokens)
    return texts


def sampled_texts(
    model: Model, shard: TokenBatch, *, n: int, max_new_tokens: int, seed: int = 0
) -> Texts:
    """Return `n` continuations of each prompt at temperature 1, which depend on no other prompt."""
    texts: Texts = []
    for copies in torch.split(torch.arange(n), _n_copies(shard, max_new_tokens)):
        seeds = [(seed << 20) + copy for copy in copies.tolist() for _ in shard.prompts]
        texts += _of_copies(
            model, shard, n=len(copies), max_new_tokens=max_new_tokens, temperature=1.0, seed=seeds
        )
    return texts


def holds_answer(text: str, prompt: Prompt) -> bool:
    """Tell whether a text holds a prompt's answer, or an alias of two letters or more.

    Case is ignored, as published.
    """
    names = [prompt.answer or "", *[alias for alias in prompt.aliases if len(alias) > 1]]
    return any(name.lower() in text.lower() for name in names if name)


def hold_answers(texts: Texts, prompts: Sequence[Prompt]) -> Bool[Tensor, "variant batch"]:
    """Tell of each text whether it holds its prompt's answer."""
    rows = [zip(row, prompts, strict=True) for row in texts]
    return torch.tensor([[holds_answer(text, prompt) for text, prompt in row] for row in rows])


def _of_copies(
    model: Model,
    shard: TokenBatch,
    *,
    n: int,
    max_new_tokens: int,
    plan: Plan = NO_INTERVENTION,
    temperature: float = 0.0,
    seed: int | Sequence[int] = 0,
) -> Iterator[tuple[str, ...]]:
    """Yield the texts of `n` copies of a shard, run as one batch."""
    copies = TokenBatch(
        shard.prompts * n, shard.tokens.repeat(n, 1), shard.mask.repeat(n, 1), shard.last.repeat(n)
    )
    texts = model.generate(
        copies,
        max_new_tokens=max_new_tokens,
        plan=plan,
        phase="prefill",
        temperature=temperature,
        seed=seed,
    ).texts
    for start in range(0, len(texts), len(shard.prompts)):
        yield texts[start : start + len(shard.prompts)]


def _n_copies(shard: TokenBatch, max_new_tokens: int) -> int:
    return max(1, _CHUNK_TOKENS // (shard.tokens.numel() + len(shard.prompts) * max_new_tokens))
