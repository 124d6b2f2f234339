"""What does each component write to the answer's logit?

Direct logit attribution: the last stream is the sum of all that was written into it, and with the
scale of the final norm frozen, so are logits ("A Mathematical Framework for Transformer Circuits",
2021). The embedding, each head, attention's biases, each MLP and the biases of norm and unembedding
add up to the difference of the answer's and the wrong answer's logit (without one: to the answer's
less the mean logit), before any soft-cap. What a part does through later layers, and by
changing the norm, is not in it: beside the largest stands what is lost without them, exactly.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from interp.analyses.logit_attribution.parts import Parts, directions_of, neuron_reader_of
from interp.analyses.logit_attribution.result import LogitAttributionResult
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError
from interp.models import Model
from interp.models.quantised import Asked
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sites import Site
from interp.sweeps.answers import require_answers
from interp.sweeps.heads import z_reader_of
from interp.sweeps.tags import keys_of
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

_SEEN = 32  # prompts on which the components to be ablated are chosen
_NEURON = re.compile(r"m(\d+)\.n(\d+)")


@dataclass(frozen=True)
class LogitAttribution(Analysis):
    """Share the answer's logit among the components, at the prompt's last position.

    The `ablated` components that write most, in the mean of the first 32 prompts, are set to zero
    there, one at a time. Of `neurons`, such as "m5.n12", each one's part of its MLP is told too.
    """

    ablated: Annotated[int, AtLeast(0)] = 10
    neurons: tuple[str, ...] = ()
    seed: int = 0
    rank: ClassVar[int] = 8
    asks_of_weights: ClassVar[Asked | None] = "gradients"
    page: ClassVar[str] = "analysis"
    question: ClassVar[str] = "What does each component write to the answer's logit?"
    how: ClassVar[str] = (
        "With the final norm's scale frozen, what the embedding, heads and MLPs write into the last"
        " stream adds up to the logit difference. The largest are also ablated, exactly."
    )
    caveat: ClassVar[str] = (
        "What a component does through later layers, and by changing the norm, is not in its"
        " share; early components work through others."
    )

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise without answers, and where what single heads write cannot be told apart."""
        require_answers(shard)
        z_reader_of(model.blocks[0])
        for layer, neuron in self.places:
            if layer >= model.n_layers:
                last = model.n_layers - 1
                raise AnalysisError(f"MLP {layer} asked for; the last layer is {last}")
            model.refuse(Site("mlp_post", layer))
            weight = neuron_reader_of(model.blocks[layer]).get_parameter("weight")
            if neuron >= (n := weight.numel() // model.d_model):
                raise AnalysisError(f"neuron {neuron} asked for; MLP {layer} has {n}")

    @property
    def places(self) -> list[tuple[int, int]]:
        """Return layer and number of each of the `neurons`."""
        read = {name: _NEURON.fullmatch(name) for name in self.neurons}
        if strange := [name for name, place in read.items() if place is None]:
            raise AnalysisError(f"neuron {strange[0]!r} asked for; names are like m5.n12")
        return [(int(place[1]), int(place[2])) for place in read.values() if place]

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return each prompt's direction after the final norm, and which components are ablated.

        Components are numbered: the heads, layer by layer, and after them the MLPs.
        """
        shards = [model.tokenize(shard) for shard in model.shards(task)]
        directions = [directions_of(model, shard) for shard in shards]
        prepared = {
            "keys": torch.cat([keys_of(shard.prompts) for shard in shards]),
            "directions": torch.cat([direction for direction, _ in directions]),
            "offsets": torch.cat([offset for _, offset in directions]),
            "ablated": torch.zeros(0, dtype=torch.long),
        }
        seen, written = 0, list[Tensor]()
        for shard in shards if self.ablated else ():
            parts = Parts(model.record(shard), shard, prepared).measure()
            written.append(torch.cat([parts["heads"].flatten(1), parts["mlps"]], dim=1))
            if (seen := seen + len(shard.prompts)) >= _SEEN:
                break
        if written:
            size = torch.cat(written).mean(0).abs()
            prepared["ablated"] = size.topk(min(self.ablated, len(size))).indices
        return prepared

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return what parts write [batch ...], and what is lost without some [batch ablated].

        "whole" is the logit difference before a soft-cap, "rest" what no part accounts for.
        """
        parts = Parts(recording, shard, prepared)
        lost = [parts.lost_without(int(number)) for number in prepared["ablated"]]
        n = len(shard.prompts)
        exact = torch.stack(lost, dim=1) if lost else torch.zeros(n, 0)
        numbers = prepared["ablated"].expand(n, -1)
        has_wrong = torch.full((n,), shard.wrong is not None)
        more = {"exact": exact.cpu(), "ablated": numbers.clone(), "has_wrong": has_wrong}
        of_neurons = {"neurons": parts.neurons(self.places)} if self.neurons else {}
        return parts.measure() | more | of_neurons

    def combine(self, parts: Sequence[Tensors]) -> LogitAttributionResult:
        """Return what parts write, of all prompts."""
        return LogitAttributionResult.of(self, parts)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return every block once for its heads, and half of the last token's for each ablation."""
        (n, n_pos), n_layers = shard.tokens.shape, model.n_layers
        each = 1 / n_layers + 0.5 / n_pos
        of_neurons = len({layer for layer, _ in self.places}) / n_layers
        once = float(min(_SEEN, n) * n_pos) if self.ablated else 0.0
        numbers = n * (n_layers * (model.n_heads + 2) + 4 + 2 * self.ablated + len(self.neurons))
        logits = n * (self.ablated + 1)
        forwards = 1.0 + of_neurons + self.ablated * each
        return Cost(forwards, numbers, 4 * n * n_pos * model.d_model, logits=logits, once=once)
