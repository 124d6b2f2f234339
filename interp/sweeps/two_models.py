"""A second model beside the one that is asked: it reads the same prompts as the same tokens."""

from itertools import chain

import torch
from torch import Tensor

from interp.errors import TaskError, UnsuitedError
from interp.models import Model
from interp.models.runner import ModelRunner
from interp.replay import Recording
from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch


def other_of(model: Model, name: str | None) -> Model:
    """Return the model of a name, loaded as `model` was; `model` itself for its own name or None.

    Both are in memory at once. Raises ModelError for a name that is none.
    """
    return model if name is None or name == model.name else model.another(name)


def model_of(recording: Recording) -> Model:
    """Return the model that a recording is of."""
    runner = recording.runner
    if not isinstance(runner, ModelRunner):
        raise TypeError(f"a recording of a model was expected, not of {type(runner).__name__}")
    return runner.model


def refuse_other_tokens(model: Model, other: Model, shard: TokenBatch, *, why: str) -> None:
    """Raise UnsuitedError where `other` reads a shard's prompts as other tokens than `model`.

    `why` says what needs equal ones.
    """
    refuse_other_ids(model, other, shard, why=why)
    try:
        read = other.tokenize(shard.prompts)
    except TaskError:
        read = None
    if read is None or not (_same(read.tokens, shard.tokens) and _same(read.answer, shard.answer)):
        raise _different(model, other, shard.prompts[0], why)


def refuse_other_ids(model: Model, other: Model, shard: TokenBatch, *, why: str) -> None:
    """Raise UnsuitedError where prompts are ids that stand for other tokens in `other`.

    Ids for a model without a tokenizer stand for themselves.
    """
    if model.tokenizer is None or other.tokenizer is None:
        return
    for prompt in shard.prompts:
        ids = [] if prompt.tokens is None else [*prompt.tokens, *chain(*prompt.spelling.values())]
        if model.token_names(ids) != other.token_names(ids):
            raise _different(model, other, prompt, why)


def _different(model: Model, other: Model, prompt: Prompt, why: str) -> UnsuitedError:
    return UnsuitedError(
        f"{other.name} and {model.name} have different tokenizers (prompt {prompt.id!r}); {why}"
    )


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one.cpu(), other.cpu())


def refuse_other_vocabulary(model: Model, other: Model) -> None:
    """Raise UnsuitedError where the models' logits are of different numbers of tokens."""
    if other.d_vocab != model.d_vocab:
        raise UnsuitedError(
            f"{other.name} has a vocabulary of {other.d_vocab} tokens, {model.name} of"
            f" {model.d_vocab}; equal ones are needed"
        )
