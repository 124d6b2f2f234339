"""Does it hurt to skip the layers that leave a token alone, and less than skipping others as often?

"Void in Language Models" (arXiv 2505.14467) finds voids (see void_detection) and reports scores
"with voids skipped". Its code runs every layer and reads the prediction from after the last active
one. That and two ways of really skipping are kept apart here: "read-out" (as published), "masked
stream" (voids judged on the stream that earlier voids have left; all layers run) and "two-pass"
(voids of a clean pass are bypassed in a second one; without their keys and values, or with them
kept). Each has controls that skip as much: random layers, random tokens, and the layers of least
block influence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch

from interp.analyses.void_skip.evaluations import EVALUATIONS, FULL, streams_of
from interp.analyses.void_skip.masks import KINDS, Skipping, calibrate, n_drawn, over_draws
from interp.analyses.void_skip.result import VoidSkipResult
from interp.analyses.void_skip.scores import (
    ScoredOptions,
    longer_options,
    option_tensors,
    scores_of,
)
from interp.analyses.void_skip.texts import text_scores, verdicts_on_texts
from interp.analysis import Analysis, Cost
from interp.errors import TaskError
from interp.models import Model
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sweeps.answers import require_answers
from interp.sweeps.choices import is_choice, option_order
from interp.sweeps.mixers import require_kv
from interp.sweeps.positions import SkippedPositions, first_skipped
from interp.sweeps.voids import require_alphas
from interp.tasks import Prompt, Task
from interp.tasks.batch import TokenBatch


@dataclass(frozen=True)
class VoidSkip(Analysis):
    """Skip the voids at `alpha` (and `alphas`) and score the task.

    Random controls are means of `n_random` draws. `scores` are "answer" (the answer's first token:
    accuracy, log-probability and, where a wrong answer is given, the logit difference), "choices"
    (the likeliest option) and "text" (perplexity); by default all that suit the prompts, "text"
    only without answers. With `max_new_tokens`, greedy responses of that length are also matched
    with the answer. With `skipped_positions` "all but the first", token 0 skips nothing. Rates and
    block influence are measured on the first `n_calibration` prompts, where layers can be skipped.
    """

    alpha: float = 0.8
    alphas: tuple[float, ...] = (0.2, 0.4)
    scores: tuple[Literal["answer", "choices", "text"], ...] = ()
    max_new_tokens: Annotated[int, AtLeast(0)] = 0
    n_random: Annotated[int, AtLeast(1)] = 2
    skipped_positions: SkippedPositions = "all"
    n_calibration: Annotated[int, AtLeast(1)] = 32
    seed: int = 0
    question: ClassVar[str] = (
        "Does skipping void layers hurt, and less than skipping equally many others?"
    )
    how: ClassVar[str] = (
        "Layers found void are left out for their tokens: the prediction is read from"
        " after the last active layer (as published), the stream is masked, or a second pass"
        " bypasses them. Each is compared with controls that skip as much."
    )
    caveat: ClassVar[str] = (
        "Voids are found by a full pass, so what is saved has to be weighed against finding them."
    )
    formerly: ClassVar[Mapping[str, str]] = {"first_position": "skipped_positions"}
    rank: ClassVar[int] = 7
    page: ClassVar[str] = "voids"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_alphas(self.all_alphas)

    @property
    def all_alphas(self) -> tuple[float, ...]:
        """Return every threshold asked for, in order."""
        return tuple(sorted({self.alpha, *self.alphas}))

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise TaskError, naming prompts, for missing answers or choices and for short texts."""
        require_kv(model)
        if "answer" in self.scores or self.max_new_tokens:
            require_answers(shard)
        if self.max_new_tokens:
            model.refuse_texts(shard.prompts)
        if "choices" in self.scores:
            for prompt in shard.prompts:
                option_order(prompt)
        if self.max_new_tokens:
            model.refuse_responses(shard, self.max_new_tokens)
        if "text" in self._wants(shard) and shard.tokens.shape[1] < 2:
            raise TaskError(
                f"prompt {shard.prompts[0].id!r} has 1 token; perplexity needs at least 2"
            )

    def _wants(self, shard: TokenBatch) -> tuple[str, ...]:
        """Return which of "answer" and "text" are scored."""
        has_answer = shard.answer is not None
        asked = self.scores or (("answer",) if has_answer else ("text",))
        return tuple(name for name in asked if name == "text" or (name == "answer" and has_answer))

    def _wants_choices(self, prompts: Sequence[Prompt]) -> bool:
        return "choices" in self.scores or (not self.scores and all(map(is_choice, prompts)))

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return the calibration, the tokens of options, and verdicts on generated texts."""
        first = task.of(task.prompts[: self.n_calibration])
        with torch.no_grad():
            begin = first_skipped(self.skipped_positions)
            prepared = calibrate(model, first, alphas=self.all_alphas, begin=begin)
        if self._wants_choices(task.prompts):
            prepared |= option_tensors(model, task.prompts, seed=self.seed)
        if self.max_new_tokens:
            skipping = self.skipping(prepared)
            prepared |= verdicts_on_texts(model, task, skipping, n_new=self.max_new_tokens)
        return prepared

    def skipping(self, prepared: Tensors) -> Skipping:
        """Return what is skipped, given the calibration."""
        rates, influence = prepared["rates"], prepared["influence"]
        begin = first_skipped(self.skipped_positions)
        return Skipping(self.all_alphas, self.n_random, begin, self.seed, rates, influence)

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return scores of the full model [batch] and of skipping [batch evaluation alpha kind].

        "skipped" and "skipped.last" are the shares of layers skipped, over all tokens and at the
        last; "key_share" [batch layer] is the share of weights that make keys and values.
        """
        skipping, prompts = self.skipping(prepared), shard.prompts
        options = None
        if "options" in prepared:
            options = ScoredOptions.of(recording, shard, prepared, skipping)
        ways: dict[str, Tensors] = {}
        for way in (FULL, *EVALUATIONS):
            masks = skipping.masks(recording, prompts, way)
            ways[way] = scores_of(
                recording,
                streams_of(recording, way, masks),
                shard,
                wants=self._wants(shard),
                options=options,
                evaluation=way,
            )
            skipped = (~masks).float().mean(2)
            if way != FULL:
                ways[way] |= {"skipped": skipped.mean(-1), "skipped.last": skipped[..., -1]}
        measured = {f"full.{name}": score[0] for name, score in ways.pop(FULL).items()}
        for name in ways[EVALUATIONS[0]]:
            by_way = [over_draws(ways[way][name], n_random=self.n_random) for way in EVALUATIONS]
            measured[name] = torch.stack(by_way, dim=1)
        measured["n_tokens"] = torch.full((len(prompts),), shard.tokens.shape[1] - 1)
        measured["key_share"] = prepared["key_share"].expand(len(prompts), -1).clone()
        if "said" in prepared:
            measured |= text_scores(prepared, prompts)
        return {name: value.cpu() for name, value in measured.items()}

    def combine(self, parts: Sequence[Tensors]) -> VoidSkipResult:
        """Return every score, over the prompts that have it."""
        names = dict.fromkeys(name for part in parts for name in part)
        arrays = {
            n: torch.cat([part[n] for part in parts if n in part]).double().numpy() for n in names
        }
        sizes = [len(part["n_tokens"]) for part in parts]
        has = {n: np.repeat([n in part for part in parts], sizes) for n in names}
        return VoidSkipResult(self, arrays, has)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """A pass per alpha for the masked stream, and one for each mask of the bypasses.

        As many, and a clean one, for options of several tokens. Generated texts are made once,
        before the shards.
        """
        n_alphas = len(self.all_alphas)
        masks = n_alphas * n_drawn(self.n_random)
        passes = n_alphas + (len(EVALUATIONS) - 1) * masks
        forwards, (n, n_pos) = float(passes), shard.tokens.shape
        if self._wants_choices(shard.prompts):
            options = option_tensors(model, shard.prompts, seed=self.seed)["options"]
            for width, places in longer_options(options).items():
                forwards += (passes + 1) * len(places) * (n_pos + width - 1) / (n * n_pos)
        numbers = n * (len(EVALUATIONS) * n_alphas * len(KINDS) * 6 + model.n_layers)
        held = 8 * shard.tokens.numel() * model.d_model + masks * (
            shard.tokens.numel() * model.n_layers + n * model.d_vocab
        )
        return Cost(forwards, numbers, held, logits=n * (passes + 1))
