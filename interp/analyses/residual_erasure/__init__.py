"""After which layer can a token's stream be erased without the answer noticing?

"Do Language Models Use Their Depth Efficiently?" (arXiv 2505.13898), section 3.3: before layer
l the residual of position t is replaced by one without information, the mean over all positions of
the task's first prompts at that place; the effect is the L2 change of the probabilities where the
answer's tokens are predicted, the largest over them. Tap l is the stream before layer l; the
last tap is the stream after all layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.linalg import vector_norm

from interp.analyses.residual_erasure.erasing import ERASE, Erased
from interp.analyses.residual_erasure.result import Erasing, ResidualErasureResult
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError
from interp.models import Model
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.replay.rows import flat, unflat
from interp.shapes import Tensors
from interp.stats.align import align
from interp.sweeps.answers import SameLength, by_answer_length, length_group_sizes, require_answers
from interp.sweeps.layers import COARSEST, every_nth
from interp.sweeps.lens import logits_at_once
from interp.sweeps.mixers import require_kv
from interp.sweeps.outputs import held_at_the_end
from interp.sweeps.positions import FirstPosition, first_read
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

__all__ = ["ResidualErasure", "ResidualErasureResult"]


@dataclass(frozen=True)
class ResidualErasure(Analysis):
    """Erase one position ("position"), or all from 1 up to it ("prefix"), at every tap.

    What replaces a residual is the mean over the first `n_mean` prompts, without position 0 if
    `first_position` is "excluded". In findings, erasing matters where its effect is at least
    `matters`. Only `every` n-th tap is looked at, the last among them.
    """

    scopes: tuple[Erasing, ...] = ("position", "prefix")
    n_mean: Annotated[int, AtLeast(1)] = 10
    first_position: FirstPosition = "included"
    matters: float = 0.1
    every: Annotated[int, AtLeast(1)] = 1
    seed: int = 0
    rank: ClassVar[int] = 10
    page: ClassVar[str] = "erasure"
    question: ClassVar[str] = (
        "After which layer can a token's stream be erased without the answer noticing?"
    )
    how: ClassVar[str] = (
        "Before each layer a token's stream is replaced by a mean that carries no information,"
        " for one position or for all positions up to it, and the change of the answer's"
        " probabilities is measured."
    )
    caveat: ClassVar[str] = (
        "A mean stream is unusual for later layers,"
        " so part of the effect is surprise and not lost information."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scopes:
            raise AnalysisError("no scopes given; there is position, prefix")

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise TaskError where answers are missing, AnalysisError for prompts of two tokens."""
        require_kv(model)
        require_answers(shard)
        if (n_pos := shard.tokens.shape[1]) < 3:
            raise AnalysisError(
                f"prompt {shard.prompts[0].id!r} has {n_pos} tokens; at least 3 are needed"
            )

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return the mean residual [tap d_model] over the positions of the first prompts."""
        begin = first_read(self.first_position)
        shape, count = (model.n_layers + 1, model.d_model), 0
        total = torch.zeros(shape, dtype=torch.float64, device=model.device)
        for shard in model.shards(Task(task.name, task.prompts[: self.n_mean])):
            recording = model.record(model.tokenize(shard))
            for tap in range(model.n_layers + 1):
                total[tap] += recording.resid(tap)[:, begin:].double().sum((0, 1))
            count += len(shard) * (recording.n_pos - begin)
        return {"mean": (total / count).to(model.dtype)}

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return per prompt, by scope, how the output changes [batch tap pos].

        "output" is the change of the probabilities, "answer" the fall of the answer's.
        """
        n, n_taps = len(shard.prompts), recording.n_layers + 1
        taps = every_nth(n_taps, self.every)
        sizes = length_group_sizes(shard)
        shape = (n, n_taps, max(size.n_pos for size in sizes))
        keys = [f"{scope}.{key}" for scope in self.scopes for key in ("output", "answer")]
        parts = {key: torch.zeros(shape) for key in keys}
        parts |= {"n_pos": torch.zeros(n, dtype=torch.int64), "last": shard.last.cpu()}
        for group in by_answer_length(recording, shard):
            rows = group.rows.cpu()
            parts["n_pos"][rows] = group.recording.n_pos
            for scope in self.scopes:
                for erased in ERASE[scope](group.recording, prepared["mean"], taps):
                    index = rows[:, None], torch.tensor(erased.taps), erased.position
                    effects = _effects_of(group, erased)
                    for key, effect in zip(("output", "answer"), effects, strict=True):
                        parts[f"{scope}.{key}"][index] = effect.T
        return parts

    def combine(self, parts: Sequence[Tensors]) -> ResidualErasureResult:
        """Return effects aligned at the prompts' ends."""
        arrays = [{key: value.numpy() for key, value in part.items()} for part in parts]
        last, n_pos = ([part[key] for part in arrays] for key in ("last", "n_pos"))
        effects = [f"{scope}.{of}" for scope in self.scopes for of in ("output", "answer")]
        taps = np.array(every_nth(arrays[0][effects[0]].shape[1], self.every))
        aligned = {
            key: align([part[key][:, taps] for part in arrays], last=last, n_pos=n_pos)
            for key in effects
        }
        return ResidualErasureResult(self, aligned, taps)

    def coarser(self) -> "ResidualErasure | None":
        """Return the same at every second of these taps, down to every eighth of all."""
        return replace(self, every=2 * self.every) if self.every < COARSEST else None

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return about a quarter of (taps x positions) forwards a scope: only later blocks run."""
        layers, n_tokens = model.n_layers, shard.tokens.numel()
        sizes = length_group_sizes(shard)
        taps = every_nth(layers + 1, self.every)
        half, n_taps = sum(layers - tap for tap in taps), len(taps)
        block_tokens, pieces, logits = float(sum(size.passed for size in sizes) * layers), 0, 0
        for size in sizes:
            behind = {"position": range(size.n_pos), "prefix": (0, *range(2, size.n_pos))}
            tails = sum(size.n_pos - start for scope in self.scopes for start in behind[scope])
            block_tokens += half * size.n_prompts * tails
            starts = sum(len(behind[scope]) for scope in self.scopes)
            pieces, logits = pieces + starts, logits + starts * size.n_prompts * n_taps
        n_answer = max(size.n_pos for size in sizes) - shard.tokens.shape[1] + 1
        longest = max(size.n_pos for size in sizes)
        numbers = len(shard.prompts) * (layers + 1) * longest * 2 * len(self.scopes)
        held = 3 * (layers + 1) * n_tokens * model.d_model
        held += held_at_the_end(layers + 1, len(shard.prompts) * n_answer, model.d_vocab)
        forwards = block_tokens / (layers * n_tokens)
        return Cost(forwards, numbers, held, logits=logits * n_answer, pieces=pieces)


def _effects_of(group: SameLength, erased: Erased) -> tuple[Tensor, Tensor]:
    """Return both effects [tap batch], a few taps at a time beside the clean stream."""
    clean = group.recording.resid(group.recording.n_layers)[None, :, erased.start :]
    size = max(1, logits_at_once(group.recording) // group.answer.numel())
    done = []
    for some in torch.split(erased.resid, size):
        rows = flat(torch.cat([clean, some]))
        both = unflat(_probabilities(group, rows, start=erased.start), len(group.rows))
        done.append(_effects(group, both[0], both[1:]))
    changes, falls = (torch.cat(parts) for parts in zip(*done, strict=True))
    return changes, falls


def _probabilities(group: SameLength, resid: Tensor, *, start: int) -> Tensor:
    """Return the probabilities [rows answer_pos d_vocab] where answers are predicted.

    Residuals begin at position `start`.
    """
    positions = slice(max(group.start - start, 0), None)
    return group.recording.logits(resid, positions=positions).softmax(-1)


def _effects(group: SameLength, clean: Tensor, changed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probabilities' largest L2 change [tap batch], and the fall of the answer's.

    The answer's probability is summed over its tokens.
    """
    change = clean - changed
    answer = group.answer[:, -changed.shape[2] :, None].expand(*change.shape[:-1], 1)
    fall = change.gather(-1, answer)[..., 0].sum(-1)
    return vector_norm(change, dim=-1).amax(-1).cpu(), fall.cpu()
