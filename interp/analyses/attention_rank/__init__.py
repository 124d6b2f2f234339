"""Is attention of low rank where it can be left out?

γ-MoD (arXiv 2410.13859) calls layers redundant whose attention patterns have a low rank (ARank). A
causal T×T pattern with its diagonal has exactly rank T, as all of its weights are above 0, so that
a rank is a matter of tolerance; the effective rank, exp(entropy of the singular values), needs
none. Here ranks at one T are compared with what skipping each layer's attention costs, given depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from interp.analyses.attention_rank.result import AttentionRankResult
from interp.analyses.attention_rank.spectra import (
    MEASURES,
    VIEWS,
    published,
    ranks,
    shuffled,
    shuffles,
    without_first,
)
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError
from interp.models import Model
from interp.models.untrained import twins_of
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Tensors
from interp.sweeps.heads import inside_heads, layers_at_once, n_passes, require_heads
from interp.sweeps.outputs import held, output_changes
from interp.sweeps.positions import SkippedPositions, first_skipped
from interp.sweeps.staircase import Ends, staircase
from interp.tasks import Task
from interp.tasks.batch import TokenBatch
from interp.tasks.prompts import key_of

__all__ = ["AttentionRank", "AttentionRankResult"]
_LONGEST, _SHORTEST = 64, 4  # tokens of a pattern, unless asked for
_OF_TWIN = 4  # prompts that an untrained twin reads


@dataclass(frozen=True)
class AttentionRank(Analysis):
    """Measure the rank of every head's pattern, and skip every layer's attention.

    Patterns are those of the first `n_tokens` tokens; 0 means as many as the shortest prompt has,
    at most 64. `skipped_positions` "all but the first" spares position 0, often a sink.
    """

    n_tokens: Annotated[int, AtLeast(0)] = 0
    skipped_positions: SkippedPositions = "all but the first"
    seed: int = 0
    rank: ClassVar[int] = 107
    question: ClassVar[str] = "Does attention have a low rank in layers where it can be left out?"
    how: ClassVar[str] = (
        "Ranks of all heads' patterns come from their singular values, at one number of tokens,"
        " with and without the first; beside them uniform, shuffled and untrained attention."
        " Their mean in each layer is correlated with what skipping its attention costs."
    )
    caveat: ClassVar[str] = (
        "Rank follows length, and no causal pattern lacks any; a correlation over layers is of as"
        " few numbers as there are layers."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.n_tokens < _SHORTEST:
            raise AnalysisError(f"n_tokens={self.n_tokens}; at least {_SHORTEST} are needed, or 0")

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise for prompts with fewer tokens than patterns need, and heads out of reach."""
        require_heads(model)
        n_pos, fewest = shard.tokens.shape[1], self.n_tokens or _SHORTEST
        if n_pos < fewest:
            raise AnalysisError(
                f"prompt {shard.prompts[0].id!r} has {n_pos} tokens; {fewest} are needed"
            )

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return how many tokens patterns have, and ranks in an untrained twin, if there is one.

        "untrained" is [layer view measure], mean over heads and four prompts.
        """
        batches = [model.tokenize(shard) for shard in model.shards(task)]
        shortest = min(batch.tokens.shape[1] for batch in batches)
        n_tokens = self.n_tokens or min(shortest, _LONGEST)
        prepared = {"n_tokens": torch.tensor(n_tokens)}
        few = sorted(task.prompts, key=lambda prompt: key_of(prompt.id))[:_OF_TWIN]
        for twin in twins_of(model, seed=self.seed):
            of_heads = [
                self._ranks(twin.record(batch), batch, n_tokens)["rank"]
                for batch in (twin.tokenize([prompt]) for prompt in few)
            ]
            return prepared | {"untrained": torch.cat(of_heads).mean((0, 2))}
        return prepared

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return ranks of patterns, and what skipping each layer's attention costs.

        "rank" [batch layer head view measure] and "published" [batch layer head]; "shuffled"
        [batch layer view measure] is the mean head's with rows shuffled, "untrained" an untrained
        twin's. "kl" [batch layer] is KL(clean‖skipped) at the last position, in nats.
        """
        n = len(shard.prompts)
        parts = self._ranks(recording, shard, int(prepared["n_tokens"]))
        parts["n_tokens"] = prepared["n_tokens"].expand(n).contiguous()
        if "untrained" in prepared:
            parts["untrained"] = prepared["untrained"].expand(n, -1, -1, -1).contiguous()
        begin, clean = first_skipped(self.skipped_positions), recording.resid(recording.n_layers)
        for event in staircase(
            recording, part="attention", scopes=("all",), splits=(), begin=begin
        ):
            if isinstance(event, Ends):
                changes = output_changes(recording, event.resid[:, :, -1:], clean[:, -1:])
                parts["kl"] = changes["kl"][:, :, 0].T.cpu()
        return parts

    def _ranks(self, recording: Recording, shard: TokenBatch, n_tokens: int) -> Tensors:
        orders = [shuffles(shard.prompts, n, seed=self.seed) for n in (n_tokens, n_tokens - 1)]
        layers: dict[str, list[Tensor]] = {"rank": [], "published": [], "shuffled": []}
        n_heads = recording.blocks[0].n_heads
        for _, seen in inside_heads(recording, shard.tokens, ("pattern",), n_heads=n_heads):
            pattern = seen["pattern"][:, :, :n_tokens, :n_tokens].cpu().double()
            views = [pattern, without_first(pattern)]
            mixed = [shuffled(*pair) for pair in zip(views, orders, strict=True)]
            layers["rank"].append(torch.stack([ranks(view) for view in views], dim=2))
            layers["shuffled"].append(torch.stack([ranks(view).mean(1) for view in mixed], dim=1))
            layers["published"].append(published(pattern))
        return {name: torch.stack(each, dim=1) for name, each in layers.items()}

    def combine(self, parts: Sequence[Tensors]) -> AttentionRankResult:
        """Return ranks and costs of all prompts."""
        return AttentionRankResult(
            self, joined([{key: value.double() for key, value in part.items()} for part in parts])
        )

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return a pass for patterns and a sweep of skips, each of which runs an MLP too."""
        (n, n_pos), n_layers, n_heads = shard.tokens.shape, model.n_layers, model.n_heads
        passes = n_passes(n_layers, n_heads, (n, n_pos))
        at_once = layers_at_once(n_layers, n_heads, (n, n_pos))
        patterns = n_heads * n * n_pos**2 * (at_once + 6)
        streams = 4 * n_layers * n * n_pos * model.d_model + held(n_layers, n, model.d_vocab)
        each = len(VIEWS) * len(MEASURES)
        return Cost(
            (n_layers - 1) / 2 + 0.5 + passes,
            n * n_layers * (each * (n_heads + 2) + n_heads + 1),
            max(patterns, streams),
            logits=n * (n_layers + 1 + passes),
            once=float(_OF_TWIN * n_pos),
        )
