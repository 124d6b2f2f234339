"""Prompts with their corrupted twins, and what is measured on both."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import AnalysisError, TaskError
from interp.metrics import Metric, Predictions, Values, kl, log_prob, logit_diff
from interp.models import Model
from interp.replay import Recording
from interp.sweeps.answers import SameLength, by_answer_length, require_answers
from interp.tasks.batch import TokenBatch

Direction = Literal["denoise", "noise"]
DIRECTIONS: dict[Direction, str] = {
    "denoise": "clean into corrupted",
    "noise": "corrupted into clean",
}


@dataclass(frozen=True)
class Twins:
    """Prompts with answers of one length, and their corrupted twins.

    `base` is the run that is patched, `source` the one that patches come from. To denoise, the base
    is the corrupted run and the source the clean one; to noise, the other way round. `reference`
    holds the clean run's logits where the answer is predicted.
    """

    clean: SameLength
    corrupted: Int[Tensor, "batch pos"]
    wrong: Int[Tensor, " batch"] | None
    metric: Metric
    direction: Direction
    reference: Float[Tensor, "batch answer_pos d_vocab"] | None = None

    @property
    def base(self) -> Int[Tensor, "batch pos"]:
        """Return the tokens of the run that is patched."""
        return self.corrupted if self.direction == "denoise" else self.clean.tokens

    @property
    def source(self) -> Int[Tensor, "batch pos"]:
        """Return the tokens of the run that patches come from."""
        return self.clean.tokens if self.direction == "denoise" else self.corrupted

    def value(self, logits: Predictions) -> Values:
        """Return the metric of logits at the positions that predict the answer."""
        match self.metric:
            case "logit_diff":
                return logit_diff(logits, self.clean.answer[:, 0], self._wrong)
            case "log_prob":
                return log_prob(logits, self.clean.answer)
            case "kl":
                if self.reference is None:
                    raise AnalysisError(
                        "metric kl compares with the clean run's logits; none were given"
                    )
                return kl(logits, self.reference)

    @property
    def _wrong(self) -> Tensor:
        if self.wrong is None:
            raise TaskError("metric logit_diff compares with a wrong answer; none was given")
        return self.wrong

    def only(self, rows: Int[Tensor, " kept"]) -> "Twins":
        """Return some of the prompts, with a recording of their own."""
        clean, reference = self.clean.only(rows), self.reference
        wrong = None if self.wrong is None else self.wrong[rows]
        kept = None if reference is None else reference[rows]
        return replace(
            self, clean=clean, corrupted=self.corrupted[rows], wrong=wrong, reference=kept
        )

    def with_reference(self, logits: Float[Tensor, "batch answer_pos d_vocab"]) -> "Twins":
        """Return the same with the clean run's logits as its reference."""
        return replace(self, reference=logits.detach())


def twins_of(
    recording: Recording, shard: TokenBatch, *, metric: Metric, direction: Direction
) -> Iterator[Twins]:
    """Yield the prompts of a shard with their twins, one length of answer at a time."""
    if shard.corrupted is None:
        raise TaskError(
            shard.why.get("corrupted")
            or f"{shard.first_without('corrupted')}; a corrupted twin is needed"
        )
    for group in by_answer_length(recording, shard):
        twin = torch.cat([shard.corrupted[group.rows], group.answer[:, :-1]], dim=1)
        wrong = None if shard.wrong is None else shard.wrong[group.rows]
        yield Twins(group, twin, wrong, metric, direction)


def check_gradient(metric: Metric, direction: Direction) -> None:
    """Raise AnalysisError if the metric has no first-order change in the base run."""
    if metric == "kl" and direction == "noise":
        raise AnalysisError(
            "metric kl has gradient 0 in the clean run, so it cannot noise; use denoise or log_prob"
        )


def check_twins(model: Model, shard: TokenBatch, *, metric: Metric) -> None:
    """Raise TaskError, naming a prompt, where prompt and twin cannot be compared."""
    answers = require_answers(shard)
    twins = (
        shard.corrupted
        if shard.corrupted is not None
        else model.tokenize(shard.prompts, corrupted=True).tokens
    )
    for prompt, tokens, twin in zip(shard.prompts, shard.tokens, twins, strict=True):
        if torch.equal(tokens, twin):
            raise TaskError(
                f"prompt {prompt.id!r} and its corrupted twin are the same;"
                " they must differ somewhere"
            )
    if metric != "logit_diff":
        return
    shard.require_single_token_answers()
    if shard.wrong is None:
        why = shard.why.get("wrong") or shard.first_without("wrong")
        raise TaskError(
            f"metric logit_diff needs a wrong answer; {why} (log_prob and kl need none)"
        )
    for prompt, right, wrong in zip(
        shard.prompts, answers[:, 0].tolist(), shard.wrong.tolist(), strict=True
    ):
        if right == wrong:
            raise TaskError(
                f"prompt {prompt.id!r}:"
                f" answer {prompt.answer!r} and wrong {prompt.wrong!r} start with the same token"
            )
