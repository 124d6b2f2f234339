"""Which layers can be left out, one after another, and what is left of answers and texts?

Orders: Block Influence (ShortGPT, arXiv 2403.03853; LIM of arXiv 2406.17415 is BI - 1, the same
order), ZD (2406.17415), the loss of the answer or of the text when a layer alone is left out (the
latter is ADEPT's importance, arXiv 2510.10071: zeroing a block's parameters leaves it out), by
place, greedily, and at random. Each half of the prompts makes the orders that the other half is
scored on. Greedy texts stand beside every other score, because choices hide what generation loses
(arXiv 2602.01997).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
import torch

from interp.analyses.layer_removal.orders import Order, choose_orders, sets_of
from interp.analyses.layer_removal.result import LayerRemovalResult
from interp.analyses.layer_removal.scores import SCORES, chance_of, option_tensor, scores_of
from interp.analyses.layer_removal.texts import N_DRAWN, judged
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError, TaskError
from interp.models import Model
from interp.parameters import AtLeast, Between
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Tensors
from interp.sweeps.answers import require_answers
from interp.sweeps.continuations import n_written_to
from interp.sweeps.removal import ends_without
from interp.sweeps.tags import rows_of
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

__all__ = ["LayerRemoval", "LayerRemovalResult"]


@dataclass(frozen=True)
class LayerRemoval(Analysis):
    """Leave out more and more layers, up to `most` of them (a share), in every order.

    Scores are taken at up to `steps` numbers of layers, evenly spaced, and texts of
    `max_new_tokens` (None: none are written) at up to `text_steps` of these. `n_random` orders are
    drawn as the control. `drop` is the loss of accuracy up to which layers count as removable.
    """

    orders: tuple[Order, ...] = (
        "block influence",
        "skip loss",
        "text loss",
        "ZD",
        "last first",
        "first first",
    )
    n_random: Annotated[int, AtLeast(2)] = 5
    most: Annotated[float, Between(0, 1)] = 0.5
    steps: Annotated[int, AtLeast(1)] = 8
    max_new_tokens: Annotated[int | None, AtLeast(1)] = 3
    text_steps: Annotated[int, AtLeast(1)] = 3
    drop: Annotated[float, Between(0, 1)] = 0.1
    seed: int = 0
    rank: ClassVar[int] = 102
    question: ClassVar[str] = (
        "Which layers can be removed, one after another, and what remains of answers and "
        "generated text?"
    )
    how: ClassVar[str] = (
        "More and more layers are left out, in the order of each importance, and the answer, a"
        " choice and a greedy text are scored. Half of the prompts make the orders that the other"
        " half is scored on; random orders are the control."
    )
    caveat: ClassVar[str] = (
        "Nothing is trained again afterwards, which can mend much of what is lost."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.orders or len({*self.orders}) < len(self.orders):
            raise AnalysisError(f"orders={self.orders}; one or more are needed, each of them once")

    def counts(self, n_layers: int) -> list[int]:
        """Return how many layers are left out, at each step."""
        most = max(1, round(self.most * n_layers))
        return _evenly([*range(1, most + 1)], self.steps)

    def text_counts(self, n_layers: int) -> list[int]:
        """Return how many layers are left out where texts are written."""
        return (
            [] if self.max_new_tokens is None else _evenly(self.counts(n_layers), self.text_steps)
        )

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise TaskError, naming prompts, for missing answers, short prompts and unread texts."""
        if model.n_layers < 2:
            raise AnalysisError("the model has 1 layer; at least 2 are needed")
        require_answers(shard)
        if shard.tokens.shape[1] < 2:
            raise TaskError(
                f"prompt {shard.prompts[0].id!r} has 1 token; perplexity needs at least 2"
            )
        if self.max_new_tokens is not None:
            model.refuse_texts(shard.prompts)
            model.refuse_responses(shard, self.max_new_tokens)

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return the orders of both halves, options' tokens, and whether texts hold answers."""
        chosen = choose_orders(
            model,
            task,
            self.orders,
            n_random=self.n_random,
            most=self.counts(model.n_layers)[-1],
            seed=self.seed,
        )
        prompts = [p for shard in model.shards(task) for p in shard]
        chosen["options"] = option_tensor(model, prompts)
        if self.max_new_tokens is None:
            return chosen
        counts = self.text_counts(model.n_layers)
        return chosen | judged(
            model, task, chosen, self.orders, counts, max_new_tokens=self.max_new_tokens
        )

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return `SCORES` [batch order step score], the whole model's [batch score], and orders.

        "removed" [batch order most] are the layers that go first; "texts" [batch order step] tell
        whether the text holds the answer.
        """
        rows = rows_of(prepared["key"], shard.prompts)
        is_first, options = prepared["is_first"][rows], prepared["options"][rows]
        counts, last = self.counts(recording.n_layers), recording.resid(recording.n_layers)
        removed = prepared["removed"][is_first.long()]
        scores = torch.zeros(len(rows), removed.shape[1], len(counts), len(SCORES))
        clean = torch.zeros(len(rows), len(SCORES))
        for half in (False, True):
            prompts = (is_first == half).nonzero()[:, 0]
            if not len(prompts):
                continue
            own, own_options = shard.only(prompts.tolist()), options[prompts].to(last.device)
            whole, sets = last[prompts], sets_of(prepared["removed"][int(half)], counts)
            clean[prompts] = scores_of(recording, whole, own, whole, own_options).cpu()
            each = prompts.to(last.device)
            for gone, end in ends_without(recording, [*sets], each):
                value = scores_of(recording, end, own, whole, own_options).cpu()
                for order, step in sets[gone]:
                    scores[prompts, order, step] = value
        measured = {"scores": scores, "clean": clean, "removed": removed, "is_first": is_first}
        measured["chance"] = chance_of(options)
        measured["n_layers"] = torch.full((len(rows),), recording.n_layers)
        named = {
            name: prepared[name][rows] for name in ("texts", "texts.clean") if name in prepared
        }
        return measured | named

    def combine(self, parts: Sequence[Tensors]) -> LayerRemovalResult:
        """Return scores, over prompts."""
        return LayerRemovalResult(self, joined(parts))

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """At most a pass without these layers for every set; less where sets share a stream.

        With what makes the orders and the texts, which `prepare` does once for all.
        """
        layers, (n, n_pos) = model.n_layers, shard.tokens.shape
        counts, n_orders = self.counts(layers), len(self.orders) + self.n_random
        orders = len({*self.orders} - {"last first"}) + self.n_random  # its sets only end sooner
        forwards = orders * sum(1 - count / layers for count in counts)
        forwards += (layers - 1) / 2  # single layers
        if "greedy" in self.orders:
            forwards += sum(layers - step for step in range(counts[-1]))
        if self.max_new_tokens is not None:
            passes = sum(1 - count / layers for count in self.text_counts(layers))
            passes = 1 + (len(self.orders) + min(self.n_random, N_DRAWN)) * passes
            forwards += passes * n_written_to(n_pos, self.max_new_tokens) / n_pos
        numbers = n * (n_orders * len(counts) * (len(SCORES) + 1) + n_orders * counts[-1] + 9)
        held = 2 * min(64, n_orders * len(counts)) * n * n_pos * model.d_model
        logits = n_orders * len(counts) * n * (n_pos + 1)
        return Cost(forwards, numbers, held, is_bound=True, weight=0.8, logits=logits)

    def coarser(self) -> "LayerRemoval | None":
        """Return the same at half as many steps, without texts; None at two steps."""
        if self.steps <= 2:
            return None
        return replace(self, steps=max(2, self.steps // 2), max_new_tokens=None)


def _evenly(values: Sequence[int], n: int) -> list[int]:
    """Return up to `n` of some values, evenly spaced, with the last; with the first if n > 1."""
    if n == 1:
        return [values[-1]]
    places = np.linspace(0, len(values) - 1, min(n, len(values))).round().astype(int)
    return [values[place] for place in places]
