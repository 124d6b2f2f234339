"""Which layer of one model predicts which layer of another?

"Do Language Models Use Their Depth Efficiently?" (arXiv 2505.13898), section 3.4: a linear map from
every tap of a source to every tap of a target, judged by the mean over tokens of ‖y - ŷ‖ / ‖y‖. The
paper trains the maps; here the same loss is minimised in closed form from streamed moments.
Held-out prompts are read again, target taps group by group, as a token's ratio is no function of
moments. Tap l is before layer l, tap L after the last. Position 0 is left out, as published.
A residual stream is a walk, so neighbouring layers are alike in any model: what is found is
compared with untrained twins of the target, mapped in the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np

from interp.analyses.depth_map.continued import Onward
from interp.analyses.depth_map.frontier import Frontier
from interp.analyses.depth_map.grids import error_grids, fit_grids, similarity_grids
from interp.analyses.depth_map.result import DepthMapResult
from interp.analyses.depth_map.split import batches_by_role, held_out, misses_of, onward_of, stacked
from interp.analyses.depth_map.tap_maps import TapMaps
from interp.analyses.depth_map.taps import What, n_taps, pooled, pooled_by_prompt
from interp.analyses.depth_map.untrained_twins import twins_errors, twins_pooled
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError, TaskError
from interp.models import Model
from interp.models.untrained import N_TWINS
from interp.parameters import AtLeast, Between
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Tensors
from interp.sweeps.layers import COARSEST
from interp.sweeps.positions import FirstPosition, first_read, require_positions
from interp.sweeps.two_models import (
    other_of,
    refuse_other_ids,
    refuse_other_tokens,
    refuse_other_vocabulary,
)
from interp.tasks import Prompt, Task
from interp.tasks.batch import TokenBatch

_FEWEST_POOLED = 8  # prompts that "cka" and "rsa" compare


@dataclass(frozen=True)
class DepthMap(Analysis):
    """Map every tap of the model to every tap of `target` (a model's name; None: itself).

    `method`: "linear" (ridge, chosen on validation prompts) and "orthogonal" (a rotation and one
    scale) map token by token and need one tokenizer; "cka" (debiased) and "rsa" compare each
    prompt's mean over positions and need none. `what`: residuals, or each layer's contribution to
    them. `weighting` "relative" weights tokens by 1 / ‖y‖² in the fit. `first_position` says
    whether token 0 is fitted and judged (or pooled) too. `control` "untrained" maps to three
    untrained twins of the target too (from twins to themselves, if the target is the model).

    `continued` also asks causally: what the model holds after some layers is mapped and continued
    at a layer of the target, at every `every`-th of both; a state still answers where it reaches a
    `share` of the target's own accuracy. `method` is "orthogonal" or "linear" then; position 0 is
    mapped, so it is fitted.
    """

    target: str | None = None
    method: Literal["linear", "orthogonal", "cka", "rsa"] = "linear"
    what: What = "residual"
    weighting: Literal["equal", "relative"] = "equal"
    first_position: FirstPosition = "excluded"
    control: Literal["untrained", "none"] = "untrained"
    continued: bool = False
    share: Annotated[float, Between(0.0, 1.0)] = 0.8
    every: Annotated[int, AtLeast(1)] = 1
    seed: int = 0
    rank: ClassVar[int] = 9
    page: ClassVar[str] = "depthmap"
    names_other: ClassVar[str] = "target"
    question: ClassVar[str] = "Which layer of one model predicts which layer of another?"
    how: ClassVar[str] = (
        "Linear maps from every layer of one model to every layer of the other are fitted on"
        " training prompts, by a closed formula, and judged on held-out prompts by the error"
        " relative to a token's norm. What following the depth gains is compared with untrained"
        " models of the target's shape."
    )
    caveat: ClassVar[str] = (
        "That a layer can be predicted linearly does not say that it computes the same; small"
        " errors can be mostly the token's own embedding."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.continued and self.is_pooled:
            raise AnalysisError(
                f"continued=true and method={self.method!r} given; a state is continued under"
                " 'orthogonal' or 'linear' maps"
            )

    @property
    def is_pooled(self) -> bool:
        """Tell whether prompts are compared, not tokens."""
        return self.method in ("cka", "rsa")

    def target_of(self, model: Model) -> Model:
        """Return the target's model."""
        return other_of(model, self.target)

    def others(self, model: Model) -> dict[str, str]:
        """Return the target's fingerprint."""
        target = self.target_of(model)
        return {} if target is model else {"target": target.fingerprint}

    def maps(self, source: Model, target: Model) -> TapMaps:
        """Return how tokens are mapped."""
        is_orthogonal, is_relative = self.method == "orthogonal", self.weighting == "relative"
        how = (self.what, is_orthogonal, is_relative, first_read(self.first_position))
        return TapMaps(source, target, *how)

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise for prompts of one token, and for another tokenizer where one is needed."""
        require_positions(shard, first_position=self.first_position)
        target = self.target_of(model)
        if self.continued:
            refuse_other_vocabulary(model, target)
            if shard.answer is None:
                raise TaskError(shard.missing("answer"))
        if target is model:
            return
        if self.is_pooled:
            refuse_other_ids(model, target, shard, why="a chat or token ids need one")
            return
        refuse_other_tokens(
            model,
            target,
            shard,
            why=f"method={self.method!r} maps tokens and needs one; 'cka' and 'rsa' do not",
        )

    def check_all(self, model: Model, shards: Sequence[TokenBatch]) -> None:
        """Raise AnalysisError for too few prompts, tokens or features of the target."""
        target, n_prompts = self.target_of(model), sum(len(shard.prompts) for shard in shards)
        if self.is_pooled:
            if n_prompts < _FEWEST_POOLED:
                raise AnalysisError(
                    f"{n_prompts} prompts given; method={self.method!r} needs at least"
                    f" {_FEWEST_POOLED}"
                )
            return
        if self.method == "orthogonal" and target.d_model < model.d_model:
            raise AnalysisError(
                f"method='orthogonal' from {model.d_model} features to {target.d_model};"
                " at least as many are needed"
            )
        roles = batches_by_role(model, [shard.prompts for shard in shards], seed=self.seed)
        self.maps(model, target).refuse_too_few(roles)

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return prompts' pooled target taps, or what fitted maps miss on held-out prompts.

        Also "control" of every prompt, the same towards untrained twins, where they can be built.
        """
        shards, target = model.shards(task), self.target_of(model)
        if self.is_pooled:
            return self._pooled_target(model, shards)
        maps = self.maps(model, target)
        batches = batches_by_role(model, shards, seed=self.seed)
        found = maps.fit_and_test(batches)
        if self.control == "untrained":
            found |= twins_errors(
                lambda twin: self.maps(twin if target is model else model, twin),
                target,
                batches,
                seed=self.seed,
            )
        if self.continued:
            has_control = self.control == "untrained"
            found |= self.onward(model).by_prompt(batches, control=has_control)
        return found

    def onward(self, model: Model) -> Onward:
        """Return how states of the model are continued in the target."""
        is_orthogonal, target = self.method == "orthogonal", self.target_of(model)
        return Onward(model, target, is_orthogonal, every=self.every, seed=self.seed)

    def coarser(self) -> "DepthMap | None":
        """Return the same continued at every second place; None if nothing is continued."""
        if not self.continued or self.every >= COARSEST:
            return None
        return replace(self, every=2 * self.every)

    def _pooled_target(self, model: Model, shards: Sequence[Sequence[Prompt]]) -> Tensors:
        target = self.target_of(model)
        how = (self.what, first_read(self.first_position))
        by_prompt = {} if target is model else pooled_by_prompt(target, shards, *how)
        if self.control == "untrained":
            by_prompt |= twins_pooled(target, shards, *how, seed=self.seed)
        return by_prompt

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return pooled taps "source" and "target" [batch tap d_model], or the maps' misses.

        The misses of held-out prompts are "error" and "squared" [batch source+1 target], summed
        over "tokens" [batch]; 0 for others. "control" are twins' errors [batch twin source target]
        or taps [batch twin tap d_model]; these are "own_control" where twins are mapped to
        themselves.
        """
        begin = first_read(self.first_position)
        if not self.is_pooled:
            return misses_of(shard, prepared, begin=begin) | onward_of(shard, prepared)
        keys = [prompt.id for prompt in shard.prompts]
        source = pooled(recording, shard, self.what, begin=begin)
        target, control = (stacked(prepared, kind, keys) for kind in ("prompt", "control"))
        name = "own_control" if target is None else "control"
        parts = {"source": source, "target": source.clone() if target is None else target}
        return parts | {"drawn": shard.groups} | ({} if control is None else {name: control})

    def combine(self, parts: Sequence[Tensors]) -> DepthMapResult:
        """Return the grid over sources and targets, and those towards untrained twins."""
        whole = joined(parts)
        if self.is_pooled:
            kind: Literal["cka", "rsa"] = "cka" if self.method == "cka" else "rsa"
            return DepthMapResult(self, *similarity_grids(whole, kind), {})
        held = held_out(whole)
        grids = fit_grids(held)
        if self.method == "linear":
            grids["ridge"] = whole["ridge"][0].astype(np.float64)
        frontier = Frontier.of(held, every=self.every, share=self.share, seed=self.seed)
        return DepthMapResult(self, *error_grids(held), grids, frontier)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return the passes for every group of targets that fits into memory, of twins too."""
        target, n_prompts = self.target_of(model), len(shard.prompts)
        n_sources, n_targets = n_taps(model, self.what), n_taps(target, self.what)
        is_self, n_twins = target is model, N_TWINS if self.control == "untrained" else 0
        of_target = target.n_layers / model.n_layers
        passes = n_twins * of_target + (0 if is_self else of_target)
        if self.is_pooled:
            each = n_sources * model.d_model + (1 + n_twins) * n_targets * target.d_model
            return Cost(passes, n_prompts * each)
        maps = self.maps(model, target)
        numbers = n_prompts * (((3 + n_twins) * n_sources + 2) * n_targets + 2)
        if not is_self:
            passes += n_twins  # the source is read again for every twin
        # a pair's map takes as long as 3 d / L tokens' passes (measured at d = 576, L = 30)
        pairs = n_sources * n_targets * (1 + n_twins)
        once = 3.0 * pairs * model.d_model / model.n_layers
        forwards, held = len(maps.groups()) * (1 + passes) - 1, 2 * maps.held()  # fp64: twice
        if self.continued:
            onward, has_control = self.onward(model), self.control == "untrained"
            forwards += onward.forwards(control=has_control) / 4  # of prompts, one in 4 is held out
            forwards += 6 * (1 + of_target)  # clean passes that maps are fitted on, and tested
        return Cost(forwards, numbers, held, once=once)
