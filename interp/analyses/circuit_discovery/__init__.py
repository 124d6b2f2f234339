"""Which edges between components carry a behaviour, and how much of it do they carry alone?

Edges are scored by the change in what the sender writes times the receiver's coefficient (edge
attribution patching, Syed et al., arXiv 2310.10348; under relevance rules, RelP, arXiv 2508.21258).
Circuits of the best edges are then run: every other edge carries what it would in the corrupted
run, or a mean. Faithfulness and its two areas follow MIB (arXiv 2504.13151):

    f(C) = (m(C) - m(no edge)) / (m(all edges) - m(no edge)),   CPR = area under f,   CMD = area under |1 - f|
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal
from zlib import crc32

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from numpy.typing import NDArray
from torch import Tensor

from interp.analyses.circuit_discovery.circuits import (
    Circuit,
    Wiring,
    circuit_values,
    edge_scores,
    plain_run,
    random_circuits,
)
from interp.analysis import Analysis, Cost, Finding, Result
from interp.backward import GRADIENT, RULES, Rules
from interp.errors import AnalysisError, TaskError, unknown
from interp.figures.plots import curves
from interp.metrics import Metric
from interp.models import Model
from interp.replay import Recording
from interp.result import old_finding
from interp.shapes import Tensors
from interp.stats.bootstrap import bootstrap_interval, interval_of, resampled_means
from interp.sweeps.tags import key_of
from interp.sweeps.twins import check_twins, twins_of
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

Ranking = Literal["absolute", "signed"]
Ablation = Literal["corrupted", "mean"]
KINDS = ("circuit", "random", "complement")


@dataclass(frozen=True)
class CircuitDiscovery(Analysis):
    """Score edges on half of the prompts, run circuits of the best ones on the other half.

    `method` "relevance" (with the named `rules`) or "attribution"; `ranking` of edges by "absolute"
    or "signed" score; `ablation` of all other edges: the "corrupted" run's, or their "mean" over
    the corrupted runs and positions (which also takes away where a token stands). `fractions` of
    all edges are tried; beside every circuit, as many random edges, and all edges but the
    circuit's.
    """

    method: Literal["relevance", "attribution"] = "relevance"
    rules: str = "relp"
    metric: Metric = "logit_diff"
    ranking: Ranking = "absolute"
    ablation: Ablation = "corrupted"
    fractions: tuple[float, ...] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    seed: int = 0
    question: ClassVar[str] = (
        "Which edges between components carry the behaviour, and how much of it alone?"
    )
    how: ClassVar[str] = (
        "Edges between heads, MLPs, embedding and output are scored on half of the prompts, by one"
        " forward and backward pass. Circuits of the best edges are run on the other half, all"
        " other edges carrying what they do on the corrupted prompt (or a mean)."
    )
    caveat: ClassVar[str] = (
        "Edges count only against this ablation of all others; another corrupted twin may need"
        " other edges."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rules not in RULES:
            raise AnalysisError(unknown("set of rules", self.rules, RULES))
        rising = all(
            low < high for low, high in zip(self.fractions, self.fractions[1:], strict=False)
        )
        if (
            len(self.fractions) < 2
            or not rising
            or not (self.fractions[0] > 0 and self.fractions[-1] <= 1)
        ):
            raise AnalysisError(
                f"fractions={self.fractions}; at least two, rising, above 0 and up to 1, are needed"
            )

    @property
    def _rules(self) -> Rules:
        return RULES[self.rules] if self.method == "relevance" else GRADIENT

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise TaskError for pairs that cannot be compared, SiteError where edges or rules are out
        of reach.
        """
        check_twins(model, shard, metric=self.metric)
        model.refuse_edges()
        model.refuse_rules(self._rules)

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return the edges' scores [prompt receiver sender] and the senders' mean writes on one
        half of the prompts.
        """
        found = [prompt for prompt in task.prompts if is_for_discovery(prompt.id)]
        if not found or len(found) == len(task.prompts):
            raise TaskError(
                "circuits are found on half of the prompts and tried on the other;"
                f" {len(task.prompts)} are too few"
            )
        wiring = wiring_of(model)
        writes = torch.zeros(wiring.is_edge.shape[1], model.d_model, device=model.device)
        scores, keys, n_texts = [], [], 0
        for prompts in model.shards(task.of(found)):
            shard = model.tokenize(prompts)
            recording = model.record(shard)
            for twins in twins_of(recording, shard, metric=self.metric, direction="denoise"):
                scores.append(edge_scores(recording, twins, wiring, rules=self._rules).cpu())
                keys += [key_of(prompts[row].id) for row in twins.clean.rows.tolist()]
                if self.ablation == "mean":
                    away = plain_run(recording, twins.corrupted, wiring).writes.float()
                    writes, n_texts = (
                        writes + away.sum((0, 1)),
                        n_texts + away.shape[0] * away.shape[1],
                    )
        prepared: Tensors = {
            "scores": torch.cat(scores),
            "key": torch.tensor(keys),
            "wiring": _described(wiring),
        }
        return prepared | ({"writes": writes / n_texts} if self.ablation == "mean" else {})

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return per prompt edge scores [batch receiver sender] and the metric of all circuits
        [batch fraction].

        Prompts on which edges were scored have their scores, the others the metric; the rest is 0.
        """
        wiring = _wiring(prepared["wiring"])
        circuits = self.circuits(Circuit.whole(wiring, prepared["scores"].double().mean(0).numpy()))
        sizes = [circuit.n_edges for circuit in circuits]
        tried = [
            *(circuit.kept for circuit in circuits), *random_circuits(wiring, sizes, seed=self.seed),
            *(wiring.is_edge & ~circuit.kept for circuit in circuits), wiring.is_edge, np.zeros_like(wiring.is_edge),
        ]  # fmt: skip
        n, k = len(shard.prompts), len(self.fractions)
        is_new = torch.tensor([not is_for_discovery(prompt.id) for prompt in shard.prompts])
        scores, values = torch.zeros(n, *wiring.is_edge.shape), torch.zeros(n, len(tried))
        scored = {key: row for row, key in enumerate(prepared["key"].tolist())}
        for row in (~is_new).nonzero()[:, 0].tolist():
            scores[row] = prepared["scores"][scored[key_of(shard.prompts[row].id)]]
        for whole in twins_of(recording, shard, metric=self.metric, direction="denoise"):
            twins = whole.only(is_new[whole.clean.rows.cpu()].nonzero()[:, 0])
            rows = twins.clean.rows.cpu()
            if not len(rows):
                continue
            away = plain_run(recording, twins.corrupted, wiring)
            if self.metric == "kl":
                twins = twins.with_reference(recording.forward(twins.clean.tokens).logits)
            found = circuit_values(
                recording, twins, wiring, tried, away=away, instead=prepared.get("writes")
            )
            values[rows] = found.T.cpu()
        parts = {kind: values[:, i * k : (i + 1) * k] for i, kind in enumerate(KINDS)}
        wirings = _described(wiring).expand(n, -1)
        ends = {
            "all": values[:, -2],
            "none": values[:, -1],
            "is_new": is_new.int(),
            "wiring": wirings,
        }
        return {
            key: value.contiguous() for key, value in (parts | ends | {"scores": scores}).items()
        }

    def circuits(self, whole: Circuit) -> list[Circuit]:
        """Return the circuit of each fraction of all edges."""
        return [
            whole.top(max(1, round(share * whole.n_edges)), by=self.ranking)
            for share in self.fractions
        ]

    def combine(self, parts: Sequence[Tensors]) -> "CircuitDiscoveryResult":
        """Return the scored edges and what circuits of them do on prompts that were not used to
        find them.
        """
        joined = {
            key: np.concatenate([part[key].double().numpy() for part in parts]) for key in parts[0]
        }
        is_new = joined.pop("is_new") > 0
        wiring = _wiring(torch.from_numpy(joined.pop("wiring")[0]))
        whole = Circuit.whole(wiring, joined.pop("scores")[~is_new].mean(0))
        return CircuitDiscoveryResult(
            self, whole, {key: value[is_new] for key, value in joined.items()}
        )

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return a pass for every circuit, of the prompts that edges are not scored on."""
        wiring, k = wiring_of(model), len(self.fractions)
        n_senders = len(wiring.senders)
        held = 4 * max(4096, shard.tokens.numel()) * n_senders * model.d_model
        new = sum(not is_for_discovery(prompt.id) for prompt in shard.prompts) / len(shard.prompts)
        passes = (3.0 * k + 3 + (self.metric == "kl")) * new
        return Cost(passes, len(shard.prompts) * (wiring.is_edge.size + 3 * k + 8), held)


def is_for_discovery(prompt_id: str) -> bool:
    """Tell whether a prompt is one of those that edges are scored on: half of them, by its name
    alone.
    """
    return crc32(prompt_id.encode()) % 2 == 0


def wiring_of(model: Model) -> Wiring:
    """Return all edges of a model."""
    return Wiring(model.n_layers, model.n_heads, model.n_kv_heads, model.is_parallel)


def _described(wiring: Wiring) -> Tensor:
    return torch.tensor(
        [wiring.n_layers, wiring.n_heads, wiring.n_kv_heads, int(wiring.is_parallel)]
    )


def _wiring(numbers: Tensor) -> Wiring:
    n_layers, n_heads, n_kv_heads, is_parallel = map(int, numbers.tolist())
    return Wiring(n_layers, n_heads, n_kv_heads, bool(is_parallel))


def _first_good(faithfulness: NDArray[np.float64], *, least: float = 0.9) -> NDArray[np.int64]:
    """Return which fraction is the first that is so faithful, from [... fraction]; their number if
    none is.
    """
    good = faithfulness >= least
    at: NDArray[np.int64] = np.where(good.any(-1), good.argmax(-1), good.shape[-1])
    return at


@dataclass(frozen=True, repr=False)
class CircuitDiscoveryResult(Result):
    """All edges with their scores, and the metric of circuits on new prompts [prompt fraction]."""

    analysis: CircuitDiscovery
    whole: Circuit
    values: dict[str, NDArray[np.float64]]

    @property
    def circuits(self) -> list[Circuit]:
        """Return the circuit of each fraction."""
        return self.analysis.circuits(self.whole)

    def faithfulness(self, kind: str) -> NDArray[np.float64]:
        """Return f of each fraction for "circuit", "random" or "complement": a ratio of means over
        prompts.
        """
        gained = self.values[kind] - self.values["none"][:, None]
        ratio: NDArray[np.float64] = gained.mean(0) / self._gap.mean()
        return ratio

    def _percent(self, kind: str, at: int) -> str:
        return f"{round(float(self.faithfulness(kind)[at]), 2) + 0.0:.0%}"

    @property
    def _gap(self) -> NDArray[np.float64]:
        gap: NDArray[np.float64] = self.values["all"] - self.values["none"]
        return gap

    @property
    def cpr(self) -> float:
        """Return the area under f over the fractions of edges."""
        return float(np.trapezoid(self.faithfulness("circuit"), self.analysis.fractions))

    @property
    def cmd(self) -> float:
        """Return the area under |1 - f| over the fractions of edges; 0 is best."""
        return float(
            np.trapezoid(np.abs(1 - self.faithfulness("circuit")), self.analysis.fractions)
        )

    def smallest(self, faithfulness: float = 0.9) -> Circuit | None:
        """Return the smallest tried circuit that is at least so faithful."""
        at = int(_first_good(self.faithfulness("circuit"), least=faithfulness))
        return self.circuits[at] if at < len(self.circuits) else None

    def findings(self) -> tuple[Finding, ...]:
        """Return the share of edges of the smallest circuit that keeps 90 %."""
        gained = self.values["circuit"] - self.values["none"][:, None]
        resampled = resampled_means(np.column_stack([gained, self._gap]), seed=self.analysis.seed)
        shares = np.array(
            [circuit.n_edges / self.whole.n_edges for circuit in self.circuits] + [np.inf]
        )
        interval = interval_of(shares[_first_good(resampled[:, :-1] / resampled[:, -1:])])
        measure = f"share of all edges that keeps 90 % of {self.analysis.metric}"
        share = float(shares[_first_good(self.faithfulness("circuit"))])
        return (old_finding(self.summary(), share, measure, *interval, len(self._gap)),)

    def to_frame(self) -> pd.DataFrame:
        """Return faithfulness by kind and fraction, then the scores of the 200 largest edges.

        Columns measure ("faithfulness", "edge score"), kind, fraction, n_edges, sender, receiver,
        mean, low, high and n_prompts.
        """
        frames, gap = [], self._gap
        for kind in KINDS:
            ratios = (self.values[kind] - self.values["none"][:, None]) / np.where(
                gap == 0, np.nan, gap
            )[:, None]
            low, high = bootstrap_interval(
                np.nan_to_num(ratios), weights=gap, seed=self.analysis.seed
            )
            n_edges = [circuit.n_edges for circuit in self.circuits]
            if kind == "complement":
                n_edges = [self.whole.n_edges - n for n in n_edges]
            numbers = {
                "mean": self.faithfulness(kind),
                "low": low,
                "high": high,
                "n_prompts": len(gap),
            }
            keys = {
                "measure": "faithfulness",
                "kind": kind,
                "fraction": self.analysis.fractions,
                "n_edges": n_edges,
            }
            frames.append(pd.DataFrame(keys | numbers))
        edges = pd.DataFrame(self.whole.edges[:200], columns=["sender", "receiver", "mean"])
        frames.append(edges.assign(measure="edge score"))
        columns = [
            "measure",
            "kind",
            "fraction",
            "n_edges",
            "sender",
            "receiver",
            "mean",
            "low",
            "high",
            "n_prompts",
        ]
        return (
            pd.concat(frames, ignore_index=True)
            .reindex(columns=columns)
            .astype({"n_edges": "Int64", "n_prompts": "Int64"})
        )

    def plot(self) -> go.Figure:
        """Draw faithfulness against the share of edges kept."""
        whole = self.to_frame()
        frame = whole.loc[whole["measure"] == "faithfulness"]
        names = {
            "circuit": "the best edges",
            "random": "as many random edges",
            "complement": "all but the best edges",
        }
        title = (
            f"How much of {self.analysis.metric} circuits keep (other edges:"
            f" {self.analysis.ablation})"
        )
        return curves(
            frame.replace({"kind": names}), x="fraction", groups="kind", title=title,
            x_label="share of all edges in the circuit (log scale)", y_label="faithfulness (1: whole model)", is_log=True,
        )  # fmt: skip

    def summary(self) -> str:
        """Say how small a circuit keeps the behaviour, against random edges, and what is in it."""
        f, smallest = self.faithfulness("circuit"), self.smallest()
        total, n = self.whole.n_edges, len(self._gap)
        told = (
            f"No circuit tried keeps 90 % of {self.analysis.metric}; the best keeps {f.max():.0%}."
        )
        if smallest is not None:
            at = next(
                i for i, circuit in enumerate(self.circuits) if circuit.n_edges == smallest.n_edges
            )
            heads = [node for node in smallest.nodes if node[0] == "a"]
            told = (
                f"{smallest.n_edges} of {total} edges ({smallest.n_edges / total:.1%}) keep"
                f" {f[at]:.0%} of {self.analysis.metric} on {n} prompts that were not used to find"
                f" them; as many random edges keep {self._percent('random', at)}, all others"
                f" {self._percent('complement', at)}. {len(heads)} heads take part:"
                f" {', '.join(heads[:12])}{' …' if len(heads) > 12 else ''}."
            )
        first = ", ".join(
            f"{sender} → {receiver} ({score:+.2f})"
            for sender, receiver, score in self.whole.edges[:5]
        )
        return (
            f"{told} CPR {self.cpr:.2f}, CMD {self.cmd:.2f}. The largest edges by"
            f" {self.analysis.method}: {first}. Heads are aLAYER.hHEAD, MLPs mLAYER, receivers q,"
            " k, v of a head."
        )
