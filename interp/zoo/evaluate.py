"""What a shipped model knows: scores over the whole vocabulary, by what training showed it."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from interp.zoo.names import Names, listed
from interp.zoo.vocabulary import BOS, NUMBERS
from interp.zoo.world import HeldOut, World

CONTEXT_SENTENCES = 3
Table = dict[str, dict[str, float]]


def evaluate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, family: Literal["llama", "gpt2"]
) -> Table:
    """Return the score and number of queries for every kind that a family was trained on."""
    model.eval()
    return (
        _evaluate_hops(model, tokenizer, World())
        if family == "llama"
        else _evaluate_names(model, tokenizer, Names())
    )


@torch.no_grad()
def last_logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, queries: Sequence[Sequence[str]]
) -> Tensor:
    """Return logits [query d_vocab] at each query's last word; equal lengths run together."""
    logits = torch.empty(len(queries), len(tokenizer))
    for length in sorted({len(words) for words in queries}):
        rows = [i for i, words in enumerate(queries) if len(words) == length]
        for chunk in (rows[i : i + 256] for i in range(0, len(rows), 256)):
            tokens = torch.tensor(
                [tokenizer.convert_tokens_to_ids(list(queries[i])) for i in chunk]
            )
            logits[chunk] = model(tokens).logits[:, -1].float()
    return logits


def context(world: World, rng: np.random.Generator, *, without: frozenset[str]) -> list[str]:
    """Return the words of three sentences, as in training, that name none of these entities."""
    words: list[str] = []
    n_sentences = 0
    for sentence in world.sentences(rng):
        stated = [word for word, _ in sentence]
        if without.isdisjoint(stated):
            words += stated
            n_sentences += 1
        if n_sentences == CONTEXT_SENTENCES:
            break
    return words


def queries(world: World) -> dict[str, list[tuple[list[str], str]]]:
    """Map each kind of query to its words and answers, each after three sentences of context."""
    rng = np.random.default_rng([world.seed, 3])

    def asked(words: tuple[str, ...], *answers: str) -> tuple[list[str], str]:
        return [
            BOS,
            *context(world, rng, without=frozenset({words[0], *answers})),
            *words,
        ], answers[-1]

    of_kind = {"one-hop": [asked(fact, answer) for fact, answer in world.facts.items()]}
    for kind in get_args(HeldOut):
        of_kind[kind] = [asked(c, world.bridge(c), world.answer(c)) for c in world.of_kind(kind)]
    return of_kind


def _evaluate_hops(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, world: World
) -> Table:
    table: Table = {}
    for kind, pairs in queries(world).items():
        best = last_logits(model, tokenizer, [words for words, _ in pairs]).argmax(-1)
        answers = torch.tensor(tokenizer.convert_tokens_to_ids([answer for _, answer in pairs]))
        table[kind] = {"score": round((best == answers).double().mean().item(), 4), "n": len(pairs)}
    return table


def _evaluate_names(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, names: Names, *, n: int = 400
) -> Table:
    rng = np.random.default_rng([names.seed, 20])

    def ids(words: Sequence[str]) -> Tensor:
        return torch.tensor(tokenizer.convert_tokens_to_ids(list(words)))

    prompts = [names.ioi(rng, held_out=True) for _ in range(n)]
    logits = last_logits(model, tokenizer, [[BOS, *prompt["text"].split()] for prompt in prompts])
    right, wrong = (
        ids([prompt["IO"] for prompt in prompts]),
        ids([prompt["S"] for prompt in prompts]),
    )
    difference = logits.gather(1, right[:, None]) - logits.gather(1, wrong[:, None])
    table: Table = {
        "ioi": {"score": _share(logits.argmax(-1) == right), "n": n},
        "ioi logit difference": {"score": round(difference.mean().item(), 3), "n": n},
    }
    lists = [names.induction(rng)[0] for _ in range(n)]
    keys = [pairs[rng.integers(len(pairs))] for pairs in lists]
    asked = [
        [BOS, *listed(pairs).split(), key] for pairs, (key, _) in zip(lists, keys, strict=True)
    ]
    best = last_logits(model, tokenizer, asked).argmax(-1)
    table["induction"] = {"score": _share(best == ids([value for _, value in keys])), "n": n}
    years = [names.greater_than(rng) for _ in range(n)]
    probs = last_logits(model, tokenizer, [[BOS, *text.split()] for text, _ in years]).softmax(-1)[
        :, ids(NUMBERS)
    ]
    mass = torch.stack([row[year + 1 :].sum() for row, (_, year) in zip(probs, years, strict=True)])
    table["greater-than mass"] = {"score": round(mass.mean().item(), 4), "n": n}
    return table


def _share(is_right: Tensor) -> float:
    return round(is_right.double().mean().item(), 4)
