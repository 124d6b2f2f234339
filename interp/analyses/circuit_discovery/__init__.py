"""Which edges between components carry a behaviour, and how much of it do they carry alone?

Edges are scored by the change in what the sender writes times the receiver's coefficient (edge
attribution patching, Syed et al., arXiv 2310.10348; under relevance rules, RelP, arXiv 2508.21258).
Circuits of the best edges are then run: every other edge carries what it would in the corrupted
run, or a mean. Faithfulness and its two areas follow MIB (arXiv 2504.13151):

    f(C) = (m(C) - m(no edge)) / (m(all edges) - m(no edge))
    CPR = area under f,   CMD = area under |1 - f|
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray

from interp.analyses.circuit_discovery.circuits import Circuit, Wiring, random_circuits
from interp.analyses.circuit_discovery.edges import (
    TOKENS_AT_ONCE,
    circuit_values,
    edge_scores,
    plain_pass,
)
from interp.analyses.circuit_discovery.result import KINDS, CircuitDiscoveryResult
from interp.analysis import Analysis, Cost
from interp.backward import GRADIENT, Rules, rules_named
from interp.errors import AnalysisError, TaskError
from interp.metrics import Metric
from interp.models import Model
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Tensors
from interp.sweeps.twins import check_twins, twins_of
from interp.tasks import Task
from interp.tasks.batch import TokenBatch
from interp.tasks.prompts import key_of


@dataclass(frozen=True)
class CircuitDiscovery(Analysis):
    """Score edges on half of the prompts, run circuits of the best ones on the other half.

    `method` is "relevance" (with the named `rules`) or "attribution"; `ranking` orders edges by
    "absolute" or "signed" score. `ablation` says what all other edges carry: the "corrupted" run's
    values, or their "mean" over the corrupted runs and positions (which also hides where a token
    stands). `fractions` of all edges are tried, each with two controls: as many random edges, and
    all edges but the circuit's.
    """

    method: Literal["relevance", "attribution"] = "relevance"
    rules: str = "relp"
    metric: Metric = "logit_diff"
    ranking: Literal["absolute", "signed"] = "absolute"
    ablation: Literal["corrupted", "mean"] = "corrupted"
    fractions: tuple[float, ...] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    seed: int = 0
    rank: ClassVar[int] = 6
    page: ClassVar[str] = "circuit"
    question: ClassVar[str] = (
        "Which edges between components carry the behaviour, and how much of it alone?"
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

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return edge scores [prompt receiver sender] and mean writes, on half of the prompts."""
        discovery = [prompt for prompt in task.prompts if is_for_discovery(prompt.id)]
        if not discovery or len(discovery) == len(task.prompts):
            raise TaskError(
                "circuits are found on half of the prompts and tried on the other;"
                f" {len(task.prompts)} are too few"
            )
        wiring = Wiring.of(model)
        writes = torch.zeros(wiring.is_edge.shape[1], model.d_model, device=model.device)
        scores, keys, n_tokens = [], [], 0
        for prompts in model.shards(task.of(discovery)):
            shard = model.tokenize(prompts)
            recording = model.record(shard)
            for twins in twins_of(recording, shard, metric=self.metric, direction="denoise"):
                scores.append(edge_scores(recording, twins, wiring, rules=self._rules).cpu())
                keys += [key_of(prompts[row].id) for row in twins.clean.rows.tolist()]
                if self.ablation == "mean":
                    away = plain_pass(recording, twins.corrupted, wiring).writes.float()
                    writes = writes + away.sum((0, 1))
                    n_tokens += away.shape[0] * away.shape[1]
        means = {"writes": writes / n_tokens} if self.ablation == "mean" else {}
        scored = {"scores": torch.cat(scores), "key": torch.tensor(keys)}
        return scored | {"wiring": wiring.numbers} | means

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return edge scores [batch receiver sender] and the metric of circuits [batch fraction].

        Prompts on which edges were scored have their scores, the others the metric; the rest is 0.
        """
        wiring = Wiring.from_numbers(prepared["wiring"])
        whole = Circuit.whole(wiring, prepared["scores"].double().mean(0).numpy())
        tried = self._tried(whole)
        is_new = torch.tensor([not is_for_discovery(prompt.id) for prompt in shard.prompts])
        values = torch.zeros(len(shard.prompts), len(tried))
        for every in twins_of(recording, shard, metric=self.metric, direction="denoise"):
            twins = every.only(is_new[every.clean.rows.cpu()].nonzero()[:, 0])
            if not len(twins.clean.rows):
                continue
            away = plain_pass(recording, twins.corrupted, wiring)
            if self.metric == "kl":
                twins = twins.with_reference(recording.forward(twins.clean.tokens).logits)
            kept = circuit_values(
                recording, twins, wiring, tried, away=away, instead=prepared.get("writes")
            )
            values[twins.clean.rows.cpu()] = kept.T.cpu()
        scored = dict(zip(prepared["key"].tolist(), prepared["scores"], strict=True))
        nothing = torch.zeros(wiring.is_edge.shape)
        scores = [scored.get(key_of(prompt.id), nothing) for prompt in shard.prompts]
        by_kind = values[:, :-2].chunk(len(KINDS), dim=1)
        return {
            **{kind: part.contiguous() for kind, part in zip(KINDS, by_kind, strict=True)},
            "all": values[:, -2].contiguous(),
            "none": values[:, -1].contiguous(),
            "is_new": is_new.int(),
            "wiring": wiring.numbers.repeat(len(shard.prompts), 1),
            "scores": torch.stack(scores),
        }

    def _tried(self, whole: Circuit) -> list[NDArray[np.bool_]]:
        """Return the kept edges of circuits, random controls, complements, all edges and none."""
        circuits, every = self.circuits(whole), whole.kept
        sizes = [circuit.n_edges for circuit in circuits]
        others = [every & ~circuit.kept for circuit in circuits]
        random = random_circuits(whole.wiring, sizes, seed=self.seed)
        return [*(c.kept for c in circuits), *random, *others, every, np.zeros_like(every)]

    def circuits(self, whole: Circuit) -> list[Circuit]:
        """Return the circuit of each fraction of all edges."""
        sizes = [max(1, round(share * whole.n_edges)) for share in self.fractions]
        return [whole.top(size, by=self.ranking) for size in sizes]

    def combine(self, parts: Sequence[Tensors]) -> CircuitDiscoveryResult:
        """Return the scored edges, and what circuits of them do on unseen prompts."""
        arrays = {key: array.astype(np.float64) for key, array in joined(parts).items()}
        is_new = arrays.pop("is_new") > 0
        wiring = Wiring.from_numbers(torch.from_numpy(arrays.pop("wiring")[0]))
        whole = Circuit.whole(wiring, arrays.pop("scores")[~is_new].mean(0))
        values = {key: array[is_new] for key, array in arrays.items()}
        return CircuitDiscoveryResult(self, whole, values)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return a pass for every circuit, of the prompts that edges are not scored on."""
        wiring, k = Wiring.of(model), len(self.fractions)
        held = 4 * max(TOKENS_AT_ONCE, shard.tokens.numel()) * len(wiring.senders) * model.d_model
        new = sum(not is_for_discovery(prompt.id) for prompt in shard.prompts) / len(shard.prompts)
        passes = (3.0 * k + 3 + (self.metric == "kl")) * new
        return Cost(passes, len(shard.prompts) * (wiring.is_edge.size + 3 * k + 8), held)


def is_for_discovery(prompt_id: str) -> bool:
    """Tell whether edges are scored on a prompt: half of them are, chosen by id alone."""
    return crc32(prompt_id.encode()) % 2 == 0
