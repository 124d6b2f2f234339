"""What prompts predict when their layers run along other paths, and a search for right ones."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.replay import Recording
from interp.sweeps.lens import logits_at_once
from interp.sweeps.path_tree import Bandit, Edit, Edits, Operations, Path, Tree
from interp.sweeps.prefix_tree import PrefixTree

Reward = Literal["right", "margin", "logit_diff"]


class Score(NamedTuple):
    """What one path predicts after a prompt: its first guess, and how each label fares.

    By label: the log-probability in nats, the logit less the largest other one (0 or more: the
    label comes first), and less that of the wrong answer (NaN without one).
    """

    guess: int
    log_probs: tuple[float, ...]
    margins: tuple[float, ...]
    differences: tuple[float, ...]

    def is_right(self, label: int = 0) -> bool:
        """Tell whether no token is more probable than a label."""
        return self.margins[label] >= 0

    def reward(self, kind: Reward, label: int = 0) -> float:
        """Return 1 or 0, or how far ahead a label is, between 0 and 1."""
        if kind == "right":
            return float(self.is_right(label))
        ahead = self.margins if kind == "margin" else self.differences
        ahead_by = round(ahead[label], 3)  # rounding of logits must not lead the search elsewhere
        return 0.5 * (1 + math.tanh(ahead_by / 2))


class PathScorer:
    """Scores paths of some prompts of a recording; each path of a prompt runs once.

    `labels` [batch label] are tokens: the answer, and what else is looked for.
    """

    def __init__(
        self,
        recording: Recording,
        prompts: Sequence[int],
        labels: Int[Tensor, "batch label"],
        wrong: Int[Tensor, " batch"] | None = None,
    ) -> None:
        self._recording, self._labels, self._wrong = recording, labels, wrong
        self._streams = PrefixTree(recording, prompts)
        self._known: dict[tuple[int, Path], Score] = {}

    def scores(self, prompts: Sequence[int], paths: Sequence[Path]) -> list[Score]:
        """Return the score of each prompt along its path; a prompt may have several."""
        asked = [*zip(prompts, paths, strict=True)]
        new = [each for each in dict.fromkeys(asked) if each not in self._known]
        if new:
            ends = self._streams.ends(*map(list, zip(*new, strict=True)))
            whose = torch.tensor([prompt for prompt, _ in new], device=ends.device)
            self._known |= zip(new, self._read(ends, whose), strict=True)
        return [self._known[each] for each in asked]

    def _read(
        self, ends: Float[Tensor, "row d_model"], whose: Int[Tensor, " row"]
    ) -> Iterator[Score]:
        size = logits_at_once(self._recording)
        for some, of in zip(torch.split(ends, size), torch.split(whose, size), strict=True):
            logits = self._recording.logits(some[:, None])[:, 0]
            labels = self._labels[of]
            chosen = logits.gather(1, labels)
            first, second = torch.split(logits.topk(2).values, 1, dim=1)
            is_first = torch.eq(logits.argmax(-1, keepdim=True), labels)
            columns = (
                logits.argmax(-1),
                chosen - logits.logsumexp(-1, keepdim=True),
                chosen - torch.where(is_first, second, first),
                chosen - self._wrong_logits(logits, of),
            )
            for guess, *by_label in zip(*(column.tolist() for column in columns), strict=True):
                yield Score(guess, *map(tuple, by_label))

    def _wrong_logits(self, logits: Tensor, of: Tensor) -> Tensor:
        if self._wrong is None:
            return torch.full_like(logits[:, :1], math.nan)
        return logits.gather(1, self._wrong[of, None])


class Try(NamedTuple):
    """A path that was tried: the edits that made it, and what it predicts."""

    path: Path
    edits: tuple[Edit, ...]
    score: Score


@dataclass(frozen=True)
class Search:
    """How paths are searched: `n_simulations` tries for each prompt, of which one is ordinary."""

    n_simulations: int = 50
    operations: Operations = "skips and repeats"
    reward: Reward = "right"
    longest_segment: int = 4
    most_repeats: int = 3
    bandit: Bandit = field(default_factory=Bandit)

    def tree(self, n_layers: int, *, seed: int) -> Tree:
        """Return a tree to search; its paths are at most twice as long as the ordinary one."""
        edits = Edits(self.operations, self.longest_segment, self.most_repeats, 2 * n_layers)
        return Tree(n_layers, edits, self.bandit, seed=seed)

    def run(
        self, scorer: PathScorer, seeds: Mapping[int, int], *, n_layers: int, label: int = 0
    ) -> dict[int, list[Try]]:
        """Return every try by prompt, in order; each prompt's own tree is led by its own seed."""
        trees = {prompt: self.tree(n_layers, seed=seed) for prompt, seed in seeds.items()}
        tries: dict[int, list[Try]] = {prompt: [] for prompt in trees}
        for _ in range(self.n_simulations):
            paths = [tree.propose() for tree in trees.values()]
            scores = scorer.scores([*trees], paths)
            for (prompt, tree), path, score in zip(trees.items(), paths, scores, strict=True):
                tree.reward(score.reward(self.reward, label))
                tries[prompt].append(Try(path, tree.edits_made, score))
        return tries


def shortest_right(tries: Sequence[Try], *, label: int = 0) -> Path | None:
    """Return the shortest path that makes a label come first, of equal ones the surest; or None."""
    right = [each for each in tries if each.score.is_right(label)]
    best = min(right, key=lambda each: (len(each.path), -each.score.log_probs[label]), default=None)
    return None if best is None else best.path
