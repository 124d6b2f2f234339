"""Which units does the loss depend on, by their parameters' gradients, and is that right?

ADEPT (arXiv 2510.10071) scores a unit by what its parameters θ have to do with the loss L, summed
before the absolute value: |sum of θ ∂L/∂θ|. As a unit's output is proportional to its parameters,
that is how fast the loss changes as the output is scaled, at its clean size; zeroing the unit goes
all the way. Here both are measured, and how well the one ranks as the other does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from interp.analyses.unit_importance.exact import blocks_run, rises
from interp.analyses.unit_importance.gradients import first_order
from interp.analyses.unit_importance.result import UnitImportanceResult
from interp.analyses.unit_importance.units import KINDS, Drawn, Kind, UnitModules
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError
from interp.models import Model
from interp.models.gradients import NUMBERS_OF_A_TOKEN, tokens_in_a_graph
from interp.models.quantised import Asked
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.result import concatenated, joined
from interp.shapes import Tensors
from interp.sweeps.answers import LengthGroupSize, length_group_sizes
from interp.sweeps.lens import LOGITS_HELD
from interp.sweeps.losses import require_predicted, scored
from interp.tasks.batch import TokenBatch

__all__ = ["UnitImportance", "UnitImportanceResult"]


@dataclass(frozen=True)
class UnitImportance(Analysis):
    """Score every unit by θ ∂L/∂θ, and zero units of the kinds `exact` to see what is right.

    The loss L is minus the log-probability of the answer, in nats; where prompts have none, that of
    the prompt's mean token. `most` units of each kind are zeroed, drawn from all layers.
    """

    exact: tuple[Kind, ...] = ("layer", "mlp", "head")
    most: Annotated[int, AtLeast(1)] = 32
    seed: int = 0
    rank: ClassVar[int] = 106
    asks_of_weights: ClassVar[Asked | None] = "gradients of its weights"
    question: ClassVar[str] = "Do gradients tell which units the loss depends on?"
    how: ClassVar[str] = (
        "Each unit's parameters times their gradients are summed, in one pass there and back."
        " Units are also zeroed, one by one, and the two rankings are compared;"
        " the size of what a unit writes, which needs no gradient, is the rival."
    )
    caveat: ClassVar[str] = (
        "A gradient says what a small change does; a unit that matters only as a whole scores 0."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.exact:
            raise AnalysisError(f"no kind of unit to zero given; there is {', '.join(KINDS)}")

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise UnsuitedError for modules that are no linear maps or norms, and for short texts."""
        UnitModules.of(model.blocks)
        require_predicted(shard)

    def _drawn(self, kind: Kind, modules: UnitModules, *, n_layers: int, n_heads: int) -> Drawn:
        each = {"head": tuple(range(n_heads)), "projection": modules.projections}.get(kind, (0,))
        return Drawn.of(n_layers, each, most=self.most, seed=self.seed)

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return what `first_order` does, and "exact.KIND" [batch unit], how far the loss rises.

        "is_text" [batch] tells whether the loss is of the prompt, as it has no answer; "chance" is
        the loss of a guess among all tokens.
        """
        modules, is_text = UnitModules.of(recording.blocks), shard.answer_tokens is None
        sizes = {"n_layers": recording.n_layers, "n_heads": recording.blocks[0].n_heads}
        rows, parts = [], []
        for group in scored(recording, shard):
            part = first_order(group, modules, is_text=is_text)
            for kind in dict.fromkeys(self.exact):
                drawn = self._drawn(kind, modules, **sizes)
                part[f"exact.{kind}"] = rises(group, kind, drawn, modules, is_text=is_text)
            rows.append(group.rows.cpu())
            n, n_predicted = (len(group.rows), 1 if is_text else group.answer.shape[1])
            chance = torch.full((n,), n_predicted * math.log(recording.runner.d_vocab))
            parts.append(part | {"is_text": torch.full((n,), is_text), "chance": chance})
        order = torch.cat(rows).argsort()
        return {key: values[order] for key, values in concatenated(parts).items()}

    def combine(self, parts: Sequence[Tensors]) -> UnitImportanceResult:
        """Return scores and exact effects of all prompts."""
        arrays = joined([{key: value.double() for key, value in part.items()} for part in parts])
        modules = UnitModules.from_keys([*arrays])
        _, n_layers, n_heads, _ = arrays["head"].shape
        sizes = {"n_layers": n_layers, "n_heads": n_heads}
        drawn = {kind: self._drawn(kind, modules, **sizes) for kind in dict.fromkeys(self.exact)}
        return UnitImportanceResult(self, arrays, modules, drawn)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return a pass there and back, and what is after every unit that is zeroed."""
        (n, n_pos), n_layers, n_heads = shard.tokens.shape, model.n_layers, model.n_heads
        modules = UnitModules.of(model.blocks)
        sizes = {"n_layers": n_layers, "n_heads": n_heads}
        drawn = {kind: self._drawn(kind, modules, **sizes) for kind in dict.fromkeys(self.exact)}
        blocks = sum(blocks_run(kind, units, n_layers) for kind, units in drawn.items())
        groups = [LengthGroupSize(n, n_pos, 0)]
        if shard.answer_tokens is not None:
            groups = length_group_sizes(shard)
        n_tokens = sum(size.n_prompts * size.n_pos for size in groups)
        of_new = sum(size.passed for size in groups)
        n_zeroed = sum(len(units.layers) for units in drawn.values())
        n_read = sum(size.n_prompts * (size.n_pos - n_pos + 1) for size in groups)
        n_read = n * (n_pos - 1) if shard.answer_tokens is None else n_read
        graph = tokens_in_a_graph(n_layers, model.d_model) * NUMBERS_OF_A_TOKEN * n_layers
        most = max((len(units.layers) for units in drawn.values()), default=0)
        held = model.d_model * (graph + (most + 5 * n_layers) * n_tokens) + 3 * LOGITS_HELD
        return Cost(
            (n_tokens * (2 + blocks / n_layers) + of_new) / (n * n_pos),
            n * (n_layers * 2 * (len(modules.paths) + n_heads + 2) + n_zeroed),
            held,
            backwards=n_tokens / (n * n_pos),
            logits=n_read * (n_zeroed + len(drawn) + 1),
        )
