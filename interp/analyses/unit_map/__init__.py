"""Do two models have the same units, but for their order?

After "Transformer Fusion with Optimal Transport" (arXiv 2310.05719): the neurons of an MLP can be
put in any order without changing what it computes, so two models' neurons are matched by their
correlation at the same tokens, one to one, or by optimal transport where their numbers differ; and
a model is moved towards the other along a straight line, with matched neurons and without. Here
half of the prompts choose the match, and the other half say how alike the matched units are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch

from interp.analyses.unit_map.barrier import SHARES, can_interpolate, losses_between, n_tails
from interp.analyses.unit_map.likeness import Likeness, likeness_by_layer
from interp.analyses.unit_map.reading import is_held, n_units, tokens_elsewhere, units_of
from interp.analyses.unit_map.result import KINDS, UnitMapResult
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError, UnsuitedError
from interp.models import Model
from interp.models.quantised import Asked
from interp.models.untrained import twins_of
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Tensors
from interp.sweeps.two_models import refuse_other_tokens
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

__all__ = ["UnitMap", "UnitMapResult"]


@dataclass(frozen=True)
class UnitMap(Analysis):
    """Match the neurons and heads of the model to those of `target` (a model's name).

    None is an untrained twin of the model itself: how alike units are that share only their inputs.
    At most `most_layers` layers are matched, evenly spaced, each with the one at the same relative
    depth. `barrier` "loss" also moves each of them towards the target's MLP, where both models have
    the same parameters.
    """

    target: str | None = None
    most_layers: Annotated[int, AtLeast(1)] = 4
    barrier: Literal["loss", "none"] = "loss"
    seed: int = 0
    rank: ClassVar[int] = 112
    names_other: ClassVar[str] = "target"
    asks_of_weights: ClassVar[Asked | None] = "the numbers of its weights"
    question: ClassVar[str] = "Do two models have the same units in another order?"
    how: ClassVar[str] = (
        "Half of the prompts choose which neuron of one model goes with which of the other, by"
        " their correlation over tokens; the other half say how alike they are, beside an unrelated"
        " layer, shuffled tokens and an untrained model."
    )
    caveat: ClassVar[str] = (
        "Units are matched one to one: a feature that one neuron has in one model and several share"
        " in the other counts as different."
    )

    def target_of(self, model: Model) -> Model:
        """Return the target; raise UnsuitedError if it is a twin that cannot be built."""
        if self.target is not None:
            return model.another(self.target)
        twin = next(twins_of(model, seed=self.seed), None)
        if twin is None:
            raise UnsuitedError(
                f"{model.name}: no untrained twin can be built of it; give a target"
            )
        return twin

    def others(self, model: Model) -> dict[str, str]:
        """Return the target's fingerprint."""
        return {} if self.target is None else {"target": self.target_of(model).fingerprint}

    def layers(self, n_layers: int) -> list[int]:
        """Return the layers that are matched."""
        n = min(self.most_layers, n_layers)
        return [round(i * (n_layers - 1) / max(1, n - 1)) for i in range(n)]

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise for one layer, prompts of one token, another tokenizer, and unreadable units."""
        n_units(model)
        if (model if self.target is None else self.target_of(model)).n_layers < 2:
            raise UnsuitedError("the target has 1 layer; units are compared with another layer's")
        if shard.tokens.shape[1] < 3:
            n_pos = shard.tokens.shape[1]
            raise AnalysisError(
                f"prompt {shard.prompts[0].id!r} has {n_pos} token{'s' * (n_pos > 1)};"
                " at least 3 are needed"
            )
        if self.target is None:
            return
        target = self.target_of(model)
        n_units(target)
        refuse_other_tokens(model, target, shard, why="units are matched at the same tokens")

    def check_all(self, model: Model, shards: Sequence[TokenBatch]) -> None:
        """Raise AnalysisError if either half of the prompts has fewer tokens than an MLP units."""
        widest = n_units(model)
        if self.target is not None:
            widest = max(widest, n_units(self.target_of(model)))
        prompts = [prompt for shard in shards for prompt in shard.prompts]
        held, tokens = is_held(prompts, seed=self.seed), [0, 0]
        for shard in shards:
            for prompt in shard.prompts:
                tokens[held[prompt.id]] += shard.tokens.shape[1] - 1
        if min(tokens) < widest:
            raise AnalysisError(
                f"half of the prompts have {min(tokens):,} tokens; to match {widest:,} units,"
                " at least as many are needed"
            )

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return what `Likeness` has, by layer, and of every held-out prompt "prompt ID"."""
        batches = [model.tokenize(shard) for shard in model.shards(task)]
        held = is_held([*task.prompts], seed=self.seed)
        target = self.target_of(model)
        alike = self._likeness(model, target, batches, held)
        found: Tensors = {"fitted": alike.fitted, "stable": alike.stable, "heads": alike.heads}
        found |= {f"prompt {key}": values for key, values in alike.of_prompts.items()}
        n = n_units(model)
        if self.barrier == "none" or n_units(target) != n:
            return found
        if not can_interpolate(model, target, n):
            return found
        orders = dict(zip(self.layers(model.n_layers), alike.orders, strict=True))
        for batch in _only(batches, held):
            losses = losses_between(model, target, batch, orders)
            for prompt, of_prompt in zip(batch.prompts, losses, strict=True):
                found[f"loss {prompt.id}"] = of_prompt
        return found

    def _likeness(
        self, model: Model, target: Model, batches: list[TokenBatch], held: dict[str, bool]
    ) -> Likeness:
        own = self.layers(model.n_layers)
        last = target.n_layers - 1
        partners = [round(layer * last / max(1, model.n_layers - 1)) for layer in own]
        unrelated = [(layer + target.n_layers // 2) % target.n_layers for layer in partners]
        one = units_of(model, batches, own)
        both = units_of(target, batches, [*partners, *unrelated])
        elsewhere = tokens_elsewhere(batches).to(both[0].neurons.device)
        others = {
            KINDS[0]: both[: len(own)],
            KINDS[1]: both[len(own) :],
            KINDS[2]: [units.at(elsewhere) for units in both[: len(own)]],
        }
        if self.target is not None:
            twin = next(twins_of(target, seed=self.seed), None)
            if twin is not None:
                others[KINDS[3]] = units_of(twin, batches, partners)
        return likeness_by_layer(one, others, batches, held)

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return "correlation" [batch layer kind] and "tokens" [batch], 0 of those not held out.

        "loss" [batch layer share 2] where MLPs were moved. "fitted" [batch layer kind], "stable"
        [batch layer] and "heads" [batch layer kind] are the same for every prompt.
        """
        n, ids = len(shard.prompts), [prompt.id for prompt in shard.prompts]
        fixed = ("fitted", "stable", "heads")
        part = {key: prepared[key].expand(n, *prepared[key].shape).contiguous() for key in fixed}
        empty = torch.zeros_like(prepared["fitted"])
        alike = [prepared.get(f"prompt {key}", empty) for key in ids]
        n_read = shard.tokens.shape[1] - 1
        part["tokens"] = torch.tensor([n_read * (f"prompt {key}" in prepared) for key in ids])
        part["correlation"] = torch.stack(alike)
        if any(key.startswith("loss ") for key in prepared):
            nothing = torch.zeros(len(empty), len(SHARES), 2)
            part["loss"] = torch.stack([prepared.get(f"loss {key}", nothing) for key in ids])
        own = torch.tensor(self.layers(recording.n_layers))
        return part | {"layers": own.expand(n, -1).contiguous()}

    def combine(self, parts: Sequence[Tensors]) -> UnitMapResult:
        """Return the likeness of matched units, over held-out prompts."""
        return UnitMapResult(self, joined(parts))

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return at most what `prepare` runs: passes of all models, and tails with mixed MLPs."""
        target = model if self.target is None else self.target_of(model)
        layers, n_tokens = self.layers(model.n_layers), shard.tokens.numel()
        k, more = len(layers), target.n_layers / model.n_layers
        passes = 2 * k / model.n_layers + more + 4 * k / model.n_layers
        if self.target is not None:
            passes += more + 2 * k / model.n_layers
        logits = 0
        if self.barrier == "loss":
            passes += 2 + n_tails(layers, model.n_layers)
            logits = 8 * k * n_tokens
        each = n_units(model) + 3 * n_units(target) + 4 * model.d_model
        numbers = len(shard.prompts) * k * (3 * len(KINDS) + 2 * len(SHARES) + 1)
        return Cost(passes, numbers, k * n_tokens * each, is_bound=True, logits=logits)


def _only(batches: Sequence[TokenBatch], held: dict[str, bool]) -> Iterator[TokenBatch]:
    """Yield batches of their held-out prompts alone."""
    for batch in batches:
        rows = [row for row, prompt in enumerate(batch.prompts) if held[prompt.id]]
        if rows:
            yield batch.only(rows)
