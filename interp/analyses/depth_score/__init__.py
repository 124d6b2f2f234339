"""Do harder prompts use deeper layers?

"Do Language Models Use Their Depth Efficiently?" (arXiv 2505.13898), section 3.3: skip layer s
before a split and measure after it, as `layer_skip` does for future tokens; M[s, l] is the
relative change of what layer l writes, o[s] the L2 change of the probabilities. Layer s counts for
e[s], and the depth score is the mean layer, weighted by e:

    e_layer[s] = sum_l M[s, l] / max(1, L - 1 - s)        e_output[s] = o[s]
    d = sum_s s e[s] / sum_s e[s]

The paper counts layers from 1, so its score is d + 1. If harder prompts were computed deeper, d
would grow with the level.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from interp.analyses.depth_score.result import DepthScoreResult, depth_score, layer_effects
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError, unknown
from interp.models import Model
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Tensors
from interp.sweeps.answers import SameLength, by_answer_length, length_group_sizes, require_answers
from interp.sweeps.outputs import output_changes
from interp.sweeps.positions import SkippedPositions, first_skipped
from interp.sweeps.staircase import Ends, Step, staircase
from interp.sweeps.tags import bytes_of, texts_of
from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch

__all__ = ["DepthScore", "DepthScoreResult", "depth_score", "layer_effects"]
Splits = Literal["prediction", "answer", "within_answer"]
_SEED = 12345  # of the published splits


@dataclass(frozen=True)
class DepthScore(Analysis):
    """Compare the depth score between the levels of a tag, such as the number of hops.

    `splits` "prediction" measures from the position that predicts the answer's first token;
    "answer" from the answer's first token on, as published for multi-hop questions (which says
    nothing about answers of one token); "within_answer" at up to `n_splits` of the answer's offsets
    0, 4, 8, ..., as published for worked solutions. `skipped_positions` "all but the first", as in
    the published code, spares position 0, often a sink.
    """

    tag: str = "set"
    splits: Splits = "prediction"
    n_splits: Annotated[int, AtLeast(1)] = 4
    skipped_positions: SkippedPositions = "all but the first"
    seed: int = 0
    rank: ClassVar[int] = 3
    question: ClassVar[str] = "Do harder prompts use deeper layers?"
    how: ClassVar[str] = (
        "Every layer is skipped for the tokens before a split (but the first, unless asked for),"
        " and the effect after it is measured. The score is the mean layer, weighted by that"
        " effect, for prompts of each level of difficulty apart."
    )
    caveat: ClassVar[str] = (
        "Levels can differ in length and wording too;"
        " overlapping intervals are no evidence of equal depth."
    )

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise for prompts without the tag or an answer, or too short for a split."""
        for prompt in shard.prompts:
            self._level(prompt)
        answers = require_answers(shard)
        if (n_pos := shard.tokens.shape[1]) < 3:
            raise AnalysisError(
                f"prompt {shard.prompts[0].id!r} has {n_pos} tokens; at least 3 are needed"
            )
        for prompt, n in zip(shard.prompts, (answers >= 0).sum(1).tolist(), strict=True):
            if not self._splits(n_pos - 1, n):
                raise AnalysisError(
                    f"prompt {prompt.id!r} has an answer of {n} tokens;"
                    f" splits={self.splits!r} needs 5"
                )

    def _level(self, prompt: Prompt) -> str:
        if self.tag not in prompt.tags:
            raise AnalysisError(
                f"prompt {prompt.id!r}: {unknown('tag', self.tag, prompt.tags)};"
                " set depth_score.tag"
            )
        return prompt.tags[self.tag]

    def _splits(self, last: int, n_answer: int) -> list[int]:
        """Return the positions from which on effects are measured; `last` is the prompt's last."""
        match self.splits:
            case "prediction":
                return [last]
            case "answer":
                return [last + 1]
            case "within_answer":
                offsets = list(range(0, n_answer - 4, 4))
                random.Random(_SEED).shuffle(offsets)
                return sorted(last + 1 + offset for offset in offsets[: self.n_splits])

    @property
    def _is_whole(self) -> bool:
        """Tell whether the answer's last token is measured too."""
        return self.splits != "prediction"

    def check_all(self, model: Model, shards: Sequence[TokenBatch]) -> None:
        """Raise AnalysisError for a task with one level only."""
        levels = {self._level(prompt) for shard in shards for prompt in shard.prompts}
        if len(levels) < 2:
            raise AnalysisError(
                f"tag {self.tag!r} has one level, {levels.pop()!r};"
                " at least 2 are needed to compare"
            )

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return per prompt the largest and mean effects of skipped layers.

        Those on layers are [batch skipped affected], on the output [batch skipped].
        """
        n, layers = len(shard.prompts), recording.n_layers
        parts: Tensors = {
            "level": bytes_of([self._level(prompt) for prompt in shard.prompts]),
            "n_pos": torch.full((n,), recording.n_pos),
        }
        for statistic in ("max", "mean"):
            parts[f"layer.{statistic}"] = torch.zeros(n, layers, layers)
            parts[f"output.{statistic}"] = torch.zeros(n, layers)
        for group in by_answer_length(recording, shard, whole=self._is_whole):
            rows = group.rows.cpu()
            splits = self._splits(group.start, group.answer.shape[1])
            begin = first_skipped(self.skipped_positions)
            for key, skipped, change in _changes(group, splits, begin=begin):
                at: tuple[int | Tensor, ...] = (rows, *skipped)
                largest, mean = parts[f"{key}.max"], parts[f"{key}.mean"]
                largest[at] = torch.maximum(largest[at], change.amax(-1))
                mean[at] += change.mean(-1) / len(splits)
        return parts

    def combine(self, parts: Sequence[Tensors]) -> DepthScoreResult:
        """Return the scores of every level; lengths are unknown in parts of interp 0.1."""
        levels = [level for part in parts for level in texts_of(part["level"].numpy())]
        numbers = [{k: v.double() for k, v in part.items() if k != "level"} for part in parts]
        arrays = joined(numbers)
        lengths = arrays.pop("n_pos", np.zeros(len(levels)))
        return DepthScoreResult(self, np.array(levels), arrays, lengths)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return half a sweep over the prompt and, per split, the share of it after the split.

        Where answers are appended, their clean pass is included.
        """
        layers, last = model.n_layers, shard.tokens.shape[1] - 1
        block_tokens, logits = 0.0, 0
        sizes = length_group_sizes(shard, whole=self._is_whole)
        for size in sizes:
            n_answer = size.n_pos - last - (1 if self._is_whole else 0)
            splits = self._splits(last, n_answer)
            behind = sum(size.n_pos - split for split in splits)
            logits += size.n_prompts * layers * (size.n_pos - last) * len(splits)
            block_tokens += (
                size.n_prompts * (size.n_pos + behind) * layers * (layers - 1) / 2
                + size.passed * layers
            )
        n_tokens = max(size.n_pos for size in sizes) * len(shard.prompts)
        held = 8 * layers * n_tokens * model.d_model + 3 * len(shard.prompts) * model.d_vocab
        numbers = len(shard.prompts) * 2 * layers * (layers + 1)
        forwards = block_tokens / (layers * shard.tokens.numel())
        return Cost(forwards, numbers, held, logits=logits)


def _changes(
    group: SameLength, splits: list[int], *, begin: int
) -> Iterator[tuple[str, tuple[int, ...], Tensor]]:
    """Yield how skipping a layer changes what comes after each split.

    Each is "layer" or "output", the skipped layer (and the affected one), and the change [batch
    pos].
    """
    recording = group.recording
    clean = recording.resid(recording.n_layers)
    how: dict[str, Any] = {"part": "layer", "scopes": ("future",), "splits": splits}
    for event in staircase(recording, begin=begin, **how):
        match event:
            case Step(scope="future"):
                for skipped, change in enumerate(event.change):
                    yield "layer", (skipped, event.layer), change.cpu()
            case Ends(scope="future"):
                found = output_changes(recording, event.resid, clean[:, event.start :])
                for skipped, change in enumerate(found["l2"]):
                    yield "output", (skipped,), change.cpu()
