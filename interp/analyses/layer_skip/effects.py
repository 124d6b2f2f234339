"""What skips change: later layers, prompt by prompt, the output, and the answer."""

from collections.abc import Callable

import torch
from torch import Tensor

from interp.metrics import Outcome, outcomes
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sweeps.outputs import output_changes, read_at_the_end
from interp.sweeps.staircase import Ends, Step
from interp.tasks.batch import TokenBatch


class LayerEffects:
    """Running maximum, its position, and mean of one scope, per prompt [batch skipped affected]."""

    def __init__(self, n: int, layers: int) -> None:
        self.maximum = torch.zeros(n, layers, layers)
        self.position = torch.zeros(n, layers, layers, dtype=torch.int32)
        self.total = torch.zeros(n, layers, layers)
        self.count = torch.zeros(n, layers, layers)

    def add(self, step: Step, *, first: int) -> None:
        """Take in one layer's changes [variant batch pos], those before `first` left out."""
        change = step.change[:, :, max(first - step.start, 0) :]
        value, position = (t.transpose(0, 1).cpu() for t in change.max(-1))
        at = (slice(None), slice(0, len(change)), step.layer)
        larger = value > self.maximum[at]
        self.position[at] = torch.where(
            larger, position + max(step.start, first), self.position[at]
        ).to(torch.int32)
        self.maximum[at] = torch.where(larger, value, self.maximum[at])
        self.total[at] += change.sum(-1).transpose(0, 1).cpu()
        self.count[at] += change.shape[-1]

    def tensors(self) -> Tensors:
        """Return the finished arrays."""
        mean = self.total / self.count.clamp_min(1)
        return {"max": self.maximum, "position": self.position, "mean": mean}


def reduce_into(into: Tensors, key: str, value: Tensor) -> None:
    """Keep the larger of maxima, and the sum of shares."""
    if key not in into:
        into[key] = value
    else:
        into[key] = torch.maximum(into[key], value) if key.endswith("max") else into[key] + value


def clean_outcomes(recording: Recording, shard: TokenBatch) -> Tensors:
    """Return the answer's outcomes [batch] without a skip; none without answers."""
    if shard.answer is None:
        return {}
    end = recording.resid(recording.n_layers)[None, :, -1]
    found = read_at_the_end(recording, end, _outcomes_of(shard))
    return {f"clean.{name}": value[0].cpu() for name, value in found.items()}


def _outcomes_of(shard: TokenBatch) -> Callable[[Tensor], dict[Outcome, Tensor]]:
    answer, wrong = shard.answer, shard.wrong
    assert answer is not None
    return lambda logits: outcomes(logits, answer, wrong)


def output_effects(
    recording: Recording, shard: TokenBatch, ends: Ends, *, share: float, begin: int
) -> Tensors:
    """Return how skips change the output, each [batch skipped].

    What is averaged over splits comes multiplied by `share`, to be added up. Positions before
    `begin` do not count, but for the answer's outcomes.
    """
    kept = ends.resid[:, :, max(begin - ends.start, 0) :]
    clean = recording.resid(recording.n_layers)[:, recording.n_pos - kept.shape[2] :]
    change = output_changes(recording, kept, clean)
    effects: Tensors = {}
    for name, value in (("output", change["l2"]), ("kl", change["kl"])):
        effects |= {f"{name}_max": value.amax(-1), f"{name}_mean": share * value.mean(-1)}
    if shard.answer is not None:
        found = read_at_the_end(recording, ends.resid[:, :, -1], _outcomes_of(shard))
        effects |= {name: share * value for name, value in found.items()}
    return {key: value.T.cpu() for key, value in effects.items()}
