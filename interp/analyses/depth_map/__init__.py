"""Which layer of one model predicts which layer of another?

"Do Language Models Use Their Depth Efficiently?" (arXiv 2505.13898), section 3.4: a linear map from
every tap of a source to every tap of a target, judged by the mean over tokens of ‖y - ŷ‖ / ‖y‖. The
paper trains the maps; here the same loss is minimised in closed form from streamed moments.
Held-out prompts are read again, target taps group by group, as a token's ratio is no function of
moments. Tap l is in front of layer l, tap L behind the last. Position 0 is left out, as published.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from interp.analyses.depth_map.result import DepthMapResult
from interp.analyses.depth_map.similarity import example_similarity
from interp.analyses.depth_map.split import batches_by_role, halves_of
from interp.analyses.depth_map.tap_maps import TapMaps
from interp.analyses.depth_map.taps import What, n_taps, pooled
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError, TaskError
from interp.models import Model
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Tensors
from interp.sweeps.positions import FirstPosition, first_read, require_positions
from interp.tasks import Prompt, Task
from interp.tasks.batch import TokenBatch


@dataclass(frozen=True)
class DepthMap(Analysis):
    """Map every tap of the model to every tap of `target` (a model's name; None: itself).

    `method`: "linear" (ridge, chosen on validation prompts) and "orthogonal" (a rotation and one
    scale) map token by token and need one tokenizer; "cka" (debiased) and "rsa" compare each
    prompt's mean over positions and need none. `what`: residuals, or each layer's contribution to
    them. `weighting` "relative" weighs tokens by 1 / ‖y‖² in the fit. `first_position` says whether
    position 0 is fitted and judged (or pooled) too.
    """

    target: str | None = None
    method: Literal["linear", "orthogonal", "cka", "rsa"] = "linear"
    what: What = "residual"
    weighting: Literal["equal", "relative"] = "equal"
    first_position: FirstPosition = "excluded"
    seed: int = 0
    rank: ClassVar[int] = 9
    page: ClassVar[str] = "depthmap"
    question: ClassVar[str] = "Which layer of one model predicts which layer of another?"
    how: ClassVar[str] = (
        "Linear maps from every layer of one model to every layer of the other are fitted on"
        " training prompts, by a closed formula, and judged on held-out prompts by the error"
        " relative to a token's norm. The diagonal is compared with permuted layers."
    )
    caveat: ClassVar[str] = (
        "That a layer can be predicted linearly does not say that it computes the same; small"
        " errors can be mostly the token's own embedding."
    )

    @property
    def is_pooled(self) -> bool:
        """Tell whether prompts are compared, not tokens."""
        return self.method in ("cka", "rsa")

    def target_of(self, model: Model) -> Model:
        """Return the target's model."""
        if self.target is None or self.target == model.name:
            return model
        return model.another(self.target)

    def others(self, model: Model) -> dict[str, str]:
        """Return the target's fingerprint."""
        target = self.target_of(model)
        return {} if target is model else {"target": target.fingerprint}

    def maps(self, model: Model) -> TapMaps:
        """Return how tokens are mapped."""
        is_orthogonal, is_relative = self.method == "orthogonal", self.weighting == "relative"
        how = (self.what, is_orthogonal, is_relative, first_read(self.first_position))
        return TapMaps(model, self.target_of(model), *how)

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise AnalysisError for prompts of one token, or another tokenizer if tokens matter."""
        require_positions(shard, first_position=self.first_position)
        target = self.target_of(model)
        if target is model or self.is_pooled:
            return
        try:
            same = torch.equal(target.tokenize(shard.prompts).tokens, shard.tokens)
        except TaskError:
            same = False
        if not same:
            raise AnalysisError(
                f"{target.name} and {model.name} have different tokenizers (prompt"
                f" {shard.prompts[0].id!r});"
                f" method={self.method!r} maps tokens and needs one; 'cka' and 'rsa' do not"
            )

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return prompts' pooled target taps, or what fitted maps miss on held-out prompts."""
        shards = model.shards(task)
        if self.is_pooled:
            return self._pooled_target(model, shards)
        maps = self.maps(model)
        if self.method == "orthogonal" and maps.target.d_model < model.d_model:
            raise AnalysisError(
                f"method='orthogonal' from {model.d_model} features to {maps.target.d_model};"
                " at least as many are needed"
            )
        return maps.fit_and_test(batches_by_role(model, shards, seed=self.seed))

    def _pooled_target(self, model: Model, shards: Sequence[Sequence[Prompt]]) -> Tensors:
        target, n_prompts = self.target_of(model), sum(map(len, shards))
        if n_prompts < 8:
            raise AnalysisError(
                f"{n_prompts} prompts given; method={self.method!r} needs at least 8"
            )
        by_prompt, begin = dict[str, Tensor](), first_read(self.first_position)
        for shard in shards if target is not model else ():
            batch = target.tokenize(shard)
            vectors = pooled(target.record(batch), batch, self.what, begin=begin)
            for prompt, row in zip(shard, vectors, strict=True):
                by_prompt[f"prompt {prompt.id}"] = row
        return by_prompt

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return pooled taps "source" and "target" [batch tap d_model], or the maps' misses.

        The misses of held-out prompts are "error" and "squared" [batch source+1 target], summed
        over "tokens" [batch]; 0 for others.
        """
        keys = [f"prompt {prompt.id}" for prompt in shard.prompts]
        begin = first_read(self.first_position)
        if self.is_pooled:
            source = pooled(recording, shard, self.what, begin=begin)
            target = torch.stack([prepared[key] for key in keys]) if prepared else source.clone()
            return {"source": source, "target": target}
        nothing = torch.zeros_like(next(value for key, value in prepared.items() if key != "ridge"))
        misses = torch.stack([prepared.get(key, nothing) for key in keys])
        n_read = shard.tokens.shape[1] - begin
        tokens = torch.tensor([n_read if key in prepared else 0 for key in keys])
        ridge = prepared["ridge"].expand(len(keys), -1, -1).contiguous()
        return {"error": misses[:, 0], "squared": misses[:, 1], "tokens": tokens, "ridge": ridge}

    def combine(self, parts: Sequence[Tensors]) -> DepthMapResult:
        """Return the grid over sources and targets, and over random halves of the prompts."""
        whole = joined(parts)
        if self.is_pooled:
            return self._combine_pooled(
                *(torch.from_numpy(whole[key]) for key in ("source", "target"))
            )
        held_out = whole["tokens"] > 0
        if not held_out.any():
            raise AnalysisError(f"none of {len(held_out)} prompts is held out; give more")
        tokens, error, squared = (
            whole[key][held_out].astype(np.float64) for key in ("tokens", "error", "squared")
        )
        mean, total = error.sum(0) / tokens.sum(), squared.sum(0)
        unexplained = np.divide(
            total[:-1], total[-1], out=np.zeros_like(total[:-1]), where=total[-1] > 0
        )
        grids = {"error": mean[:-1], "r2": 1 - unexplained, "constant": mean[-1:]}
        if self.method == "linear":
            grids["ridge"] = whole["ridge"][0].astype(np.float64)
        halves = [
            error[half, :-1].sum(0) / tokens[half].sum()
            for half in halves_of(len(tokens), seed=self.seed)
        ]
        return DepthMapResult(
            self, grids, np.stack(halves), n_prompts=len(tokens), n_tokens=int(tokens.sum())
        )

    def _combine_pooled(self, source: Tensor, target: Tensor) -> DepthMapResult:
        n = len(source)
        halves = halves_of(n, seed=self.seed)
        masks = torch.zeros(1 + len(halves), n)
        for mask, half in zip(masks, [np.arange(n), *halves], strict=True):
            mask[half] = 1
        x, y = source.transpose(0, 1), target.transpose(0, 1)  # [tap prompt d_model]
        kind: Literal["cka", "rsa"] = "cka" if self.method == "cka" else "rsa"
        grids = example_similarity(x, y, masks, kind=kind).numpy()
        return DepthMapResult(self, {"similarity": grids[0]}, grids[1:], n_prompts=n, n_tokens=None)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return the passes for every group of targets that fits into memory."""
        maps, n_prompts = self.maps(model), len(shard.prompts)
        n_sources, n_targets = n_taps(model, self.what), n_taps(maps.target, self.what)
        of_target = 0.0 if maps.target is model else maps.target.n_layers / model.n_layers
        if self.is_pooled:
            each = n_sources * model.d_model + n_targets * maps.target.d_model
            return Cost(of_target, n_prompts * each)
        numbers = n_prompts * ((3 * n_sources + 2) * n_targets + 2)
        passes = len(maps.groups()) * (1 + of_target) - 1
        return Cost(passes, numbers, 2 * maps.held())  # float64 counts twice
