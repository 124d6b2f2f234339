"""How early could a prediction be read out: with hindsight, and by a rule that needs none?

The oracle exits before the first layer at which the logit lens already makes the model's final
choice; it has to run the whole model to know which, and is a bound, not a method. The rule exits
where the lens has made the same choice `k` times in a row (PABEE, arXiv 2006.04152, with the lens
in place of trained exits). Both skip all later layers of a token, so they are what skipping voids
(void_skip) has to be compared with; their control is everyone's leaving at the same mean depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from interp.analyses.oracle_exit.result import OracleExitResult
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError
from interp.models import Model
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Tensors
from interp.sweeps.lens import first_choices, held
from interp.tasks.batch import TokenBatch


@dataclass(frozen=True)
class OracleExit(Analysis):
    """Read the prediction at the last position before an early layer.

    The rule exits after each number of equal choices in `stable_for`.
    """

    stable_for: tuple[Annotated[int, AtLeast(2)], ...] = (2, 3)
    seed: int = 0
    question: ClassVar[str] = (
        "How early could the prediction be read out, with hindsight or by a rule?"
    )
    how: ClassVar[str] = (
        "The prediction is read out by the lens before every layer. The oracle leaves where"
        " the final choice is first there; rules that need no hindsight, and leaving everywhere at"
        " one layer, are compared with the full model."
    )
    caveat: ClassVar[str] = (
        "The oracle has to run the whole model to know where to leave:"
        " it is a bound and saves nothing."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stable_for:
            raise AnalysisError(
                "stable_for is empty; at least one number of equal choices is needed"
            )

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise AnalysisError for a rule that asks for more equal choices than there are taps."""
        if (most := max(self.stable_for)) > model.n_layers + 1:
            raise AnalysisError(
                f"stable_for={most}; the model has {model.n_layers + 1} places to read"
            )

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return the lens's choice at the last position [batch tap] and the answer, -1 for none."""
        answer = torch.full((len(shard.prompts),), -1) if shard.answer is None else shard.answer
        return {"choice": first_choices(recording).cpu(), "answer": answer.cpu()}

    def combine(self, parts: Sequence[Tensors]) -> OracleExitResult:
        """Return exits and scores of all prompts."""
        return OracleExitResult(self, **joined(parts))

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Nothing beyond the clean pass but `n_layers` + 1 unembeddings of the last position."""
        n, n_taps = len(shard.prompts), model.n_layers + 1
        return Cost(0.0, n * (n_taps + 1), held(n * n_taps, model.d_vocab), logits=n * n_taps)
