"""In which layers do attention and MLP write the bridge, the answer and the prediction?

"Hopping Too Late" (arXiv 2406.12775), section 5: what a sublayer adds to the stream at one token is
given alone to the final norm and the unembedding; it projects an entity if no token stands above
the entity's first. The paper looks at the prompt's last token and takes any alias; here it is the
first token of the name as the task writes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from interp.analyses.sublayer_projection.result import TOKENS, SublayerProjectionResult
from interp.analysis import Analysis, Cost
from interp.models import Model
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Tensors
from interp.sweeps.answers import require_answers
from interp.sweeps.mixers import require_parts
from interp.sweeps.patches import span_of
from interp.sweeps.two_hop import (
    PARTS,
    another_prompts_entities,
    comparable_prompts,
    last_logits,
    other_prompts_entities,
    require_bridge,
    require_hops,
    right_and_compared,
    written_ranks,
)
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

__all__ = ["SublayerProjection", "SublayerProjectionResult"]


@dataclass(frozen=True)
class SublayerProjection(Analysis):
    """Unembed every write at the prompt's last token, or the first-hop phrase's last ("subject").

    With `known_only`, only prompts whose two single hops the model answers are compared; with
    `no_shortcuts`, only those whose shortcuts it does not answer. The control is the bridge and the
    answer of another prompt, with as many tries.
    """

    position: Literal["last", "subject"] = "last"
    known_only: bool = True
    no_shortcuts: bool = True
    seed: int = 0
    question: ClassVar[str] = (
        "In which layers do attention and MLP write the bridge, the answer and the prediction?"
    )
    how: ClassVar[str] = (
        "What attention or MLP adds to the stream at one token is given alone to the final norm and"
        " the unembedding; it writes an entity if no token stands above the entity's first. The"
        " control is another prompt's entity."
    )
    caveat: ClassVar[str] = (
        "A write that names a token can be undone by later ones; it is a sign, not an effect."
    )

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise TaskError where an answer, a bridge or a subject is missing."""
        require_parts(model)
        require_hops(shard)

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return which prompts are compared, and bridges and answers of others."""
        kept = comparable_prompts(
            model, task, known_only=self.known_only, no_shortcuts=self.no_shortcuts
        )
        return {"kept": kept} | other_prompts_entities(model, task)

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return ranks [batch part layer token], and which prompts are right and compared."""
        prediction = last_logits(recording).argmax(-1)
        own = (require_bridge(shard), require_answers(shard)[:, 0], prediction)
        tokens = [*own, *another_prompts_entities(shard, prepared)]
        rank = written_ranks(recording, span_of(shard, self.position)[:, 0], tokens)
        return right_and_compared(recording, shard, prepared["kept"]) | {"rank": rank.cpu().int()}

    def combine(self, parts: Sequence[Tensors]) -> SublayerProjectionResult:
        """Return ranks of all prompts."""
        return SublayerProjectionResult(self, joined(parts))

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Nothing beyond the clean pass but three unembeddings of one token per layer."""
        n = len(shard.prompts)
        read = n * len(PARTS) * model.n_layers
        return Cost(0.0, read * len(TOKENS), 3 * n * model.d_vocab, logits=read)
