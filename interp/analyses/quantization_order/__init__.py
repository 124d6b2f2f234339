"""Which layers can lose bits, and does a score know better than "the last layers first"?

"Layer-Wise Quantization" (arXiv 2406.17415): layers are ranked by LIM, -E cos of what they read and
return, or by ZD, their share of large weights, and the least important ones get fewer bits. Here
the weights of chosen layers are rounded to nearest per group, in simulation; embeddings, norms,
biases and the unembedding are not. Orders that need data are chosen on one half of the prompts and
measured on the other. The paper's control is a random order; the last layers first is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from interp.analyses.quantization_order.orders import (
    ScoreName,
    half_means,
    names_of,
    orders_by,
    plain_orders,
    scores,
)
from interp.analyses.quantization_order.result import QuantizationOrderResult
from interp.analyses.quantization_order.streams import (
    Lowered,
    Streams,
    block_runs,
    ends_of,
    outcomes_of,
)
from interp.analyses.quantization_order.twins import average_bits, gaps
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError, UnsuitedError
from interp.models import Model
from interp.models.quantised import Asked
from interp.models.quantizer import (
    Rounding,
    Scheme,
    matrices_of,
    n_weights,
    refuse_others,
)
from interp.models.untrained import N_TWINS, twins_of
from interp.parameters import AtLeast, Between
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Tensors
from interp.sweeps.halves import in_first_half
from interp.sweeps.mixers import require_replaceable
from interp.sweeps.outputs import held_at_the_end
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

JUDGED = 4  # prompts on which untrained twins are judged
__all__ = ["QuantizationOrder", "QuantizationOrderResult"]


@dataclass(frozen=True)
class QuantizationOrder(Analysis):
    """Lower layers to `bits` one at a time, and one after the other in several orders.

    `group` neighbouring weights share a scale; `scheme` is how they are rounded. Findings are about
    the first of `orders`; the last layers first, the first layers first and five random orders are
    always measured beside them. `points` sizes are measured between no layer and all. `control`
    "untrained" does the same in three untrained twins, on 4 prompts.
    """

    bits: Annotated[int, Between(1, 16)] = 2
    group: Annotated[int, AtLeast(1)] = 32
    scheme: Scheme = "asymmetric"
    orders: tuple[ScoreName, ...] = (
        "LIM",
        "ZD",
        "ZD, both tails",
        "block influence",
        "skip loss",
        "own loss",
    )
    points: Annotated[int, AtLeast(1)] = 6
    control: Literal["untrained", "none"] = "untrained"
    seed: int = 0
    rank: ClassVar[int] = 104
    asks_of_weights: ClassVar[Asked | None] = "other weights for a while"
    question: ClassVar[str] = (
        "Which layers tolerate fewer bits, and does a score beat quantising the last layers first?"
    )
    how: ClassVar[str] = (
        "Weights of layers are rounded to few bits per group: of each layer alone, then of more and"
        " more layers in the order of LIM, ZD, what skipping costs and others. Orders are chosen on"
        " one half of the prompts and measured on the other, beside last first and random."
    )
    caveat: ClassVar[str] = (
        "Rounding to nearest alone: methods that repair their errors lose less, and nothing is said"
        " of speed."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.orders or len({*self.orders}) < len(self.orders):
            raise AnalysisError(f"orders {self.orders} given; one or more different ones needed")
        if self.bits == 1 and self.scheme == "symmetric":
            raise AnalysisError("1 bit given; symmetric rounding needs at least 2")

    @property
    def rounding(self) -> Rounding:
        """Return how weights are rounded."""
        return Rounding(self.bits, self.group, self.scheme)

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise UnsuitedError where a block has other weights, or ones that cannot be replaced."""
        if model.n_layers < 2:
            raise UnsuitedError("the model has 1 layer; an order needs at least 2")
        for block in model.blocks:
            refuse_others(block)
            require_replaceable(model, {name: weight for name, weight, _ in matrices_of(block)})

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return every half's orders [half order layer], chosen on the other, and groups' halves.

        Also the bits of every layer's matrices if quantised, and how many weights they have.
        """
        batches = [model.tokenize(shard) for shard in model.shards(task)]
        scored = [scores(model.record(batch), self.rounding, self.orders) for batch in batches]
        values = {name: torch.cat([each[name] for each in scored]) for name in scored[0]}
        groups = torch.cat([batch.groups for batch in batches]).cpu()
        half = torch.from_numpy(in_first_half(batches, seed=self.seed))
        orders = [
            orders_by(half_means(values, other), model.blocks, self.orders, seed=self.seed)
            for other in (half, ~half)
        ]
        judged = batches[0].only(range(min(JUDGED, len(batches[0].prompts))))
        names, first = np.unique(groups.numpy(), return_index=True)
        return {
            "orders": torch.stack(orders),
            "groups": torch.from_numpy(names),
            "half": half[first].long(),  # of the order to use: `half` itself uses the second
            "bits": torch.tensor([self.rounding.bits_of(block) for block in model.blocks]).double(),
            "weights": torch.tensor([n_weights(block) for block in model.blocks]).double(),
            **self._twins(model, judged),
        }

    def _twins(self, model: Model, judged: TokenBatch) -> Tensors:
        """Return what the first order costs beside its rivals in untrained twins [twin rival]."""
        how: dict[str, Any] = {"rounding": self.rounding, "sizes": self._sizes(model.n_layers)}
        each = [
            gaps(twin, judged, self.orders[0], seed=self.seed, **how)
            for twin in (twins_of(model, seed=self.seed) if self.control == "untrained" else ())
        ]
        return {"twins": torch.stack(each)} if len(each) > 1 else {}

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return outcomes of each layer alone [batch layer], and of curves [batch order point].

        Outcomes are those of the last position: KL(clean ‖ quantised) and, where all prompts have
        an answer, its first token's log-probability and accuracy. "bits" are the average over all
        blocks' weights, "order" [batch order layer] the orders used.
        """
        n, n_layers = len(shard.prompts), recording.n_layers
        half = prepared["half"][torch.searchsorted(prepared["groups"], shard.groups.cpu())]
        rows = [(half == i).nonzero()[:, 0] for i in (0, 1)]
        streams, sets = [], []
        for orders, chosen in zip(prepared["orders"], rows, strict=True):
            if not len(chosen):
                continue
            sets.append(self._sets(orders, n_layers))
            device = shard.tokens.device
            own = recording if len(chosen) == n else recording.of(shard.tokens[chosen.to(device)])
            streams.append(Streams(own, sets[-1]))
        kept = [chosen for chosen in rows if len(chosen)]
        found: Tensors = {}
        for each, chosen, ends in zip(streams, kept, ends_of(streams, self.rounding), strict=True):
            answer = None if shard.answer is None else shard.answer[chosen.to(shard.answer.device)]
            for name, values in outcomes_of(each.recording, ends[:, :, 0], answer).items():
                whole = found.setdefault(name, torch.empty(n, values.shape[0]))
                whole[chosen] = values.T.float().cpu()
        orders = prepared["orders"][half]
        of_layers = prepared["bits"], prepared["weights"]
        bits = average_bits(orders, *of_layers, self._sizes(n_layers))
        twins = (
            {"twins": prepared["twins"].expand(n, -1, -1).clone()} if "twins" in prepared else {}
        )
        return self._by_kind(found, n_layers) | {"order": orders, "bits": bits} | twins

    def _sizes(self, n_layers: int) -> list[int]:
        """Return how many layers are quantised at each point of a curve."""
        return [int(n) for n in np.unique(np.linspace(0, n_layers, self.points + 2).round())]

    def _sets(self, orders: Tensor, n_layers: int) -> list[Lowered]:
        """Return the sets that are measured: each layer alone, then the curves' points."""
        alone = [frozenset({layer}) for layer in range(n_layers)]
        sizes = self._sizes(n_layers)
        return alone + [frozenset(order[:size]) for order in orders.tolist() for size in sizes]

    def _by_kind(self, found: Tensors, n_layers: int) -> Tensors:
        shape = (len(names_of(self.orders)), len(self._sizes(n_layers)))
        parts = {f"alone.{name}": values[:, :n_layers] for name, values in found.items()}
        parts |= {
            f"curve.{name}": values[:, n_layers:].reshape(-1, *shape)
            for name, values in found.items()
        }
        return {name: values.contiguous() for name, values in parts.items()}

    def combine(self, parts: Sequence[Tensors]) -> QuantizationOrderResult:
        """Return curves, areas and single layers of all prompts."""
        known = set.intersection(*map(set, parts))  # some prompts may lack an answer
        whole = joined([{key: part[key] for key in part if key in known} for part in parts])
        return QuantizationOrderResult(self, whole, self._sizes(whole["order"].shape[-1]))

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return at most what `measure` and, of this shard, `prepare` run.

        Orders that are not known yet may begin with layer 0; what `measure` runs besides is exact.
        """
        n, n_layers, sizes = len(shard.prompts), model.n_layers, self._sizes(model.n_layers)
        orders = [None] * len(self.orders), plain_orders(n_layers, seed=self.seed)
        sets: list[Lowered | None] = [frozenset({layer}) for layer in range(n_layers)]
        sets += [frozenset(o.tolist()[:size]) for o in orders[1] for size in sizes]
        sets += [None for _ in orders[0] for size in sizes if 0 < size < n_layers]
        forwards = block_runs(sets, n_layers) / n_layers + 1  # and a clean pass of each half
        forwards += (n_layers - 1) / 2 if "skip loss" in self.orders else 0
        forwards += (n_layers + 1) / 2 if "own loss" in self.orders else 0
        n_variants = n_layers + len(names_of(self.orders)) * len(sizes)
        numbers = n * (3 * n_variants + len(names_of(self.orders)) * n_layers)
        streams = 3 * n_variants * shard.tokens.numel() * model.d_model
        streams += held_at_the_end(n_variants, n, model.d_vocab) + 3 * n_weights(model.blocks[0])
        logits = n * (n_variants + 2 * n_layers)
        twin = block_runs([*sets[n_layers:], *sets[-len(sizes) :]], n_layers) / n_layers
        once = min(JUDGED, n) * shard.tokens.shape[1] * twin * N_TWINS
        once = once if self.control == "untrained" else 0.0
        how: dict[str, Any] = {"is_bound": True, "weight": 0.8, "once": once}
        return Cost(forwards, numbers, streams, logits=logits, **how)
