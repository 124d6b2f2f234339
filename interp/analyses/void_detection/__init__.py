"""Which layers leave a token's norm alone, in the prompt and in the response?

"Void in Language Models" (arXiv 2505.14467): layer l is void for a token where the norm of its
stream changes by less than alpha times the range of its changes by earlier layers; usage is the
share of layers that are not. The change is signed: a layer that shortens the stream is void however
much it writes. The range restarts with every token, so that no threshold depends on other tokens or
prompts; the published threshold of the first layer, a range over the batch, is `first_layer`
"batch".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch.nn.functional import pad

from interp.analyses.void_detection.responses import require_readable, respond
from interp.analyses.void_detection.result import (
    FIRST,
    NO_TOKEN,
    OTHER,
    PHASES,
    PUNCTUATION,
    VoidDetectionResult,
)
from interp.analysis import Analysis, Cost
from interp.errors import TaskError
from interp.models import Model
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.result import concatenated
from interp.shapes import Tensors
from interp.sweeps.massive import massive_activations
from interp.sweeps.punctuation import punctuation_of
from interp.sweeps.tags import keys_of, rows_of
from interp.sweeps.voids import (
    changes_of,
    norms_of,
    range_over_batch,
    require_alphas,
)
from interp.tasks import Task
from interp.tasks.batch import TokenBatch


@dataclass(frozen=True)
class VoidDetection(Analysis):
    """Find void layers at `alpha` (and `alphas`), in prompts and in greedy responses.

    Responses have up to `max_new_tokens` tokens (0: none); the last is never read by a pass. A
    token has a massive activation if a value is above `massive_above` and at least
    `massive_ratio` times the median of the hidden state (`sweeps.massive`).
    """

    alpha: float = 0.8
    alphas: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 1.0)
    max_new_tokens: int = 8
    first_layer: Literal["zero", "batch"] = "zero"
    massive_above: Annotated[float, AtLeast(0)] = 100.0
    massive_ratio: Annotated[float, AtLeast(0)] = 1000.0
    seed: int = 0
    question: ClassVar[str] = (
        "Which layers leave a token's norm alone, in the prompt and in the response?"
    )
    how: ClassVar[str] = (
        "A layer is void for a token if it lengthens the token's stream by less than α times the"
        " range of the changes by earlier layers, in prompts and in greedy responses; usage is the"
        " share of layers that are not."
    )
    caveat: ClassVar[str] = (
        "A void layer did not lengthen the stream enough;"
        " that it did nothing does not follow (void_skip asks)."
    )

    rank: ClassVar[int] = 12
    page: ClassVar[str] = "voids"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_alphas(self.all_alphas)
        if self.max_new_tokens != 0:
            require_readable(self.max_new_tokens)

    @property
    def all_alphas(self) -> tuple[float, ...]:
        """Return every threshold asked for, in order."""
        return tuple(sorted({self.alpha, *self.alphas}))

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise TaskError for responses too long to be read, ModelError for unknown decoding."""
        if self.max_new_tokens:
            model.refuse_responses(shard, self.max_new_tokens)

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return which tokens are punctuation, and the norms of all responses (never resumed)."""
        shards = [model.tokenize(prompts) for prompts in model.shards(task)]
        seen = [token for shard in shards for row in shard.tokens.tolist() for token in row]
        prepared = {"punctuation": punctuation_of(model.tokenizer, seen)}
        if not self.max_new_tokens:
            return prepared
        parts = [self._responses(model, shard) for shard in shards]
        responses = concatenated(parts)
        if not bool(responses["response.is_read"].any()):
            raise TaskError(
                f"task {task.name!r}: every response ends at its first token;"
                " max_new_tokens=0 leaves them out"
            )
        return prepared | responses

    def _responses(self, model: Model, shard: TokenBatch) -> Tensors:
        """Return norms [batch tap new] of the tokens that a pass has read, all of one width."""
        rule = {"above": self.massive_above, "ratio": self.massive_ratio}
        response = respond(model, shard, max_new_tokens=self.max_new_tokens, **rule)
        missing = self.max_new_tokens - 1 - response.is_read.shape[1]
        return {
            "key": keys_of(shard.prompts),
            "response.norms": pad(response.norms, (0, missing)).cpu(),
            "response.massive": pad(response.massive, (0, missing)).cpu(),
            "response.is_read": pad(response.is_read, (0, missing)).cpu(),
        }

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return norms [batch tap pos], and classes and massive tokens [batch pos], by phase."""
        device = shard.tokens.device
        rule: dict[str, Any] = {"above": self.massive_above, "ratio": self.massive_ratio}
        rule |= {"mask": shard.mask}
        taps = range(recording.n_layers + 1)
        massive = [massive_activations(recording.resid(tap), **rule).any(-1) for tap in taps]
        none = torch.zeros(0, dtype=torch.long)
        punctuation = prepared.get("punctuation", none).to(device)
        classes = torch.where(torch.isin(shard.tokens, punctuation), PUNCTUATION, OTHER)
        classes[:, 0] = FIRST
        measured = {
            "prompt.norms": norms_of(recording),
            "prompt.massive": torch.stack(massive).any(0),
            "prompt.class": torch.where(shard.mask, classes, NO_TOKEN).to(torch.uint8),
        }
        if "key" in prepared:
            rows = rows_of(prepared["key"], shard.prompts)
            is_read = prepared["response.is_read"][rows]
            measured |= {
                "response.norms": prepared["response.norms"][rows],
                "response.massive": prepared["response.massive"][rows],
                "response.class": torch.where(is_read, OTHER, NO_TOKEN).to(torch.uint8),
            }
        if self.first_layer == "batch":
            for phase in PHASES:
                if (norms := measured.get(f"{phase}.norms")) is not None:
                    measured[f"{phase}.first_range"] = range_over_batch(changes_of(norms))
        return {key: tensor.cpu() for key, tensor in measured.items()}

    def combine(self, parts: Sequence[Tensors]) -> VoidDetectionResult:
        """Return usage from the norms of all prompts; another alpha needs no new run."""
        return VoidDetectionResult(self, tuple(parts))

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return the passes of a token each that responses take, once, before the shards."""
        n, n_pos = shard.tokens.shape
        taps, new = model.n_layers + 1, max(0, self.max_new_tokens - 1)
        held = n * (n_pos + new) * taps * model.d_model if new else n * n_pos * model.d_model
        numbers, how = n * (n_pos + new) * (taps + 1), {"logits": n * new, "pieces": new}
        return Cost(new / n_pos, numbers, held, is_bound=new > 0, **how)
