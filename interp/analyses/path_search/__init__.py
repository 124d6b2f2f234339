"""Would another path through the layers answer: fewer of them, or some of them again?

After "Skip a Layer or Loop it?" (arXiv 2507.07996) and Dr.LLM (arXiv 2510.12773): for each prompt,
a tree search over paths that skip or repeat segments of layers finds the shortest one whose first
guess is the answer. The answer leads the search, and of many paths some are right by chance: so
random paths of the same lengths, the same search for another prompt's answer, sampled answers, and
one fixed path chosen on other prompts have as many tries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from interp.analyses.path_search.fixed import fixed_paths
from interp.analyses.path_search.paraphrases import paraphrases, transferred
from interp.analyses.path_search.result import PathSearchResult
from interp.analyses.path_search.tries import (
    all_tries,
    are_right,
    reached_for_another,
    sampled,
    tensors_of,
)
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError, TaskError
from interp.models import Model
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Tensors
from interp.sweeps.answers import require_answers
from interp.sweeps.outputs import held_at_the_end
from interp.sweeps.path_scores import Reward, Search, shortest_right
from interp.sweeps.path_tree import Bandit, Operations
from interp.sweeps.tags import draw_seed, rows_of
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

__all__ = ["PathSearch", "PathSearchResult"]


@dataclass(frozen=True)
class PathSearch(Analysis):
    """Search `n_simulations` paths for each prompt, the ordinary one among them.

    `reward` is 1 for a right answer ("right"), or how far the answer's logit is ahead of all others
    ("margin") or of the wrong answer ("logit_diff"). An edit skips a segment of up to
    `longest_segment` layers, or runs it up to `most_repeats` times more. `transfer` asks whether a
    prompt's path serves another text that asks for the same: a related prompt "paraphrase", else
    one of the same group and answer.
    """

    n_simulations: Annotated[int, AtLeast(1)] = 50
    operations: Operations = "skips and repeats"
    reward: Reward = "right"
    longest_segment: Annotated[int, AtLeast(1)] = 4
    most_repeats: Annotated[int, AtLeast(1)] = 3
    exploration: float = 1.8
    length_penalty: float = 5.0
    transfer: Literal["where possible", "needed", "none"] = "where possible"
    seed: int = 0
    rank: ClassVar[int] = 103
    page: ClassVar[str] = "paths"
    question: ClassVar[str] = (
        "Is there another path through the layers that gives the right answer, or a shorter one?"
    )
    how: ClassVar[str] = (
        "For each prompt, a tree search tries paths that skip segments of layers or run them again,"
        " until it has made as many tries as every control: random paths of the same lengths, the"
        " same search for another prompt's answer, sampled answers, one fixed path."
    )
    caveat: ClassVar[str] = (
        "The right answer leads the search: its successes say what paths can do, not that a model"
        " could choose among them."
    )

    @property
    def _search(self) -> Search:
        return Search(
            self.n_simulations,
            self.operations,
            self.reward,
            self.longest_segment,
            self.most_repeats,
            Bandit(self.exploration, self.length_penalty),
        )

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise where an answer is missing, or the wrong one that `reward` compares it with."""
        require_answers(shard)
        if self.reward == "logit_diff" and shard.wrong is None:
            raise TaskError(shard.missing("wrong"))
        if model.n_layers < 2:
            raise AnalysisError(f"model {model.name!r} has 1 layer; there is no other path")

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return the task's answers, paraphrases, and one path chosen on each half of the prompts.

        Raises AnalysisError for prompts without a paraphrase where transfer is "needed".
        """
        prepared: Tensors = {}
        if self.transfer != "none":
            prepared |= paraphrases(model, task, are_needed=self.transfer == "needed")
        shards = [model.tokenize(shard) for shard in model.shards(task)]
        answers = torch.cat([require_answers(shard)[:, 0] for shard in shards])
        prepared["answers"] = torch.unique(answers).cpu()
        with model.running:
            return prepared | fixed_paths(model, shards, self._search, seed=self.seed)

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return every try of search and random paths, and what the other controls reach.

        "search.path" and "random.path" [batch try 2L] hold layers, -1 after a path's end; the
        first try is the ordinary path. "fixed.path" [batch 2 2L] are those chosen on either half.
        "transfer" [batch 3] is whether a paraphrase is answered: by the ordinary path, by the
        prompt's shortest right path, by its shortest right random path (-1: there is none).
        """
        answer, others = require_answers(shard)[:, 0], self._other_labels(shard, prepared)
        labels = torch.stack([answer, others.to(answer.device).clamp_min(0)], dim=1)
        seeds = [draw_seed(prompt.id, seed=self.seed) for prompt in shard.prompts]
        tries = all_tries(recording, self._search, labels, shard.wrong, seeds, others.tolist())
        shortest = [[shortest_right(kind) for kind in (each.search, each.random)] for each in tries]
        fixed = prepared["fixed.path"]
        return (
            tensors_of(tries, n_layers=recording.n_layers)
            | sampled(tries)
            | reached_for_another(tries, answer, prepared["answers"], others)
            | {
                "half": prepared["half"][rows_of(prepared["key"], shard.prompts)],
                "fixed.path": fixed.expand(len(tries), -1, -1).contiguous(),
                "fixed.is_right": are_right(recording, answer[:, None], fixed),
                "transfer": transferred(recording, shard, prepared, shortest),
            }
        )

    def _other_labels(self, shard: TokenBatch, prepared: Tensors) -> Int[Tensor, " batch"]:
        """Return another answer of the task for each prompt, drawn by its id; -1 if all agree."""
        chosen = []
        for prompt, own in zip(shard.prompts, require_answers(shard)[:, 0].tolist(), strict=True):
            others = [each for each in prepared["answers"].tolist() if each != own]
            draw = draw_seed(prompt.id, seed=self.seed + 1)
            chosen.append(others[draw % len(others)] if others else -1)
        return torch.tensor(chosen)

    def combine(self, parts: Sequence[Tensors]) -> PathSearchResult:
        """Return all tries of all prompts."""
        return PathSearchResult(self, joined(parts))

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return an upper bound: every path twice as long as the ordinary one, nothing shared.

        Each prompt is searched, searched for another answer, tried on random paths, and takes part
        in choosing one fixed path; then there are two fixed paths, and a paraphrase with two.
        """
        n, n_pos = shard.tokens.shape
        searched = 4 * (self.n_simulations - 1) + 2
        transfer = 0 if self.transfer == "none" else 5
        numbers = n * (2 * self.n_simulations * (2 * model.n_layers + 3) + 6 * model.n_layers + 8)
        streams = 3 * self.n_simulations * model.n_layers * n_pos * model.d_model // 2
        held = min(n * streams, 2**27) + held_at_the_end(1, n, model.d_vocab)
        forwards, logits = 2.0 * searched + transfer, n * (searched + 3)
        return Cost(forwards, numbers, held, is_bound=True, weight=0.3, logits=logits)

    def coarser(self) -> "PathSearch | None":
        """Return half as many simulations, but not less than 12."""
        fewer = self.n_simulations // 2
        return None if fewer < 12 else replace(self, n_simulations=fewer)
