"""What a vector says: put in the place of a word of another prompt, and read from what follows it."""

from collections.abc import Iterator, Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import TaskError
from interp.models import Model
from interp.replay import Recording
from interp.sweeps.hops import Tokens, predictions
from interp.sweeps.patching import ends_of_patched, of_token, ranks
from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch

_PROMPTS = (  # the first whose every word a tokenizer knows: any English text, or the zoo's world
    (
        (
            "Norway: Norway is a country. Mozart: Mozart is a composer. Toyota: Toyota is a"
            " company. x:"
        ),
        "x",
    ),
    ("Ben Ben . Cora Cora . Dan Dan . Ada", "Ada"),
)


def target_prompt(model: Model, text: str, placeholder: str) -> TokenBatch:
    """Return the prompt in which vectors are put in the place of a word, its `subject`.

    Without a text it is a list of names said twice, of words that the tokenizer knows. Raises
    TaskError if there is none, and if the placeholder is not found once.
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


def target_layers(n_layers: int, *, is_full: bool) -> range:
    """Return all layers, or the first four."""
    return range(n_layers if is_full else min(4, n_layers))


def place_of(target: TokenBatch) -> int:
    """Return the position at which vectors are put into the target prompt; raise TaskError if it
    cannot be told.
    """
    if target.subject is None:
        raise TaskError(target.missing("subject"))
    return int(target.subject[0])


def said(
    target: Recording, vectors: Float[Tensor, "source batch d_model"], *, layer: int, position: int
) -> Iterator[Float[Tensor, "batch d_vocab"]]:
    """Yield for every source the logits at the end of the target prompt, of one row, with its
    vectors at `position`.

    They are put in the place of the output of `layer`.
    """
    value = rearrange(vectors, "source batch d_model -> (source batch) 1 1 d_model")
    at = torch.tensor([[position]], device=vectors.device)
    ends = ends_of_patched(target, {layer: value}, positions=at)[layer]
    by_source = rearrange(
        ends, "(source batch) 1 d_model -> source batch 1 d_model", source=len(vectors)
    )
    for resid in by_source:
        yield target.logits(resid)[:, 0]


def said_ranks(
    target: Recording,
    vectors: Float[Tensor, "source batch d_model"],
    tokens: Sequence[Tokens],
    *,
    layers: Sequence[int],
    position: int,
) -> tuple[Int[Tensor, "batch source target token"], Float[Tensor, "batch source target token"]]:
    """Return the ranks and the probabilities of tokens behind the target prompt, by source and
    target layer.
    """
    found, shares = [], []
    for layer in layers:
        for logits in said(target, vectors, layer=layer, position=position):
            found.append(torch.stack([ranks(logits, token) for token in tokens], dim=-1))
            shares.append(
                torch.stack([of_token(logits.softmax(-1), token) for token in tokens], dim=-1)
            )
    pattern = "(target source) batch token -> batch source target token"
    at_ranks, probabilities = (
        rearrange(torch.stack(x), pattern, target=len(layers)) for x in (found, shares)
    )
    return at_ranks, probabilities


def says_it_anyway(target: Recording, tokens: Sequence[Tokens]) -> Bool[Tensor, "batch token"]:
    """Return which tokens are what the target prompt is followed by when nothing is put into it."""
    guess = predictions(target).argmax(-1)
    return torch.stack([torch.eq(token, guess) for token in tokens], dim=-1)


def said_steps(n_layers: int, *, layers: Sequence[int]) -> int:
    """Return how many blocks `said_ranks` runs for each prompt and position of the target prompt
    from the patched on.
    """
    return sum(n_layers * (n_layers - 1 - layer) for layer in layers)
