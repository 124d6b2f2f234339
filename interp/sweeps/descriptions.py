"""Descriptions of vectors: each is put in the place of a word of another prompt, and read out."""

from collections.abc import Iterator, Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import AnalysisError, TaskError
from interp.models import Model
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sweeps.patches import ends_of_patched, of_token, ranks
from interp.sweeps.two_hop import (
    Tokens,
    comparable_prompts,
    last_logits,
    other_prompts_entities,
)
from interp.tasks import Prompt, Task
from interp.tasks.batch import TokenBatch

_PROMPTS = (  # the first whose every word a tokenizer knows: any English text, or the zoo's world
    (
        (
            "Norway: Norway is a country. Mozart: Mozart is a composer."
            " Toyota: Toyota is a company. x:"
        ),
        "x",
    ),
    ("Ben Ben . Cora Cora . Dan Dan . Ada", "Ada"),
)


def target_prompt(model: Model, text: str, placeholder: str) -> TokenBatch:
    """Return the prompt in which vectors are put in the place of a word, its `subject`.

    The default is a list of names said twice, of words that the tokenizer knows. Raises TaskError
    if there is none, or if the placeholder does not occur exactly once.
    """
    for words, at in [(text, placeholder)] if text else _PROMPTS:
        try:
            return model.tokenize([Prompt("target prompt", words, subject=at)])
        except TaskError:
            if text:
                raise
    raise TaskError(
        f"model {model.name!r} knows no built-in target prompt; give prompt and placeholder"
    )


def refuse_half_a_prompt(prompt: str, placeholder: str) -> None:
    """Raise AnalysisError if only one of target prompt and placeholder is given."""
    if bool(prompt) != bool(placeholder):
        raise AnalysisError("prompt and placeholder are needed together, or neither")


def target_layers(n_layers: int, *, is_full: bool) -> range:
    """Return all layers, or the first four."""
    return range(n_layers if is_full else min(4, n_layers))


def description_tensors(
    model: Model, task: Task, target: TokenBatch, *, known_only: bool, no_shortcuts: bool
) -> Tensors:
    """Return which prompts are compared, others' bridges and answers, and the target prompt."""
    kept = comparable_prompts(model, task, known_only=known_only, no_shortcuts=no_shortcuts)
    place = torch.tensor(placeholder_position(target))
    others = other_prompts_entities(model, task)
    return {"kept": kept, "target": target.tokens, "place": place} | others


def placeholder_position(target: TokenBatch) -> int:
    """Return where vectors are put into the target prompt; raise TaskError if it has no place."""
    if target.subject is None:
        raise TaskError(target.missing("subject"))
    return int(target.subject[0])


def described_logits(
    target: Recording, vectors: Float[Tensor, "source batch d_model"], *, layer: int, position: int
) -> Iterator[Float[Tensor, "batch d_vocab"]]:
    """Yield for every source the logits after the target prompt with its vectors in it.

    The target prompt has one row; vectors replace the output of `layer` at `position`.
    """
    value = rearrange(vectors, "source batch d_model -> (source batch) 1 1 d_model")
    at = torch.tensor([[position]], device=vectors.device)
    ends = ends_of_patched(target, {layer: value}, positions=at)[layer]
    by_source = rearrange(
        ends, "(source batch) 1 d_model -> source batch 1 d_model", source=len(vectors)
    )
    for resid in by_source:
        yield target.logits(resid)[:, 0]


def described_ranks(
    target: Recording,
    vectors: Float[Tensor, "source batch d_model"],
    tokens: Sequence[Tokens],
    *,
    layers: Sequence[int],
    position: int,
) -> tuple[Int[Tensor, "batch source target token"], Float[Tensor, "batch source target token"]]:
    """Return tokens' ranks and probabilities after the target prompt, by pair of layers."""
    by_layers, shares = [], []
    for layer in layers:
        for logits in described_logits(target, vectors, layer=layer, position=position):
            by_layers.append(torch.stack([ranks(logits, token) for token in tokens], dim=-1))
            shares.append(
                torch.stack([of_token(logits.softmax(-1), token) for token in tokens], dim=-1)
            )
    pattern = "(target source) batch token -> batch source target token"
    at_ranks, probabilities = (
        rearrange(torch.stack(x), pattern, target=len(layers)) for x in (by_layers, shares)
    )
    return at_ranks, probabilities


def unpatched_guesses(target: Recording, tokens: Sequence[Tokens]) -> Bool[Tensor, "batch token"]:
    """Return which tokens follow the target prompt without any vector in it."""
    guess = last_logits(target).argmax(-1)
    return torch.stack([torch.eq(token, guess) for token in tokens], dim=-1)


def description_steps(n_layers: int, *, layers: Sequence[int]) -> int:
    """Return how many blocks `described_ranks` runs per prompt and position after the patch."""
    return sum(n_layers * (n_layers - 1 - layer) for layer in layers)
