"""By how much does a block pass on a small change of the stream, and how does that go with depth?

"The Curse of Depth in Large Language Models" (arXiv 2502.05795): the norm before a pre-norm
block divides by the stream's length, which grows with depth, so that the Jacobian of late blocks
tends to the identity. Its distance from the identity is the gain of what the block writes,
||F_l(h + v) - F_l(h - v)|| / ||2 v||, measured here by central differences. "Peri-LN" (arXiv
2502.02732) asks whether the gradient of the loss is as long at every depth; "Inverse Depth Scaling
From Most Layers Being Similar" (arXiv 2602.05970) whether layers write alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from interp.analyses.block_gain.gradients import gradient_norms
from interp.analyses.block_gain.measures import (
    DIRECTIONS,
    gains,
    random_directions,
    rounding_of,
    sizes_of,
    write_cosines,
)
from interp.analyses.block_gain.result import BlockGainResult
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError
from interp.models import Model
from interp.models.gradients import NUMBERS_OF_A_TOKEN, tokens_in_a_graph
from interp.models.quantised import Asked
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Tensors
from interp.sweeps.answers import LengthGroupSize, length_group_sizes
from interp.sweeps.lens import LOGITS_HELD
from interp.sweeps.losses import scored
from interp.tasks.batch import TokenBatch

__all__ = ["BlockGain", "BlockGainResult"]

_FEWEST_POSITIONS = 3  # position 0 is left out, and a token is compared with another one


@dataclass(frozen=True)
class BlockGain(Analysis):
    """Change the input of every block a little, and see by how much what it writes changes.

    All positions but the first are changed at once, each by a thousandth of its stream's length (in
    fp16 by 3 %, in bf16 by 10 %): along `directions` random ones, along the stream itself, and
    along what the previous block wrote.
    """

    directions: Annotated[int, AtLeast(1)] = 1
    seed: int = 0
    rank: ClassVar[int] = 111
    asks_of_weights: ClassVar[Asked | None] = "gradients"
    question: ClassVar[str] = (
        "How strongly does a block react to a small change of the stream, and how does that "
        "depend on depth?"
    )
    how: ClassVar[str] = (
        "The stream before a block is moved a little both ways, and the change of what the"
        " block writes is divided by that of the stream; beside it are the gradient of the loss at"
        " every depth, and the cosines of what layers write."
    )
    caveat: ClassVar[str] = (
        "Random directions are not those that a model uses; and a block with a small gain may still"
        " write something that the output needs."
    )

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise AnalysisError for a model of one layer, and for prompts of under 3 tokens."""
        if model.n_layers < 2:
            raise AnalysisError("the model has 1 layer; its depth needs at least 2")
        n_pos = shard.tokens.shape[1]
        if n_pos < _FEWEST_POSITIONS:
            raise AnalysisError(
                f"prompt {shard.prompts[0].id!r} has {n_pos} token{'s' * (n_pos > 1)};"
                f" at least {_FEWEST_POSITIONS} are needed"
            )

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return means over positions but the first: "gains" and "sizes" [batch layer measure].

        "gradient" [batch tap] are norms over those positions; "cosines" [batch layer layer 2] are
        of writes to one token and to different tokens; "rounding" [batch] is the gain that rounding
        alone can make.
        """
        resid = recording.resid(0)
        drawn = random_directions(
            shard.prompts, (self.directions, *resid.shape[1:]), seed=self.seed
        )
        layers = range(recording.n_layers)
        tensors = {
            "gains": torch.stack([gains(recording, layer, drawn) for layer in layers], dim=1),
            "sizes": torch.stack([sizes_of(recording, layer) for layer in layers], dim=1),
            "cosines": write_cosines(recording),
            "n_pos": torch.full((len(shard.prompts),), recording.n_pos - 1),
            "rounding": torch.full((len(shard.prompts),), rounding_of(resid.dtype)),
        }
        rows, norms = [], []
        for group in scored(recording, shard):
            norms.append(gradient_norms(group, is_text=shard.answer_tokens is None))
            rows.append(group.rows.cpu())
        return tensors | {"gradient": torch.cat(norms)[torch.cat(rows).argsort()]}

    def combine(self, parts: Sequence[Tensors]) -> BlockGainResult:
        """Return token-weighted means with intervals over prompts."""
        arrays = joined([{key: value.double() for key, value in part.items()} for part in parts])
        return BlockGainResult(self, arrays)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return two blocks per layer and direction, and a pass there and back."""
        (n, n_pos), layers = shard.tokens.shape, model.n_layers
        groups = [LengthGroupSize(n, n_pos, 0)]
        if shard.answer_tokens is not None:
            groups = length_group_sizes(shard)
        n_tokens = sum(size.n_prompts * size.n_pos for size in groups)
        of_new = sum(size.passed for size in groups)
        n_read = sum(size.n_prompts * (size.n_pos - n_pos + 1) for size in groups)
        n_read = n * (n_pos - 1) if shard.answer_tokens is None else n_read
        n_blocks = 2 * (layers * (self.directions + len(DIRECTIONS) - 1) - 1)
        numbers = n * (layers * (2 * layers + len(DIRECTIONS) + 3) + 1)
        graph = tokens_in_a_graph(layers, model.d_model) * NUMBERS_OF_A_TOKEN * layers
        held = (graph + (5 * self.directions + 2 * layers + 10) * n * n_pos) * model.d_model
        return Cost(
            n_blocks / layers + (2 * n_tokens + of_new) / (n * n_pos),
            numbers,
            held + 3 * LOGITS_HELD,
            backwards=n_tokens / (n * n_pos),
            logits=n_read,
        )
