"""When does the stream predict what the model predicts?

"Do Language Models Use Their Depth Efficiently?" (arXiv 2505.13898), section 3.2: the residual in
front of every layer is given to the final norm and the unembedding; the lens q_l is compared with
the final p by KL (the paper's is KL(q_l‖p), as its code has it) and by the overlap of their 5 most
probable tokens. "How Do LLMs Use Their Depth?" (arXiv 2510.18871) asks which tokens early guesses
are, and how many of them stay. "What Affects the Effective Depth of Large Language Models?" (arXiv
2512.14064) makes one layer of each curve, and one of the cosines of the writes: three effective
depths.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch.nn.functional import pad

from interp.analyses.logit_lens.depths import KLFrom
from interp.analyses.logit_lens.guesses import NO_GUESS
from interp.analyses.logit_lens.result import LogitLensResult
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError
from interp.models import Model
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sweeps.cosines import write_cosines
from interp.sweeps.lens import READINGS, held, readings, rows_at_once
from interp.sweeps.positions import FirstPosition, first_read, require_positions
from interp.tasks.batch import TokenBatch


@dataclass(frozen=True)
class LogitLens(Analysis):
    """Unembed the residual before every layer.

    `weighting` is "prompt" as published, or "token" as in the follow-up. Means over
    positions leave out position 0, often a sink, unless `first_position` is "included", as
    published. `kl_share` and `overlap_above` are the follow-up's thresholds of effective depth;
    `kl_from` says from where on the one by KL looks, "as published" with the embedding.
    """

    top_k: Annotated[int, AtLeast(1)] = 5
    first_position: FirstPosition = "excluded"
    weighting: Literal["prompt", "token"] = "prompt"
    kl_from: KLFrom = "after the first layer"
    kl_share: float = 0.5
    overlap_above: float = 0.3
    seed: int = 0
    question: ClassVar[str] = "When does the stream predict what the model predicts?"
    how: ClassVar[str] = (
        "The stream before every layer is given to the final norm and the unembedding, and"
        " compared with the final prediction: by KL divergence,"
        " by the most probable tokens, and by the rank of the answer."
    )
    caveat: ClassVar[str] = (
        "The lens reads early layers in the last layer's language;"
        " what it cannot read may be there in another form."
    )

    rank: ClassVar[int] = 2
    page: ClassVar[str] = "lens"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("kl_share", "overlap_above"):
            if not 0 < getattr(self, name) < 1:
                raise AnalysisError(
                    f"{name}={getattr(self, name)}; a number between 0 and 1 is needed"
                )

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise AnalysisError for too small a vocabulary, or a prompt without a position to use."""
        if self.top_k > model.d_vocab:
            raise AnalysisError(f"top_k={self.top_k}; the model has {model.d_vocab} tokens")
        require_positions(shard, first_position=self.first_position)

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return readings [batch tap pos reading] and cosines of writes [batch layer part].

        "top" [batch tap pos top_k] are the lens's most probable tokens, for a look at single
        prompts.
        """
        layers, start = range(recording.n_layers), first_read(self.first_position)
        taps = [recording.resid(tap) for tap in range(recording.n_layers + 1)]
        read, top = readings(recording, taps, top_k=self.top_k, answer=shard.answer)
        cosines = [write_cosines(recording, layer)[:, start:].mean(1) for layer in layers]
        return {
            "readings": read.cpu(),
            "top": top.cpu(),
            "cosines": torch.stack(cosines, dim=1).cpu(),
        }

    def combine(self, parts: Sequence[Tensors]) -> LogitLensResult:
        """Return readings of all prompts, the last position aligned; NaN before short ones."""
        longest, width = max(part["readings"].shape[2] for part in parts), len(READINGS)
        aligned = [
            pad(r, (0, width - r.shape[3], longest - r.shape[2], 0), value=torch.nan)
            for r in (part["readings"] for part in parts)  # earlier ones have fewer readings
        ]
        cosines = torch.cat([part["cosines"] for part in parts]).double().numpy()
        guesses = None
        if all("top" in part for part in parts):
            first = [part["top"][..., 0] for part in parts]
            guesses = torch.cat(
                [pad(top, (longest - top.shape[2], 0), value=NO_GUESS) for top in first]
            ).numpy()
        return LogitLensResult(self, torch.cat(aligned).double().numpy(), cosines, guesses)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Nothing beyond the clean pass but `n_layers` + 2 unembeddings, a few tokens at a time."""
        n_prompts, n_pos = shard.tokens.shape
        numbers = n_prompts * (
            (model.n_layers + 1) * n_pos * (len(READINGS) + self.top_k) + 3 * model.n_layers
        )
        n_tokens, n_read = shard.tokens.numel(), model.n_layers + 2
        pieces = n_read * math.ceil(n_tokens / rows_at_once(model.d_vocab))
        logits, at_once = n_tokens * n_read, held(n_tokens, model.d_vocab)
        return Cost(0.0, numbers, at_once, logits=logits, pieces=pieces)
