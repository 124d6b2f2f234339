"""What is tried for each prompt: the searched paths, random ones, and those for another answer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.replay import Recording
from interp.shapes import Tensors
from interp.sweeps.path_scores import PathScorer, Search, Try
from interp.sweeps.path_tree import Path, moved, ordinary
from interp.sweeps.prefix_tree import prompts_at_once

_REDRAWN = 20


@dataclass(frozen=True)
class PromptTries:
    """What was tried for one prompt: by the search, at random, for another answer."""

    search: list[Try]
    random: list[Try]
    shuffled: list[Try]


def all_tries(
    recording: Recording,
    search: Search,
    labels: Int[Tensor, "batch 2"],
    wrong: Int[Tensor, " batch"] | None,
    seeds: Sequence[int],
    others: Sequence[int],
) -> list[PromptTries]:
    """Return what is tried for each prompt, led by its seed.

    `labels` are its answer and another one; no search is made for that where `others` is -1.
    """
    tries: list[PromptTries] = []
    size, n_layers = (
        prompts_at_once(recording, n_paths=3 * search.n_simulations),
        recording.n_layers,
    )
    for begin in range(0, len(labels), size):
        some = range(begin, min(begin + size, len(labels)))
        scorer = PathScorer(recording, some, labels, wrong)
        seed_of = {i: seeds[i] for i in some}
        own = search.run(scorer, seed_of, n_layers=n_layers)
        asked = {i: seed for i, seed in seed_of.items() if others[i] >= 0}
        shuffled = search.run(scorer, asked, n_layers=n_layers, label=1)
        random = random_tries(scorer, own, seed_of, n_layers=n_layers)
        tries += [PromptTries(own[i], random[i], shuffled.get(i, [])) for i in some]
    return tries


def random_tries(
    scorer: PathScorer, own: Mapping[int, list[Try]], seeds: Mapping[int, int], *, n_layers: int
) -> dict[int, list[Try]]:
    """Return for every try of a search one of the same edits at random places, by prompt.

    None is tried twice, unless twenty draws give nothing new.
    """
    paths: dict[int, list[Path]] = {}
    for prompt, tries in own.items():
        random, drawn = np.random.default_rng([seeds[prompt], 1]), [ordinary(n_layers)]
        for each in tries[1:]:
            for _ in range(_REDRAWN):
                path = moved(n_layers, each.edits, random)
                if path not in drawn:
                    break
            drawn.append(path)
        paths[prompt] = drawn
    whose = [prompt for prompt, drawn in paths.items() for _ in drawn]
    scores = iter(scorer.scores(whose, [path for drawn in paths.values() for path in drawn]))
    return {
        prompt: [Try(path, (), next(scores)) for path in drawn] for prompt, drawn in paths.items()
    }


def tensors_of(tries: Sequence[PromptTries], *, n_layers: int) -> Tensors:
    tensors: Tensors = {}
    for kind in ("search", "random"):
        rows: list[list[Try]] = [getattr(each, kind) for each in tries]
        paths = torch.full((len(rows), len(rows[0]), 2 * n_layers), -1, dtype=torch.int16)
        for i, row in enumerate(rows):
            for j, each in enumerate(row):
                paths[i, j, : len(each.path)] = torch.tensor(each.path, dtype=torch.int16)
        tensors[f"{kind}.path"] = paths
        tensors[f"{kind}.is_right"] = torch.tensor(
            [[each.score.is_right() for each in row] for row in rows]
        )
        tensors[f"{kind}.log_prob"] = torch.tensor(
            [[each.score.log_probs[0] for each in row] for row in rows]
        )
    return tensors


def sampled(tries: Sequence[PromptTries]) -> Tensors:
    """Return the chance [batch] that one of as many sampled answers is right."""
    n = len(tries[0].search)
    chances = [-math.expm1(n * _log_of_rest(each.search[0].score.log_probs[0])) for each in tries]
    return {"sampled": torch.tensor(chances)}


def _log_of_rest(log_prob: float) -> float:
    return math.log1p(-min(math.exp(log_prob), 1 - 1e-12))


def reached_for_another(
    tries: Sequence[PromptTries],
    answer: Int[Tensor, " batch"],
    answers: Int[Tensor, " answer"],
    others: Int[Tensor, " batch"],
) -> Tensors:
    """Return whether the search for another answer reached it, and the share of all that it did.

    "shuffled.is_right" is -1, and "shuffled.chance" 0, where there is no other answer.
    """
    reached, chances = [], []
    for each, own, other in zip(tries, answer.tolist(), others.tolist(), strict=True):
        guesses = {one.score.guess for one in each.shuffled}
        pool = [one for one in answers.tolist() if one != own]
        reached.append(-1 if other < 0 else int(any(t.score.is_right(1) for t in each.shuffled)))
        chances.append(sum(one in guesses for one in pool) / max(1, len(pool)))
    return {"shuffled.is_right": torch.tensor(reached), "shuffled.chance": torch.tensor(chances)}


def are_right(
    recording: Recording, answer: Int[Tensor, "batch 1"], paths: Int[Tensor, "path place"]
) -> Bool[Tensor, "batch path"]:
    """Return whether each prompt's first guess is right along each path; -1 ends a path."""
    every = range(len(answer))
    scorer = PathScorer(recording, every, answer)
    scores = [
        scorer.scores(every, [tuple(layer for layer in path if layer >= 0)] * len(every))
        for path in paths.tolist()
    ]
    return torch.tensor([[score.is_right() for score in of_path] for of_path in scores]).T
