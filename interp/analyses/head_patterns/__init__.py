"""What does each head attend to?

Where attention goes, by head, is what "A Mathematical Framework for Transformer Circuits" (2021)
and "In-context Learning and Induction Heads" (arXiv 2209.11895) read heads by: the previous token,
an earlier copy of the token, the token after that copy (induction). A pattern says from where a
head reads, not how much: "Attention is Not Only a Weight" (arXiv 2004.10102) weighs it by the
length of what is moved, ‖a · v W_O‖, beside it here. Induction is measured on random tokens said
twice; the control are the same queries after unrelated tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from interp.analyses.head_patterns.result import HeadPatternsResult
from interp.analyses.head_patterns.targets import (
    COPIES,
    READINGS,
    copies_of,
    of_uniform,
    readings,
    targets_of,
    uniform,
)
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError
from interp.models import Model
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.shapes import Tensors, per_query_head
from interp.sweeps.heads import (
    INSIDE,
    inside_heads,
    layers_at_once,
    lengths,
    n_passes,
    output_map,
    require_heads,
)
from interp.sweeps.punctuation import punctuation_of
from interp.sweeps.tags import draw_seed, keys_of, rows_of
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

TOP = 5  # tokens that a head's write at the last token makes most, or least, probable


@dataclass(frozen=True)
class HeadPatterns(Analysis):
    """Read every head's attention pattern.

    `repeated` random tokens, drawn for each prompt, are said twice to see induction. Of the first
    `kept` prompts that have at most `longest` tokens, whole patterns are kept to look at: 2 bytes
    for each head, query and key.
    """

    repeated: Annotated[int, AtLeast(2)] = 16
    kept: Annotated[int, AtLeast(0)] = 8
    longest: Annotated[int, AtLeast(2)] = 64
    seed: int = 0
    rank: ClassVar[int] = 9
    page: ClassVar[str] = "heads"
    question: ClassVar[str] = "What does each head attend to?"
    how: ClassVar[str] = (
        "Attention of every head is added up over kinds of keys, in the prompts and on random"
        " tokens said twice; beside it, attention weighted by how much of the value is written."
        " Controls: a head that attends to everything alike, and the same tokens without a copy."
    )
    caveat: ClassVar[str] = (
        "A pattern says where a head reads, not what it moves or whether anything needs it;"
        " patch or ablate the head to see."
    )

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise for prompts of one token, too few tokens to draw, or heads that cannot be read."""
        require_heads(model)
        if shard.tokens.shape[1] < 2:
            raise AnalysisError(
                f"prompt {shard.prompts[0].id!r} has 1 token; at least 2 are needed"
            )
        if len(_plain_tokens(model)) < 2 * self.repeated:
            raise AnalysisError(
                f"repeated={self.repeated}; the model has {len(_plain_tokens(model))} tokens, and"
                " twice as many as are repeated are needed"
            )

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return each prompt's random tokens, which prompts are kept, and what is punctuation."""
        prompts, tokens = task.prompts, _plain_tokens(model)
        drawn = [
            np.random.default_rng(draw_seed(prompt.id, seed=self.seed)).choice(
                tokens, 2 * self.repeated, replace=False
            )
            for prompt in prompts
        ]
        shards = [model.tokenize(shard) for shard in model.shards(task)]
        seen = [token for shard in shards for row in shard.tokens.tolist() for token in row]
        short = [p for s in shards if s.tokens.shape[1] <= self.longest for p in s.prompts]
        kept = torch.zeros(len(prompts), dtype=torch.bool)
        kept[rows_of(keys_of(prompts), short[: self.kept])] = True
        return {
            "keys": keys_of(prompts),
            "drawn": torch.tensor(np.array(drawn), dtype=torch.long),
            "is_kept": kept,
            "punctuation": punctuation_of(model.tokenizer, seen),
        }

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return readings [batch reading weighting layer head], and patterns that are kept.

        "uniform" [batch reading] is what a head that attends to all alike gives; "repeated" and
        "unrelated" [batch copy layer head] are readings of random tokens. "kept" tells which
        prompts have a row in "kept.pattern" and "kept.weighted" [kept layer head query key], in 255
        parts, and in "kept.promoted" and "kept.suppressed" [kept layer head top], the tokens that a
        head's write at the last token makes most and least probable.
        """
        rows = rows_of(prepared["keys"], shard.prompts)
        is_kept = prepared["is_kept"][rows]
        weights = targets_of(shard, prepared["punctuation"])
        n_heads = recording.blocks[0].n_heads
        read, kept = [], _Kept(recording, is_kept.to(shard.tokens.device))
        for layer, seen in inside_heads(recording, shard.tokens, INSIDE, n_heads=n_heads):
            values = per_query_head(seen["v"], n_heads)
            maps = output_map(recording, layer, values)
            moved = seen["pattern"] * lengths(values, maps)[:, :, None, :]
            weighted = moved / moved.sum(-1, keepdim=True).clamp(min=1e-30)
            both = [readings(pattern, weights) for pattern in (seen["pattern"], weighted)]
            read.append(torch.stack(both, dim=2))
            kept.add(seen["pattern"], weighted, seen["z"], maps, last=shard.last)
        of_all = torch.tensor([of_uniform(shard.tokens.shape)]).expand(len(rows), -1)
        return {
            "readings": torch.stack(read, dim=3).cpu(),
            "uniform": torch.cat([uniform(weights).cpu(), of_all], dim=1),
            **self._copies(recording, shard.tokens[:, :1], prepared["drawn"][rows]),
            **kept.tensors(),
        }

    def _copies(self, recording: Recording, first: Tensor, drawn: Tensor) -> Tensors:
        """Return readings of `COPIES` after the prompts' first tokens [batch copy layer head]."""
        drawn = drawn.to(first.device)
        said, other = drawn[:, : self.repeated], drawn[:, self.repeated :]
        texts = {"repeated": (first, said, said), "unrelated": (first, other, said)}
        n_heads, found = recording.blocks[0].n_heads, dict[str, Tensor]()
        for name, parts in texts.items():
            tokens = torch.cat(parts, dim=1)
            weights = copies_of(tokens, n=self.repeated)
            layers = [
                torch.einsum("bhqk,btqk->bth", seen["pattern"], weights)
                for _, seen in inside_heads(recording, tokens, ("pattern",), n_heads=n_heads)
            ]
            found[name] = torch.stack(layers, dim=2).cpu()
        return found

    def combine(self, parts: Sequence[Tensors]) -> HeadPatternsResult:
        """Return readings of all prompts and the patterns that were kept."""
        return HeadPatternsResult.of(self, parts)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return a pass over the prompts and two over random tokens, with whole patterns held."""
        (n, n_pos), n_layers, n_heads = shard.tokens.shape, model.n_layers, model.n_heads
        copies = (n, 1 + 2 * self.repeated)
        forwards = n_passes(n_layers, n_heads, (n, n_pos))
        of_copies = 2 * copies[1] / n_pos * n_passes(n_layers, n_heads, copies)
        held = n_heads * n * n_pos**2 * (layers_at_once(n_layers, n_heads, (n, n_pos)) + 4)
        each = n_layers * n_heads
        kept = min(self.kept, n) if n_pos <= self.longest else 0
        numbers = n * each * (2 * len(READINGS) + 2 * len(COPIES)) + kept * each * n_pos**2 // 2
        logits = 3 * n + kept * each
        return Cost(forwards + of_copies, numbers, held, logits=logits)


class _Kept:
    """Collects the patterns of the prompts that are kept, layer by layer."""

    def __init__(self, recording: Recording, is_kept: Tensor) -> None:
        self.recording, self.is_kept = recording, is_kept
        self.layers: list[tuple[Tensor, ...]] = []
        self.biases: Tensor | None = None  # logits of nothing: what norm and unembedding add

    def add(
        self, pattern: Tensor, weighted: Tensor, z: Tensor, maps: Tensor, *, last: Tensor
    ) -> None:
        """Keep a layer's patterns and what its heads write at the last token."""
        if not self.is_kept.any():
            return
        at_last = z[torch.arange(len(z), device=z.device), last][self.is_kept]
        written = torch.einsum("bhd,hdm->bhm", at_last, maps)
        in_parts = [(255 * p[self.is_kept]).round().to(torch.uint8) for p in (pattern, weighted)]
        self.layers.append((*in_parts, *self._extremes(written)))

    def _extremes(self, written: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens that writes [batch head d_model] make most and least probable.

        The final norm is frozen, and one behind attention: the size of a write changes no order.
        """
        written = written.to(self.recording.resid(0).dtype)
        if self.biases is None:
            self.biases = self.recording.logits(torch.zeros_like(written[:1, :1]))
        logits = self.recording.logits(written) - self.biases
        n = min(TOP, logits.shape[-1])
        most, least = (signed.topk(n, dim=-1).indices.int() for signed in (logits, -logits))
        return most, least

    def tensors(self) -> Tensors:
        """Return what is kept, by name."""
        names = ("kept.pattern", "kept.weighted", "kept.promoted", "kept.suppressed")
        stacked = [torch.stack(parts, dim=1).cpu() for parts in zip(*self.layers, strict=True)]
        return {"kept": self.is_kept.cpu()} | dict(zip(names, stacked, strict=False))


def _plain_tokens(model: Model) -> np.ndarray:
    """Return the ids of all tokens that have no special meaning."""
    special = [] if model.tokenizer is None else model.tokenizer.all_special_ids
    n_ids = min(model.d_vocab, len(model.module.get_input_embeddings().weight))
    return np.setdiff1d(np.arange(n_ids), special)
