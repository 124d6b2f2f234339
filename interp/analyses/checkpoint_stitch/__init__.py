"""In which layers does the change between two models live, and do late layers need the early ones?

Two checkpoints of one shape are cut and joined at every depth, in both directions: one model up to
the cut, the other from there on. "Different code" and "different function" are told apart by a map
at the cut, fitted on prompts with other answers. Single blocks are swapped, beside a skip, an
unrelated block and the same change with its entries permuted. The 2 x 2 of upstream state and late
layers is that of arXiv 2605.07284, at every cut instead of one; the matched random change is that
of arXiv 2605.07282. An untrained model in the other's place says what a map carries alone. The
whole change permuted says what any change of its size does: where this one does as much, it is
nowhere in particular.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch

from interp.analyses.checkpoint_stitch.blocks import SHARES, SWAP, UNRELATED
from interp.analyses.checkpoint_stitch.changes import (
    PERMUTED,
    as_tokens,
    block_weights,
    changed_weights,
    matrix_names,
    most_changed,
    names_as_numbers,
    refuse_other_shapes,
)
from interp.analyses.checkpoint_stitch.maps import (
    TOKENS_PER_FEATURE,
    MapKind,
    fit_maps,
    fitted_tokens,
)
from interp.analyses.checkpoint_stitch.model_pair import ModelPair
from interp.analyses.checkpoint_stitch.random_changes import random_of, run_random
from interp.analyses.checkpoint_stitch.result import CheckpointStitchResult
from interp.analyses.checkpoint_stitch.states import states_of
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError, TaskError, UnsuitedError
from interp.models import Model
from interp.models.quantised import Asked
from interp.models.untrained import twins_of
from interp.parameters import AtLeast, Between
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Tensors
from interp.sweeps.entering import n_blocks
from interp.sweeps.halves import halves_of
from interp.sweeps.layers import COARSEST, every_nth
from interp.sweeps.mixers import require_replaceable
from interp.sweeps.outputs import held_at_the_end
from interp.sweeps.two_models import (
    model_of,
    other_of,
    refuse_other_tokens,
    refuse_other_vocabulary,
)
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

__all__ = ["CheckpointStitch", "CheckpointStitchResult"]


@dataclass(frozen=True)
class CheckpointStitch(Analysis):
    """Join the model and `against`, another of its shape, at every `every`-th cut.

    `maps` stand at the cut, each in turn: "none", "orthogonal" (a rotation and one scale) and
    "affine". `share` is how much of the change (of KL) has to be kept for a part not to be needed.
    `unrelated` is a model whose blocks are swapped in as a control; without one they are those of
    an untrained twin. `control` "untrained" joins the model with that twin's embedding and layers
    too, under the other model's head: what maps and early exits do alone. The whole change is
    permuted in `draws` copies; where it moves predictions as they do, no range of layers is named.
    """

    against: str | None = None
    maps: tuple[MapKind, ...] = ("none", "orthogonal")
    share: Annotated[float, Between(0.0, 1.0)] = 0.8
    every: Annotated[int, AtLeast(1)] = 1
    unrelated: str | None = None
    control: Literal["untrained", "none"] = "untrained"
    draws: Annotated[int, AtLeast(0)] = 8
    seed: int = 0
    rank: ClassVar[int] = 106
    page: ClassVar[str] = "stitch"
    asks_of_weights: ClassVar[Asked | None] = "other weights for a while"
    names_other: ClassVar[str] = "against"
    question: ClassVar[str] = (
        "Which layers hold the change between two models, and do late layers depend on early "
        "changes?"
    )
    how: ClassVar[str] = (
        "Two models are joined at every depth: one below a cut, the other above, with the stream as"
        " it is and through a map fitted on prompts with other answers. Single blocks are swapped,"
        " beside skips, unrelated blocks and permuted changes; an untrained model is the control."
    )
    caveat: ClassVar[str] = (
        "A cut without a map mostly measures whether both models use one basis; a swap of one block"
        " says little where a skip of it costs as little."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.maps or len({*self.maps}) < len(self.maps):
            raise AnalysisError(f"maps {self.maps} given; one or more different ones are needed")

    @property
    def fitted(self) -> list[MapKind]:
        """Return the maps that are fitted."""
        return [kind for kind in self.maps if kind != "none"]

    def cuts(self, n_layers: int) -> list[int]:
        """Return how many layers of the lower model run, at every cut."""
        return every_nth(n_layers + 1, self.every)

    def layers(self, n_layers: int) -> list[int]:
        """Return the layers that are swapped one at a time."""
        return every_nth(n_layers, self.every)

    def others(self, model: Model) -> dict[str, str]:
        """Return the fingerprints of the other models."""
        named = {"against": self.against, "unrelated": self.unrelated}
        return {role: other_of(model, name).fingerprint for role, name in named.items() if name}

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise where there is no second model, or not one of this shape and these tokens."""
        if self.against is None:
            raise UnsuitedError(
                "checkpoint_stitch compares two models; name the other with --against or"
                " checkpoint_stitch.against"
            )
        require_replaceable(model, block_weights(model, 0))
        for name in filter(None, (self.against, self.unrelated)):
            other = other_of(model, name)
            refuse_other_shapes(model, other)
            refuse_other_vocabulary(model, other)
            refuse_other_tokens(model, other, shard, why="checkpoint_stitch needs equal ones")
        if shard.answer is None:
            raise TaskError(shard.missing("answer"))

    def check_all(self, model: Model, shards: Sequence[TokenBatch]) -> None:
        """Raise AnalysisError for too few tokens to fit maps."""
        if not self.fitted:
            return
        n = min(fitted_tokens(shards, halves_of(shards, seed=self.seed)))
        times = TOKENS_PER_FEATURE if "affine" in self.fitted else 1
        if n < times * model.d_model:
            kind = "affine" if "affine" in self.fitted else "orthogonal"
            raise AnalysisError(
                f"{n} tokens in a half of the prompts to fit maps={kind!r} of {model.d_model}"
                f" features; at least {times * model.d_model} are needed: give more prompts"
            )

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return the prompts' halves, maps fitted on the other half, and how weights changed."""
        batches = [model.tokenize(shard) for shard in model.shards(task)]
        other, halves = other_of(model, self.against), halves_of(batches, seed=self.seed)
        found = halves | {
            "tokens": torch.tensor(fitted_tokens(batches, halves)),
            "weights": changed_weights(model, other),
            "names": names_as_numbers(matrix_names(model)),
            "block": torch.tensor(most_changed(model, other)),
        }
        found |= run_random(model, other, batches, draws=self.draws, seed=self.seed)
        roles = {"other": other, "untrained": self.twin(model, other)}
        how: dict[str, Any] = {"cuts": self.cuts(model.n_layers), "kinds": self.fitted}
        for role, each in roles.items() if self.fitted else ():
            if each is not None:
                maps = fit_maps((model, each), batches, halves, **how)
                found |= {f"{role} {key}": value for key, value in maps.items()}
        return found

    def twin(self, model: Model, other: Model) -> Model | None:
        """Return an untrained twin of the other model, made once while the model runs."""
        if self.control == "none" and self.unrelated:
            return None
        memo, key = model.running.memo, f"untrained {other.name} {self.seed}"
        if key not in memo:
            memo[key] = next(twins_of(other, seed=self.seed), None)
        twin: Model | None = memo[key]
        return twin

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return outcomes [batch ...] of plain models, of cuts, of blocks alone, and of streams.

        Outcomes are those of `cuts.read`. "cut KIND" and "untrained KIND" are [batch 2 cut
        outcome], "alone KIND" [batch layer outcome], "between" [batch share outcome],
        "random" [batch draw] (`run_random`).
        """
        model, n = model_of(recording), len(shard.prompts)
        other = other_of(model, self.against)
        theirs = other.record(shard, work=recording.work)
        with theirs.running():
            pair = ModelPair(self.maps, recording, theirs, theirs, shard, prepared)
            parts = pair.plain("plain") | pair.cuts("cut", "other", self.cuts(model.n_layers))
            parts |= self._untrained(pair, model, other)
            parts |= self._alone(pair, model, other)
            parts |= states_of((recording, theirs)) | {"random": random_of(shard, prepared)}
        same = {name: prepared[name] for name in ("weights", "names", "block", "tokens")}
        return parts | {name: value.expand(n, *value.shape).clone() for name, value in same.items()}

    def _untrained(self, pair: ModelPair, model: Model, other: Model) -> Tensors:
        """Return the same cuts with the untrained twin's layers under the other's head."""
        twin = self.twin(model, other)
        if twin is None or self.control == "none":
            return {}
        untrained = pair.with_blocks_of(twin)
        with untrained.theirs.running():
            cuts = untrained.cuts("untrained", "untrained", self.cuts(model.n_layers))
            return untrained.plain("untrained") | cuts

    def _alone(self, pair: ModelPair, model: Model, other: Model) -> Tensors:
        """Return outcomes of swaps of single blocks, their controls, and of one block between."""
        layers = self.layers(model.n_layers)
        unrelated = other_of(model, self.unrelated) if self.unrelated else self.twin(model, other)
        others = {SWAP: pair.theirs}
        if unrelated is not None:
            others[UNRELATED] = pair.with_blocks_of(unrelated).theirs
        return pair.alone(others, (model, other), layers, seed=self.seed)

    def combine(self, parts: Sequence[Tensors]) -> CheckpointStitchResult:
        """Return curves over cuts, single blocks and the weights' changes, of all prompts."""
        known = set.intersection(*map(set, parts))
        whole = joined([{key: part[key] for key in part if key in known} for part in parts])
        return CheckpointStitchResult(self, whole)

    def coarser(self) -> "CheckpointStitch | None":
        """Return the same at every second of these cuts, down to every eighth."""
        return replace(self, every=2 * self.every) if self.every < COARSEST else None

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return at most what runs: nothing runs where both models do the same.

        `once` are the decompositions and the permuted copies of the whole change, `weight` has the
        permuted changes of single blocks, made for every shard.
        """
        (n, n_pos), n_layers, d = shard.tokens.shape, model.n_layers, model.d_model
        cuts, layers = self.cuts(n_layers), self.layers(n_layers)
        n_others = 1 + (self.control == "untrained")
        curve = n_blocks(n_layers, cuts) / n_layers
        tails = n_blocks(n_layers, [layer + 1 for layer in layers]) / n_layers
        steps = len(layers) / n_layers
        # clean passes, cuts of every map, four kinds of single blocks, one between the models
        forwards = n_others * (1 + 2 * len(self.maps) * curve) + 4 * tails + 3 * steps + len(SHARES)
        forwards += 1 + n_others if self.fitted else 0  # clean passes that maps are fitted on
        forwards += 1 + self.draws if self.draws else 0  # of permuted changes
        n_curves = 2 * n_others * len(self.maps) * len(cuts)
        read = n_curves + 4 * len(layers) + len(SHARES) + 2 * (n_layers + 1)
        weights = sum(weight.numel() for weight in model.module.parameters())
        maps = 4 * n_others * len(self.fitted) * len(cuts) * d * (d + 1)
        streams = (len(cuts) + 4 * len(layers)) * n * n_pos * d
        held = (
            (n_others + (self.draws > 0)) * weights
            + maps
            + streams
            + held_at_the_end(read, n, model.d_vocab)
        )
        numbers = n * (3 * read + self.draws + 2 * (n_layers + 1) * (1 + d))
        return Cost(
            forwards,
            numbers,
            held,
            is_bound=True,
            weight=1 + PERMUTED * steps / (n * n_pos * forwards),
            logits=n * (read + self.draws),
            once=as_tokens(model) + self.draws * PERMUTED,
        )
