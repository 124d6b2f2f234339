"""The token rows that a dictionary is trained on."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import interp
from interp.models import Model
from interp.zoo.recipes import RECIPES
from interp.zoo.train import batch_at

LONGEST = 128  # tokens of a paragraph that are read


def rows(model: Model, n_tokens: int, *, seed: int) -> Iterator[list[int]]:
    """Yield token rows of the kind that a shipped model was trained on last."""
    recipe = RECIPES[Path(model.name).name]
    recipe, step, n = replace(recipe, seed=1000 + seed), recipe.steps - 1, 0
    while n < n_tokens:
        for row in batch_at(step, recipe=recipe, tokenizer=model.tokenizer)[0].tolist():
            yield row
            n += len(row)
        step -= 1


def split(texts: list[str], *, seed: int) -> tuple[list[str], list[str]]:
    """Return the texts of tasks and files, shuffled: nine tenths to train on, and new ones."""
    known: dict[str, None] = {}
    for source in texts:
        if Path(source).suffix == ".txt":
            paragraphs = Path(source).read_text(encoding="utf-8").split("\n\n")
            known |= dict.fromkeys(" ".join(each.split()) for each in paragraphs if each.strip())
            continue
        for prompt in interp.load_task(source).prompts:
            known |= dict.fromkeys(t for t in (prompt.text, prompt.corrupted) if t is not None)
    every = list(known)
    random.Random(seed).shuffle(every)
    n_new = len(every) // 10
    return every[n_new:], every[:n_new]


def encoded(model: Model, texts: list[str], n_tokens: int) -> Iterator[list[int]]:
    """Yield the tokens of texts, until there are `n_tokens`."""
    n = 0
    for text in texts:
        batch = model.tokenize([text])
        row = batch.tokens[0, :LONGEST].tolist()
        yield row
        if (n := n + len(row)) >= n_tokens:
            return
