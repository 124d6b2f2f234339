"""Which edges between components carry a behaviour, and how much of it do they carry alone?

Edges are scored by the change in what the sender writes times the receiver's coefficient (edge
attribution patching, Syed et al., arXiv 2310.10348; under relevance rules, RelP, arXiv 2508.21258).
Circuits of the best edges are then run: every other edge carries what it would in the corrupted
run, or a mean. Faithfulness and its two areas follow MIB (arXiv 2504.13151):

    f(C) = (m(C) - m(no edge)) / (m(all edges) - m(no edge))
    CPR = mean of f over the range of fractions,   CMD = that of |1 - f|
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch

from interp.analyses.circuit_discovery.circuits import Circuit
from interp.analyses.circuit_discovery.controls import controls_for_halves
from interp.analyses.circuit_discovery.halves import (
    is_new,
    metric_of,
    metric_of_task,
    numbers_held,
    scored_edges,
    split_of,
)
from interp.analyses.circuit_discovery.result import CircuitDiscoveryResult
from interp.analysis import Analysis, Cost
from interp.backward import GRADIENT, Rules, rules_named
from interp.errors import AnalysisError
from interp.metrics import Metric
from interp.models import Model
from interp.models.quantised import Asked
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Tensors
from interp.sweeps.twins import check_twins
from interp.sweeps.wiring import Wiring
from interp.tasks import Task
from interp.tasks.batch import TokenBatch
from interp.tasks.prompts import key_of


@dataclass(frozen=True)
class CircuitDiscovery(Analysis):
    """Score edges on half of the prompts, run circuits of the best ones on the other half.

    `method` is "relevance" (with the named `rules`) or "attribution"; `ranking` orders edges by
    "absolute" or "signed" score. `ablation` says what all other edges carry: the "corrupted" run's
    values, or their "mean" over the corrupted runs and positions (which also hides where a token
    stands). `fractions` of all edges are tried, and all edges but those. The smallest faithful
    circuit is chosen on a half of the other half, beside `draws` random circuits made like it
    (see `interp.analyses.circuit_discovery.controls`).
    """

    method: Literal["relevance", "attribution"] = "relevance"
    rules: str = "relp"
    metric: Metric = "logit_diff"
    ranking: Literal["absolute", "signed"] = "absolute"
    ablation: Literal["corrupted", "mean"] = "corrupted"
    fractions: tuple[float, ...] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    draws: Annotated[int, AtLeast(1)] = 20
    seed: int = 0
    rank: ClassVar[int] = 6
    asks_of_weights: ClassVar[Asked | None] = "gradients"
    page: ClassVar[str] = "circuit"
    question: ClassVar[str] = (
        "Which edges between components carry a behaviour, and how much of it do they carry alone?"
    )
    how: ClassVar[str] = (
        "Edges between heads, MLPs, embedding and output are scored on half of the prompts, by one"
        " forward and backward pass. Circuits of the best edges are run on the other half, all"
        " other edges carrying what they do on the corrupted prompt (or a mean)."
    )
    caveat: ClassVar[str] = (
        "Edges count only against this ablation of all others;"
        " another corrupted twin may need other edges."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        rules_named(self.rules)
        is_rising = all(low < high for low, high in pairwise((0, *self.fractions)))
        if len(self.fractions) < 2 or not is_rising or self.fractions[-1] > 1:
            raise AnalysisError(
                f"fractions={self.fractions}; at least two, rising, above 0 and up to 1, are needed"
            )

    @property
    def _rules(self) -> Rules:
        return rules_named(self.rules) if self.method == "relevance" else GRADIENT

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise TaskError for unfit twins, SiteError where edges or rules are out of reach."""
        check_twins(model, shard, metric=self.metric)
        model.refuse_edges()
        model.refuse_rules(self._rules)

    def check_all(self, model: Model, shards: Sequence[TokenBatch]) -> None:
        """Raise TaskError for too few prompts to find, choose and try circuits."""
        split_of([prompt for shard in shards for prompt in shard.prompts])

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return edge scores from half of the prompts, circuits' metric on the others, controls.

        The other prompts are halved once more; each half chooses a circuit, for which random
        controls are drawn. "chosen" and "half" say which; "random" holds the edges [choice draw
        receiver sender].
        """
        for_discovery, new = split_of(task.prompts)
        prepared = scored_edges(
            model,
            task.of(for_discovery),
            metric=self.metric,
            rules=self._rules,
            needs_means=self.ablation == "mean",
        )
        whole = self._whole(prepared)
        tried = self.circuits(whole)
        kept = [*(circuit.kept for circuit in tried), whole.kept, np.zeros_like(whole.kept)]
        measured, groups = metric_of_task(model, task.of(new), kept, prepared, metric=self.metric)
        controls = controls_for_halves(
            tried, whole, measured["values"], groups, n=self.draws, seed=self.seed
        )
        return prepared | measured | controls

    def _whole(self, prepared: Tensors) -> Circuit:
        wiring = Wiring.from_numbers(prepared["wiring"])
        return Circuit.whole(wiring, prepared["scores"].double().mean(0).numpy())

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return edge scores [batch receiver sender], or the metric of circuits and controls.

        Prompts on which edges were scored have their scores, the others the metric [batch
        fraction], of random circuits [batch choice draw]; the rest is 0.
        """
        whole, n = self._whole(prepared), len(shard.prompts)
        chosen = prepared["chosen"].tolist()
        random = prepared["random"][: len(set(chosen))]
        others = [whole.kept & ~circuit.kept for circuit in self.circuits(whole)]
        tried = [*others, *random.flatten(0, 1).numpy()]
        values = metric_of(recording, shard, tried, prepared, metric=self.metric)
        complement, drawn = values[:, : len(others)], values[:, len(others) :]
        drawn = drawn.reshape(n, -1, self.draws).expand(-1, 2, -1)
        known = {key: row for row, key in enumerate(prepared["new"].tolist())}
        unseen = is_new(shard)
        rows = [
            known[key_of(p.id)] if new else 0 for p, new in zip(shard.prompts, unseen, strict=True)
        ]
        circuits = prepared["values"][rows] * unseen[:, None]
        scored = dict(zip(prepared["key"].tolist(), prepared["scores"], strict=True))
        empty = torch.zeros_like(prepared["scores"][0])
        scores = [scored.get(key_of(prompt.id), empty) for prompt in shard.prompts]
        return {
            "circuit": circuits[:, :-2].contiguous(),
            "random": drawn.contiguous(),
            "complement": complement.contiguous(),
            "all": circuits[:, -2].contiguous(),
            "none": circuits[:, -1].contiguous(),
            "is_new": unseen.int(),
            "half": prepared["half"][rows].int(),
            "chosen": prepared["chosen"].int().repeat(n, 1),
            "shared": prepared["shared"].repeat(n, 1),
            "wiring": prepared["wiring"].repeat(n, 1),
            "scores": torch.stack(scores),
        }

    def circuits(self, whole: Circuit) -> list[Circuit]:
        """Return the circuit of each fraction of all edges."""
        sizes = [max(1, round(share * whole.n_edges)) for share in self.fractions]
        return [whole.top(size, by=self.ranking) for size in sizes]

    def combine(self, parts: Sequence[Tensors]) -> CircuitDiscoveryResult:
        """Return the scored edges, and what circuits of them do on unseen prompts."""
        arrays = {key: array.astype(np.float64) for key, array in joined(parts).items()}
        unseen = arrays.pop("is_new") > 0
        wiring = Wiring.from_numbers(torch.from_numpy(arrays.pop("wiring")[0]))
        whole = Circuit.whole(wiring, arrays.pop("scores")[~unseen].mean(0))
        one, other = arrays.pop("chosen")[0].astype(int).tolist()
        shared = float(arrays.pop("shared")[0].mean())
        values = {key: array[unseen] for key, array in arrays.items()}
        return CircuitDiscoveryResult(self, whole, values, (one, other), shared, unseen)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return at most a pass for every circuit, complement and control, of unseen prompts.

        A pass with an input for each head takes about nine times as long (30 layers of 9 heads),
        edges' scores on the other prompts counted in.
        """
        wiring, k = Wiring.of(model), len(self.fractions)
        held = numbers_held(shard, len(wiring.senders) * model.d_model, k + 2 * self.draws)
        passes = 2 * k + 2.0 * self.draws + 3 + (self.metric == "kl")
        numbers = wiring.is_edge.size + 2 * k + 2 * self.draws + 10
        new = float(is_new(shard).float().mean())
        passes, numbers = passes * new, len(shard.prompts) * numbers
        logits = round(passes * len(shard.prompts))
        return Cost(passes, numbers, held, is_bound=True, weight=9.0, logits=logits)
