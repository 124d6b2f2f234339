"""Could layers share their weights in a loop, with a low-rank term for each?

"Relaxed Recursive Transformers" (arXiv 2410.20672): K shared layers are run L / K times, and layer
l differs from its shared one by a term of low rank, from the truncated SVD of W_l - W'. The paper
then trains; here nothing is trained. Its missing control is the truncated SVD of W_l itself, with
as many parameters: if that keeps as much, the layers share nothing. Others are shared layers of an
untrained twin, and layers that share at random.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch

from interp.analyses.recursion.design import Design
from interp.analyses.recursion.low_rank import Shape, shapes_of
from interp.analyses.recursion.places import ends_of, forwards_of, similarities
from interp.analyses.recursion.result import RecursionResult
from interp.analyses.recursion.whole import (
    JUDGED,
    OUTCOMES,
    gaps_of_twins,
    read,
    run_loops,
    stacked,
    states_of,
)
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError, UnsuitedError
from interp.models import Model
from interp.models.loops import (
    INITS,
    Init,
    default_numbers,
    kinds_of,
    refuse_others,
    why_not,
)
from interp.models.quantised import Asked
from interp.models.untrained import N_TWINS, twins_of
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Tensors
from interp.sweeps.mixers import require_replaceable
from interp.sweeps.outputs import held_at_the_end, read_at_the_end
from interp.sweeps.patches import logits_at_the_end
from interp.sweeps.tags import keys_of, rows_of
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

_SHARES = (0, 1 / 16, 1 / 8, 1 / 4)  # of d_model, the default ranks
__all__ = ["Recursion", "RecursionResult"]


@dataclass(frozen=True)
class Recursion(Analysis):
    """Let layers share the weights of `shared` layers in a loop, with low-rank terms of `ranks`.

    `shared` are numbers that divide that of layers (default: the two largest below it, or only the
    largest of more than 16 layers); `inits` say where the shared weights come from; `ranks` are
    those of every matrix's term (default: 0 and 1/16 to 1/4 of d_model), and 0 is always among
    them. `norms` "shared" shares gains and biases too, which no term repairs. Findings are about
    the first of `shared` and `inits`. `grid` evenly spaced layers also run with each other's
    weights. Layers share at random in `draws` draws. `control` "untrained" repeats the first
    comparison in three untrained twins, and shares layers of one.
    """

    shared: tuple[Annotated[int, AtLeast(1)], ...] = ()
    inits: tuple[Init, ...] = INITS
    ranks: tuple[Annotated[int, AtLeast(0)], ...] = ()
    norms: Literal["kept", "shared"] = "kept"
    grid: Annotated[int, AtLeast(0)] = 8
    draws: Annotated[int, AtLeast(0)] = 3
    control: Literal["untrained", "none"] = "untrained"
    seed: int = 0
    rank: ClassVar[int] = 110
    asks_of_weights: ClassVar[Asked | None] = "other weights for a while"
    question: ClassVar[str] = (
        "Could layers share their weights in a loop, each with a low-rank correction?"
    )
    how: ClassVar[str] = (
        "Layers get the weights of a few shared ones, with a low-rank term each, and nothing is"
        " trained. The prediction is compared with that of layers that are cut to a low rank"
        " without sharing, with as many parameters, of random loops and of untrained models."
    )
    caveat: ClassVar[str] = "A loop that is trained afterwards can mend much of what is lost here."

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("shared", "inits", "ranks"):
            given = getattr(self, name)
            if len({*given}) < len(given):
                raise AnalysisError(f"{name} {given} given; each of them is needed once")
        if not self.inits:
            raise AnalysisError(f"no inits given; there is {', '.join(INITS)}")

    @property
    def _shares_vectors(self) -> bool:
        return self.norms == "shared"

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise where layers cannot be shared: their number, their kinds, tied weights, experts."""
        if model.n_layers < 2:
            raise UnsuitedError("the model has 1 layer; at least 2 can share weights")
        kinds = kinds_of(model)
        for block in model.blocks:
            refuse_others(block)
            own = {f"{block.name}.{name}": p for name, p in block.module.named_parameters()}
            require_replaceable(model, own)
        for n_shared in self.shared:
            if why := why_not(n_shared, kinds):
                raise AnalysisError(why)
        if not self.shared and not default_numbers(kinds):
            raise UnsuitedError("no number of shared layers suits this model's kinds of layers")

    def design(self, model: Model) -> Design:
        """Return what is run on a model."""
        return self._design(kinds_of(model), model.d_model, shapes_of(model.blocks))

    def _design(
        self, kinds: tuple[int, ...], d_model: int, shapes: Sequence[Sequence[Shape]] = ()
    ) -> Design:
        ranks = {0, *(self.ranks or (int(share * d_model) for share in _SHARES))}
        return Design(
            self.inits,
            self.shared or default_numbers(kinds),
            tuple(sorted(ranks)),
            kinds,
            shapes,
            self.grid,
            self.draws,
            self.control == "untrained",
            self.seed,
        )

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return "loops" [prompt variant outcome] of all prompts by "key", and what is of weights.

        "table" [variant 5] says what variants are (`Design.table`), "error" what they lose of the
        weights, "needed" [loop layer matrix energy] the ranks of what is not shared; "cka" and
        "cosine" [pair] how alike pairs of layers are; "twins" how untrained twins compare.
        """
        design = self.design(model)
        batches = [model.tokenize(shard) for shard in model.shards(task)]
        twin = next(twins_of(model, seed=self.seed), None) if design.has_twin else None
        design = replace(design, has_twin=twin is not None)
        how = {"shares_vectors": self._shares_vectors}
        loops = run_loops(model, batches, design.variants, twin=twin, **how)
        del twin
        layers = sorted({place.layer for place in design.grid})
        states = states_of(model, task, layers)
        twins = torch.zeros(0)
        if design.has_twin:
            twins = gaps_of_twins(model, task, design.pair, seed=self.seed, **how)
        return {
            "key": torch.cat([keys_of(batch.prompts) for batch in batches]),
            "table": design.table,
            "kinds": torch.tensor(design.kinds),
            "twins": twins,
            **loops,
            **similarities(states, model.blocks, design.grid),
        }

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return outcomes of loops, of the grid's pairs and of layers alone, and the weights' part.

        `OUTCOMES` come last: "loops" [batch variant 4], "grid" [batch pair 4], "alone" [batch init
        layer 4], where layers that are their own shared layer have those of the clean pass.
        """
        n, kinds = len(shard.prompts), tuple(prepared["kinds"].tolist())
        last = recording.resid(recording.n_layers)[:, -1]
        design = self._design(kinds, last.shape[-1])
        ends = ends_of(
            recording, [*design.grid, *design.alone], shares_vectors=self._shares_vectors
        )
        clean = logits_at_the_end(recording, last[None])[0]
        found = read_at_the_end(
            recording,
            torch.cat([last[None], ends]),
            lambda logits: read(logits, clean, shard.answer),
        )
        outcomes, n_pairs = stacked(found).transpose(0, 1), len(design.grid)
        alone = outcomes[:, :1].repeat(1, len(self.inits) * len(kinds), 1)
        alone[:, design.rows_alone] = outcomes[:, 1 + n_pairs :]
        rows = rows_of(prepared["key"], shard.prompts)
        of_weights = {
            name: prepared[name].expand(n, *prepared[name].shape).contiguous()
            for name in ("table", "kinds", "error", "needed", "cka", "cosine", "twins")
        }
        return of_weights | {
            "loops": prepared["loops"][rows],
            "grid": outcomes[:, 1 : 1 + n_pairs].contiguous(),
            "alone": alone.reshape(n, len(self.inits), len(kinds), len(OUTCOMES)),
        }

    def combine(self, parts: Sequence[Tensors]) -> RecursionResult:
        """Return the outcomes of all prompts."""
        return RecursionResult(self, joined(parts))

    def coarser(self) -> "Recursion | None":
        """Return the same with half as many layers in the grid; None without one."""
        return replace(self, grid=self.grid // 2) if self.grid > 1 else None

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return the passes of single places, and of the loops that `prepare` runs for this shard.

        `once` are the decompositions of matrices, which are done once for all shards, and twins.
        """
        design, (n, n_pos) = self.design(model), shard.tokens.shape
        places, variants, n_layers = [*design.grid, *design.alone], design.variants, model.n_layers
        forwards = forwards_of(places, n_layers)
        whole = len(variants) + 2  # with clean passes
        at_once = max(1, len(self.inits) + self.grid)
        held = (3 * at_once + 2) * n * n_pos * model.d_model + len(places) * n * model.d_model
        held += held_at_the_end(len(places) + 1, n, model.d_vocab) + design.held
        n_outcomes = len(variants) + len(places) + n_layers * len(self.inits)
        numbers = n * (n_outcomes * len(OUTCOMES) + design.numbers_of_weights)
        once = design.as_tokens
        if design.has_twin:
            once += 2 * N_TWINS * JUDGED * n_pos
        logits = n * (len(places) + len(variants) + 3)
        return Cost(forwards + whole, numbers, held, is_bound=True, logits=logits, once=once)
