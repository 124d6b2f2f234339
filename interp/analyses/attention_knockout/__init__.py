"""Until which layer must the prompt's last token read the first hop?

"Hopping Too Late" (arXiv 2406.12775), section 5: queries are kept from a key in a window of layers
around each layer; what they give to the other keys adds up to 1 again. A layer is critical for a
prompt if the model's first guess changes. The paper compares ten generated tokens and calls two
different right texts equal; here it is the first token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from interp.analyses.attention_knockout.result import AttentionKnockoutResult
from interp.analysis import Analysis, Cost
from interp.metrics import outcomes
from interp.models import Model
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Tensors
from interp.sweeps.answers import require_answers
from interp.sweeps.cuts import (
    Cut,
    Key,
    Query,
    cut_elsewhere,
    cut_of,
    cut_steps,
    ends_of_cuts,
    half_width_of,
    require_hiding,
)
from interp.sweeps.outputs import held_at_the_end, read_at_the_end
from interp.sweeps.two_hop import (
    comparable_prompts,
    last_logits,
    right_and_compared,
)
from interp.tasks import Task
from interp.tasks.batch import TokenBatch


@dataclass(frozen=True)
class AttentionKnockout(Analysis):
    """Hide `key` from `query` in a window of layers around each layer.

    The window reaches `half_width` layers to either side of its centre (by default 3 in 32).

    Keys are of the first-hop phrase: its last token ("subject"), its first ("start"), or all of it
    ("phrase"). Queries are the prompt's last token, the phrase's last, or all after the keys. The
    control hides as many other earlier keys, drawn at random for each prompt. Prompts are selected
    as in the paper: hops known, shortcuts not, where the task asks them.
    """

    key: Key = "subject"
    query: Query = "last"
    half_width: Annotated[int | None, AtLeast(0)] = None
    control: bool = True
    known_only: bool = True
    no_shortcuts: bool = True
    seed: int = 0
    question: ClassVar[str] = "Up to which layer must the prompt's last token read the first hop?"
    how: ClassVar[str] = (
        "In a window of layers, queries are kept from one key, and their attention to the other"
        " keys adds up to 1 again. A layer is critical for a prompt if the model's first guess"
        " changes. The control hides as many other earlier tokens."
    )
    caveat: ClassVar[str] = (
        "A changed guess says that something was read there, not that it was the first hop; the"
        " control tells how often any hidden token does it."
    )

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise if an answer or subject is missing, nothing is to be hidden, or nothing can be."""
        require_answers(shard)
        self._cuts(shard, model.n_layers)
        require_hiding(model, shard)

    def _cuts(self, shard: TokenBatch, n_layers: int) -> dict[str, Cut]:
        """Return the cut and its control."""
        width = half_width_of(n_layers, self.half_width)
        cut = cut_of(shard, key=self.key, query=self.query, half_width=width)
        control = {"elsewhere": cut_elsewhere(shard, cut, seed=self.seed)} if self.control else {}
        return {"key": cut} | control

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return which prompts are compared."""
        only = {"known_only": self.known_only, "no_shortcuts": self.no_shortcuts}
        return {"kept": comparable_prompts(model, task, **only)}

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return whether guesses change, and what answers lose [batch centre], by what is hidden.

        "key" is what is asked for, "elsewhere" the control; losses are of log-probability in nats.
        """
        clean, answer = last_logits(recording), require_answers(shard)[:, 0]
        tensors = right_and_compared(recording, shard, prepared["kept"])
        guess, before = clean.argmax(-1), outcomes(clean, answer)["log_prob"]

        def read(logits: Tensor) -> Tensors:
            loss = before - outcomes(logits, answer)["log_prob"]
            return {"changed": logits.argmax(-1) != guess, "loss": loss}

        for hidden, cut in self._cuts(shard, recording.n_layers).items():
            found = read_at_the_end(recording, ends_of_cuts(recording, cut), read)
            tensors |= {f"{hidden}.{name}": value.T.cpu() for name, value in found.items()}
        return tensors

    def combine(self, parts: Sequence[Tensors]) -> AttentionKnockoutResult:
        """Return effects of all prompts."""
        return AttentionKnockoutResult(self, joined(parts))

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return about L/2 forwards, from the first query on, for the cut and for its control."""
        (n, n_pos), n_layers, cuts = (
            shard.tokens.shape,
            model.n_layers,
            self._cuts(shard, model.n_layers),
        )
        steps = cut_steps(n_layers, half_width=cuts["key"].half_width)
        forwards = sum(steps * (n_pos - cut.start) for cut in cuts.values()) / (n_pos * n_layers)
        held = 2 * n * n_layers * (n_pos - cuts["key"].start) * model.d_model
        held += held_at_the_end(n_layers, n, model.d_vocab)
        tried = len(cuts) * n_layers
        return Cost(forwards, n * (2 + 2 * tried), held, logits=n * (tried + 1), sweeps=len(cuts))
