"""What a model of the synthetic world knows: accuracy over the whole vocabulary, by what it was shown."""

from typing import get_args

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from interp.zoo.world import BOS, HeldOut, World

CONTEXT_SENTENCES = 3


def context(world: World, rng: np.random.Generator, *, without: frozenset[str]) -> list[str]:
    """Return the words of three complete sentences, as in training, that name none of the entities given."""
    words: list[str] = []
    n_sentences = 0
    for sentence in world.sentences(rng):
        if without.isdisjoint(sentence):
            words += sentence
            n_sentences += 1
        if n_sentences == CONTEXT_SENTENCES:
            return words
    raise AssertionError("sentences never end")


def queries(world: World) -> dict[str, list[tuple[list[str], str]]]:
    """Map each kind of query to its (words, answer) pairs, each after three sentences of context."""
    rng = np.random.default_rng([world.seed, 3])

    def asked(words: tuple[str, ...], *answers: str) -> tuple[list[str], str]:
        return [BOS, *context(world, rng, without=frozenset({words[0], *answers})), *words], answers[-1]

    of_kind = {"one-hop": [asked(fact, answer) for fact, answer in world.facts.items()]}
    for kind in get_args(HeldOut):
        of_kind[kind] = [asked(c, world.bridge(c), world.answer(c)) for c in world.of_kind(kind)]
    return of_kind


@torch.no_grad()
def evaluate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, world: World) -> dict[str, dict[str, float | int]]:
    """Return accuracy (argmax over the vocabulary) and number of queries for every kind of query."""
    table: dict[str, dict[str, float | int]] = {}
    for kind, pairs in queries(world).items():
        n_right = 0
        for length in sorted({len(words) for words, _ in pairs}):
            rows = [(words, answer) for words, answer in pairs if len(words) == length]
            tokens = torch.tensor([tokenizer.convert_tokens_to_ids(words) for words, _ in rows])
            answers = torch.tensor([tokenizer.convert_tokens_to_ids(answer) for _, answer in rows])
            n_right += int((model(tokens).logits[:, -1].argmax(-1) == answers).sum())
        table[kind] = {"accuracy": round(n_right / len(pairs), 4), "n": len(pairs)}
    return table
