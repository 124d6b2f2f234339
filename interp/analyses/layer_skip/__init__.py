"""What breaks when a layer is skipped: later layers, the output; at once, later, directly?

"Do Language Models Use Their Depth Efficiently?" (arXiv 2505.13898), section 3.2. The effect of
skipping layer s on layer l is the relative change of l's contribution, ||c_l - c'_l|| / ||c_l||; on
the output, the L2 change of the probabilities. Scopes: "all" skips s everywhere; "future" skips
before a split and measures from the split on; "direct" subtracts s's write from the input of each
later layer alone, so nothing propagates (both everywhere, and before the split only, as
"direct_future"). The paper's h_l - h_s for direct effects is, in its code, h_l - c_s; so it is
here. The paper skips all positions, its code all but the first, which is the default.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from interp.analyses.layer_skip.effects import (
    LayerEffects,
    clean_outcomes,
    output_effects,
    reduce_into,
)
from interp.analyses.layer_skip.result import LayerSkipResult
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError
from interp.models import Model
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Tensors
from interp.sweeps.cosines import Part
from interp.sweeps.mixers import require_kv, require_parts
from interp.sweeps.outputs import held
from interp.sweeps.positions import FirstPosition, SkippedPositions, first_read, first_skipped
from interp.sweeps.staircase import Scope, Step, staircase
from interp.tasks.batch import TokenBatch

__all__ = ["LayerSkip", "LayerSkipResult"]
_FEWEST_TOKENS = {"even": 4, "paper": 13}


@dataclass(frozen=True)
class LayerSkip(Analysis):
    """Skip every layer, or one part of it, in one sweep.

    `splits` "even" spreads them over the prompt; "paper" draws them as published (seed 123).
    `skipped_positions` "all but the first", as in the published code, spares position 0, often a
    sink without which everything changes. `first_position` says whether changes there are measured
    (there are none where it is spared). `output_positions` says where p is compared with p': "all"
    that are measured, as published, or only the "last", without the logits of the others. Outcomes
    of answers are of the last position always.
    """

    part: Part = "layer"
    scopes: tuple[Literal["all", "future", "direct"], ...] = ("all", "future", "direct")
    splits: Literal["even", "paper"] = "even"
    n_splits: Annotated[int, AtLeast(1)] = 4
    percentile: float = 95.0
    skipped_positions: SkippedPositions = "all but the first"
    first_position: FirstPosition = "excluded"
    output_positions: Literal["all", "last"] = "all"
    seed: int = 0
    rank: ClassVar[int] = 1
    page: ClassVar[str] = "skip"
    question: ClassVar[str] = (
        "What breaks when a layer is skipped: later layers, the output, future tokens?"
    )
    how: ClassVar[str] = (
        "Each layer is left out in turn, and every later layer and the output are compared with the"
        " clean run: skipped at every position (but the first, unless asked for), only before a"
        " split (what future tokens need), and for each later layer alone (direct effects)."
    )
    caveat: ClassVar[str] = (
        "Later layers meet a stream that they never saw in training,"
        " so the loss is not the layer's own alone."
    )

    @property
    def _scopes(self) -> tuple[Scope, ...]:
        wanted: list[Scope] = ["all"]
        wanted += ["future"] if "future" in self.scopes else []
        wanted += ["direct", "direct_future"] if "direct" in self.scopes else []
        return tuple(wanted)

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise AnalysisError for prompts too short to be split, or layers without keys."""
        if self._scopes != ("all",):
            require_kv(model, instead="set layer_skip.scopes to all")
        if self.part != "layer":
            require_parts(model, instead="set layer_skip.part to layer")
        n_pos = shard.tokens.shape[1]
        if self._scopes != ("all",) and not self._splits(n_pos):
            raise AnalysisError(
                f"prompt {shard.prompts[0].id!r} has {n_pos} tokens; splits={self.splits!r} needs"
                f" at least {_FEWEST_TOKENS[self.splits]}"
            )

    def _splits(self, n_pos: int) -> list[int]:
        """Return the positions before which layers are skipped; none if prompts are too short."""
        if self._scopes == ("all",) or n_pos < _FEWEST_TOKENS[self.splits]:
            return []
        if self.splits == "even":
            return sorted({round(t) for t in np.linspace(2, n_pos - 2, self.n_splits)})
        candidates = list(range(8, n_pos - 4, 8))
        random.Random(123).shuffle(candidates)
        return sorted(candidates[: self.n_splits])

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return per prompt the effects on layers [batch skipped affected] and on the output.

        On layers: maxima over positions, where they are, and means; on the output [batch skipped]:
        ||p - p'|| and KL (maxima and means over positions), and the answer's outcomes after the
        skip; without a skip they are [batch].
        """
        n, layers = len(shard.prompts), recording.n_layers
        splits, first = self._splits(recording.n_pos), first_read(self.first_position)
        effects = {scope: LayerEffects(n, layers) for scope in self._scopes}
        outputs = clean_outcomes(recording, shard)
        how: dict[str, Any] = {"scopes": self._scopes, "splits": splits}
        begin = first_skipped(self.skipped_positions)
        for event in staircase(recording, part=self.part, begin=begin, **how):
            if isinstance(event, Step):
                effects[event.scope].add(event, first=first)
                continue
            share = 1.0 if event.scope == "all" else 1 / len(splits)
            begin_at = first if self.output_positions == "all" else recording.n_pos - 1
            of_output = output_effects(recording, shard, event, share=share, begin=begin_at)
            for key, value in of_output.items():
                reduce_into(outputs, f"{event.scope}.{key}", value)
        for scope, effect in effects.items():
            outputs |= {f"{scope}.{key}": value for key, value in effect.tensors().items()}
        return outputs

    def _logits_held(self, model: Model, shard: TokenBatch) -> int:
        n, n_pos = shard.tokens.shape
        n_tokens = n * (n_pos if self.output_positions == "all" else 1)
        return held(model.n_layers, n_tokens, model.d_vocab)

    def combine(self, parts: Sequence[Tensors]) -> LayerSkipResult:
        """Return maxima (as the paper), percentiles and means over prompts, for every scope."""
        known = set.intersection(*map(set, parts))  # some prompts may lack a wrong answer
        whole = joined([{key: part[key] for key in part if key in known} for part in parts])
        return LayerSkipResult(self, whole, self._scopes)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Half a sweep per scope over all positions; per split, the share of them after it."""
        n_tokens, n_pos = shard.tokens.numel(), shard.tokens.shape[1]
        layers = model.n_layers
        behind = sum((n_pos - t) / n_pos for t in self._splits(n_pos))
        sweeps = sum(behind if scope.endswith("future") else 1.0 for scope in self._scopes)
        held = 8 * layers * n_tokens * model.d_model + self._logits_held(model, shard)
        numbers = len(shard.prompts) * layers * (3 * layers + 7) * len(self._scopes)
        n_read = n_tokens if self.output_positions == "all" else len(shard.prompts)
        logits = round(layers * sweeps * n_read)
        return Cost((layers - 1) / 2 * sweeps, numbers, held, logits=logits)
