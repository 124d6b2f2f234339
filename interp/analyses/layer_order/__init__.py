"""Must layers run in this order, or would another one do as well?

Layers are swapped, reversed, shuffled, repeated, looped and run side by side, and the prediction is
compared with the clean one. "The Remarkable Robustness of LLMs" (arXiv 2406.19384) swaps
neighbours; "Transformer Layers as Painters" (2407.09298) repeats, reverses, shuffles, averages and
loops the middle layers; "Training-Free Looped Transformers" (2605.23872) damps loops. A change of
order that hurts as much as leaving the same layers out says nothing about order: skips are the
control. Untrained models, in which order was never learned, are the other one.

Every variant runs the whole prompt without a cache. A layer that runs at another place keeps its
own attention window and rotary base, and the arguments that were recorded for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, get_args

import torch
from torch import Tensor

from interp.analyses.layer_order.result import MEASURES, LayerOrderResult
from interp.analyses.layer_order.texts import paths_of, texts_of_paths
from interp.analyses.layer_order.untrained_twins import JUDGED, twins_changes
from interp.analyses.layer_order.variants import (
    Operation,
    Orders,
    Variant,
    distant_swaps,
    fitting_distances,
    swaps,
    windowed,
    windows_of,
)
from interp.analyses.layer_order.walks import changes_of, distinct
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError, UnsuitedError
from interp.models import Model
from interp.models.untrained import N_TWINS
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.replay.rows import CPU_TOKENS
from interp.result import joined
from interp.shapes import Tensors
from interp.sweeps.answers import require_answers
from interp.sweeps.continuations import n_written_to
from interp.sweeps.layers import COARSEST
from interp.sweeps.outputs import held_at_the_end
from interp.sweeps.windows import first_and_last
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

__all__ = ["LayerOrder", "LayerOrderResult", "Variant"]


@dataclass(frozen=True)
class LayerOrder(Analysis):
    """Run the layers in other orders, by `operations`.

    "swap" exchanges neighbours, "distance" layers at `distances`. The others change windows of
    layers: "reverse", "shuffle" (`shuffles` draws), "repeat" (the middle layer as often as there
    are layers), "parallel_sum" (h + ΣF) and "parallel_mean" (h + ΣF / n), "looped_parallel"
    (`rounds` of the mean), "duplicate" (twice), "loop" (`rounds` times) and "damped_loop" (`rounds`
    steps of h + (F(h) - h) / rounds). `windows` ("2-5") are given, or up to 4 of each of `lengths`
    are spread evenly; by default they have 4 layers. The first and the last layer are left out
    where the others are long enough. `every` takes only every so many places. With
    `max_new_tokens`, greedy texts are written along every path too, and it is said whether they
    hold the answer. `control` "untrained" swaps neighbours in three untrained twins too.
    """

    operations: tuple[Operation, ...] = get_args(Operation)
    lengths: tuple[Annotated[int, AtLeast(1)], ...] = ()
    windows: tuple[str, ...] = ()
    distances: tuple[Annotated[int, AtLeast(2)], ...] = ()
    shuffles: Annotated[int, AtLeast(1)] = 1
    rounds: Annotated[int, AtLeast(1)] = 3
    every: Annotated[int, AtLeast(1)] = 1
    max_new_tokens: Annotated[int | None, AtLeast(1)] = None
    control: Literal["untrained", "none"] = "untrained"
    seed: int = 0
    rank: ClassVar[int] = 101
    question: ClassVar[str] = "Must layers run in this order, or would another one do as well?"
    how: ClassVar[str] = (
        "Layers are swapped, reversed, shuffled, repeated, looped or run side by side, and the"
        " prediction is compared with the clean one; the same layers are also left out, and"
        " neighbours are swapped in untrained models."
    )
    caveat: ClassVar[str] = (
        "Nothing is trained to get used to a new order; by default only the next token is judged,"
        " without a cache."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.operations:
            raise AnalysisError(f"no operations given; there is {', '.join(get_args(Operation))}")
        if self.windows and self.lengths:
            raise AnalysisError("windows and lengths given; one of them says what the windows are")
        _ = self._given

    @property
    def _given(self) -> list[tuple[int, ...]]:
        ends = [first_and_last(text) for text in dict.fromkeys(self.windows)]
        return [tuple(range(first, last + 1)) for first, last in ends]

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise AnalysisError for layers that are not there and windows longer than the model.

        TaskError, naming prompts, where texts cannot be written or compared with answers.
        """
        n_layers = model.n_layers
        if n_layers < 2:
            raise UnsuitedError("the model has 1 layer; an order needs at least 2")
        for window in self._given:
            if window[-1] >= n_layers:
                raise AnalysisError(
                    f"window '{window[0]}-{window[-1]}' given; the model's last layer is"
                    f" {n_layers - 1}"
                )
        if self.lengths and max(self.lengths) > n_layers:
            raise AnalysisError(
                f"windows of {max(self.lengths)} layers given; the model has {n_layers}"
            )
        if self.distances and max(self.distances) >= n_layers:
            raise AnalysisError(
                f"a distance of {max(self.distances)} layers given; the model has {n_layers}"
            )
        if self.max_new_tokens is not None:
            require_answers(shard)
            model.refuse_texts(shard.prompts)
            model.refuse_responses(shard, self.max_new_tokens)

    def orders(self, n_layers: int) -> Orders:
        """Return what is run in a model of so many layers."""
        every = self.every
        distances = self.distances or fitting_distances(n_layers)
        windows = self._given or windows_of(n_layers, self.lengths, every=every)
        return Orders(
            swaps(n_layers, every=every) if "swap" in self.operations else [],
            distant_swaps(n_layers, distances, every=every)
            if "distance" in self.operations
            else [],
            windowed(
                windows,
                self.operations,
                shuffles=self.shuffles,
                rounds=self.rounds,
                seed=self.seed,
            ),
        )

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return "twins" [twin operation measure]: swaps and skips in untrained twins."""
        if self.control == "none" or "swap" not in self.operations:
            return {}
        pairs = self.orders(model.n_layers).inner_pairs(model.n_layers)
        return twins_changes(model, task, pairs, seed=self.seed)

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return "changes" [batch variant measure] and "clean" [batch 2]; "twins" for every prompt.

        NaN stands for what needs an answer where there is none. "texts" [batch path+1], if written,
        are 1 where they hold the answer: the clean text, then those along variants that are paths.
        """
        variants, n = self.orders(recording.n_layers).variants, len(shard.prompts)
        changes, clean = changes_of(recording, variants, shard.answer)
        tensors = {
            "changes": changes.cpu(),
            "clean": clean.cpu(),
            "n_layers": torch.full((n,), recording.n_layers),
        }
        if self.max_new_tokens is not None:
            how = {"max_new_tokens": self.max_new_tokens}
            tensors["texts"] = texts_of_paths(recording, shard, variants, **how)
        twins: Tensor | None = prepared.get("twins")
        if twins is not None:
            tensors["twins"] = twins.expand(n, -1, -1, -1).contiguous()
        return tensors

    def combine(self, parts: Sequence[Tensors]) -> LayerOrderResult:
        """Return the changes of all prompts."""
        return LayerOrderResult(self, joined(parts))

    def coarser(self) -> "LayerOrder | None":
        """Return the same at every second of these places, down to every eighth."""
        return replace(self, every=2 * self.every) if self.every < COARSEST else None

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return the blocks that every variant runs from where it leaves the clean pass on."""
        (n, n_pos), n_layers = shard.tokens.shape, model.n_layers
        orders = self.orders(n_layers)
        run = distinct(orders.variants, n_layers)
        forwards = sum(variant.n_blocks(n_layers) for variant in run) / n_layers
        at_once = min(len(run), max(1, CPU_TOKENS // (n * n_pos)))
        held = (3 * at_once + 2) * n * n_pos * model.d_model + len(run) * n * model.d_model
        held += held_at_the_end(len(run), n, model.d_vocab)
        once = 0.0
        if self.control == "untrained" and "swap" in self.operations:
            blocks = sum(each.n_blocks(n_layers) for each in orders.inner_pairs(n_layers))
            once = float(N_TWINS * JUDGED * n_pos * (1 + blocks / n_layers))
        numbers = n * (len(orders.variants) * (len(MEASURES) + 1) + 4)
        is_bound, logits = self.max_new_tokens is not None, n * (len(run) + 1)
        if self.max_new_tokens is not None:  # texts may end sooner
            paths = paths_of(orders.variants, n_layers)
            passes = 1 + sum(map(len, paths)) / n_layers
            forwards += passes * n_written_to(n_pos, self.max_new_tokens) / n_pos
            logits += n * (len(paths) + 1) * self.max_new_tokens
        return Cost(forwards, numbers, held, logits=logits, once=once, is_bound=is_bound)
