"""Two models on one shard of prompts: everything that is read of them joined."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp.analyses.checkpoint_stitch.blocks import (
    PERMUTED,
    entries_between,
    entries_of_blocks,
    entries_of_permuted,
)
from interp.analyses.checkpoint_stitch.cuts import cut_curves, plain, prediction, read
from interp.analyses.checkpoint_stitch.maps import MapKind
from interp.metrics import Distribution
from interp.models import Model
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sweeps.halves import half_of
from interp.tasks.batch import TokenBatch


@dataclass(frozen=True)
class ModelPair:
    """A model's recording of a shard, and the other model's; `maps` stand between them.

    `head` is the recording of the model whose final norm and unembedding the other model has, and
    whose prediction KL is from.
    """

    maps: tuple[MapKind, ...]
    ours: Recording
    theirs: Recording
    head: Recording
    shard: TokenBatch
    prepared: Tensors

    def with_blocks_of(self, model: Model) -> "ModelPair":
        """Return the same with another model's embedding and blocks instead of the other's."""
        return replace(self, theirs=model.record(self.shard, work=self.ours.work))

    @cached_property
    def reference(self) -> Distribution:
        """Return the other model's prediction."""
        return prediction(self.head)

    @property
    def answer(self) -> Int[Tensor, " batch"]:
        """Return the first token of every answer; prompts without one are refused before."""
        assert self.shard.answer is not None
        return self.shard.answer

    def plain(self, name: str) -> Tensors:
        """Return the outcomes of both models as they are, [batch 2 outcome]."""
        each = [
            plain(recording, self.answer, self.reference, head=head)
            for recording, head in ((self.ours, self.ours), (self.theirs, self.head))
        ]
        return {name: torch.stack(each, dim=1)}

    def cuts(self, name: str, role: str, cuts: Sequence[int]) -> Tensors:
        """Return "NAME KIND" [batch 2 cut outcome] for every map; `role` names what is prepared."""
        half = half_of(self.shard, self.prepared)
        maps = {
            key.removeprefix(f"{role} "): value
            for key, value in self.prepared.items()
            if key.startswith(f"{role} ")
        }
        both = (self.ours, self.theirs)
        how: dict[str, Any] = {"cuts": cuts, "head": self.head, "reference": self.reference}
        return {
            f"{name} {kind}": cut_curves(both, self.answer, half, maps, kind=kind, **how)
            for kind in self.maps
        }

    def alone(
        self,
        others: Mapping[str, Recording],
        models: tuple[Model, Model],
        layers: Sequence[int],
        *,
        seed: int,
    ) -> Tensors:
        """Return "alone KIND" [batch layer outcome], and "between" [batch share outcome].

        `others` are models by kind, whose blocks run in this one's place.
        """
        entries = entries_of_blocks(self.ours, others, layers)
        entries[PERMUTED] = entries_of_permuted(self.ours, models, layers, seed=seed)
        block = int(self.prepared["block"])
        entries["between"] = entries_between(self.ours, models, block)
        every = [entry for of_kind in entries.values() for entry in of_kind]
        values = read(self.ours, every, self.answer, self.reference)
        parts = torch.split(values, [len(of_kind) for of_kind in entries.values()], dim=1)
        return {
            name if name == "between" else f"alone {name}": part.contiguous()
            for name, part in zip(entries, parts, strict=True)
        }
