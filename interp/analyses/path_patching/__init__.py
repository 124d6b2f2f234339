"""What do components carry to chosen receivers on the direct path, exactly?

Path patching (Wang et al., arXiv 2211.00593; Goldowsky-Dill et al., arXiv 2304.05969): a sender's
write is taken from the other prompt's run, and only the receivers see it. Their answer is then run
to the end. Heads on the way are frozen; MLPs on the way are frozen too, or recomputed, which are
two questions: what goes from one to the other, or what goes there also through MLPs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from interp.analyses.path_patching.result import PathPatchingResult
from interp.analysis import Analysis, Cost
from interp.metrics import Metric
from interp.models import Model
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sweeps.exact_patching import clean_runs
from interp.sweeps.heads import z_reader_of
from interp.sweeps.paths import Between, Paths, check_paths, forwards_of
from interp.sweeps.twins import Direction, check_twins, twins_of
from interp.sweeps.wiring import LOGITS, Wiring
from interp.tasks import Task
from interp.tasks.batch import TokenBatch


@dataclass(frozen=True)
class PathPatching(Analysis):
    """Patch the paths from every sender to the receivers, one sender at a time.

    `senders` are "embed", heads such as "a3.h1" and MLPs such as "m3"; by default all before
    the last receiver. `receivers` are "logits", MLPs, and the query, key or value of heads, such as
    "q5.h0" (of K/V heads for "k" and "v"). MLPs `between` them are "frozen" or "recomputed". To
    "denoise", clean writes are put into the corrupted run; to "noise", the other way round.
    `metric` is as in relevance_patching.
    """

    senders: tuple[str, ...] | None = None
    receivers: tuple[str, ...] = (LOGITS,)
    between: Between = "frozen"
    metric: Metric = "logit_diff"
    direction: Direction = "denoise"
    seed: int = 0
    rank: ClassVar[int] = 14
    page: ClassVar[str] = "analysis"
    question: ClassVar[str] = (
        "What does each component carry to chosen receivers on the direct path, exactly?"
    )
    how: ClassVar[str] = (
        "A sender's write comes from the other prompt's run and reaches the receivers alone, with"
        " heads between frozen and MLPs frozen or recomputed; what they read is run to the end."
    )
    caveat: ClassVar[str] = (
        "What a sender does through components that are not among the receivers is left out, and"
        " paths patched alone do not add up."
    )

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise for twins that cannot be compared, or senders and receivers that are not there."""
        check_twins(model, shard, metric=self.metric)
        wiring = Wiring.of(model)
        check_paths(wiring, self.senders_of(wiring), self.receivers)
        z_reader_of(model.blocks[0])
        if {*self.receivers} != {LOGITS}:
            model.refuse_edges()

    def senders_of(self, wiring: Wiring) -> list[str]:
        """Return the senders in forward order."""
        if self.senders is not None:
            return sorted({*self.senders}, key=[*wiring.senders, *self.senders].index)
        known = [name for name in self.receivers if name in wiring.receivers]
        return wiring.senders[: max(map(wiring.n_before, known), default=0)]

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return the model's wiring."""
        return {"wiring": Wiring.of(model).numbers}

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return effects [batch sender], the metric of both runs [batch], and the wiring."""
        wiring = Wiring.from_numbers(prepared["wiring"])
        senders, n = self.senders_of(wiring), len(shard.prompts)
        measured = {"effects": torch.zeros(n, len(senders))}
        measured |= {name: torch.zeros(n) for name in ("base", "source")}
        for twins in twins_of(recording, shard, metric=self.metric, direction=self.direction):
            rows = twins.clean.rows.cpu()
            twins, base, source, values = clean_runs(recording, twins)
            paths = Paths(twins, base, source, wiring, self.between)
            values["effects"] = paths.effects(senders, self.receivers).cpu()
            for name, of_rows in values.items():
                measured[name][rows] = of_rows
        return measured | {"wiring": prepared["wiring"].repeat(n, 1)}

    def combine(self, parts: Sequence[Tensors]) -> PathPatchingResult:
        """Return the effects of all prompts."""
        return PathPatchingResult.of(self, parts)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return both runs, what their heads return, and every sender's paths."""
        wiring, (n, n_pos) = Wiring.of(model), shard.tokens.shape
        senders = self.senders_of(wiring)
        forwards = 4.0 + forwards_of(wiring, senders, self.receivers, self.between)
        at_once = max(model.tokens_at_once(), shard.tokens.numel())
        held = at_once * (14 * model.d_model + 2 * model.d_vocab // n_pos)
        logits = n * (3 + len(senders))
        return Cost(forwards, n * len(senders), held, is_bound=True, logits=logits)
