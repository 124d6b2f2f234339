"""Does running late activations through early layers repair answers more often than chance?

"Hopping Too Late" (arXiv 2406.12775), section 6: at one token, the output of a source layer is
written over that of an earlier target layer, and the rest of the model is run again. There, a
prompt is repaired if any of L(L-1)/2 pairs of layers makes the answer come out; here every control
has as many tries, and one fixed pair, chosen on one half of the prompts, is scored on the other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from interp.analyses.back_patching.effects import effects_of
from interp.analyses.back_patching.result import BackPatchingResult
from interp.analyses.back_patching.texts import judge_texts, judgements_of
from interp.analyses.back_patching.tries import (
    CONTROLS,
    Control,
    Tries,
    all_tries,
    donors,
    kinds_of,
    n_pairs,
    work_of,
)
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError
from interp.models import Model
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Tensors
from interp.sweeps.answers import require_answers
from interp.sweeps.mixers import require_kv
from interp.sweeps.outputs import held_at_the_end
from interp.sweeps.patches import (
    ends_of_patched,
    logits_at_the_end,
    of_token,
    outputs_at,
    ranks,
    span_of,
)
from interp.sweeps.tags import tags_of
from interp.sweeps.two_hop import hops_known, known_hops
from interp.tasks import Task
from interp.tasks.batch import TokenBatch


@dataclass(frozen=True)
class BackPatching(Analysis):
    """Patch `span` tokens that end with the first-hop phrase ("subject") or the prompt ("last").

    A prompt is right if its answer's first token is the first guess or, with `max_new_tokens`, if
    its greedy text of so many tokens says the answer or an alias. Failures are wrong prompts; with
    `known_only`, only those whose two single hops the model answers. Vectors of other prompts come
    from the task's first `n_donors`, at the same place, where bridge and answer differ. Rates are
    given for all prompts and for each value of the tag `by`.
    """

    position: Literal["subject", "last"] = "subject"
    span: Annotated[int, AtLeast(1)] = 1
    controls: tuple[Control, ...] = CONTROLS
    known_only: bool = True
    max_new_tokens: Annotated[int | None, AtLeast(1)] = None
    by: str = "set"
    n_donors: Annotated[int, AtLeast(2)] = 32
    seed: int = 0
    rank: ClassVar[int] = 5
    page: ClassVar[str] = "backpatch"
    question: ClassVar[str] = (
        "Does patching late activations into early layers repair wrong answers?"
    )
    how: ClassVar[str] = (
        "A later layer's output at one token is written over an earlier layer's output at the same"
        " token, and the rest is run again, for every pair of layers. One fixed pair is chosen on"
        " half of the failures and scored on the other; every control has as many tries."
    )
    caveat: ClassVar[str] = (
        "Any of many pairs repairs some prompts by chance;"
        " only the difference to controls with as many tries is evidence."
    )

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise where an answer or a subject is missing, or a span or a pair does not fit."""
        require_kv(model)
        require_answers(shard)
        if model.n_layers < 2:
            raise AnalysisError(f"model {model.name!r} has 1 layer; back-patching needs two")
        if self.max_new_tokens is not None:
            model.refuse_texts(shard.prompts)
            model.refuse_responses(shard, self.max_new_tokens)
        positions = self._positions(shard)
        if int(positions.min()) < 0:
            which = shard.prompts[int(positions[:, 0].argmin())].id
            raise AnalysisError(
                f"prompt {which!r}: a span of {self.span} tokens begins before its first token"
            )
        if "position" in self.controls and (n_pos := shard.tokens.shape[1]) < self.span + 1:
            raise AnalysisError(
                f"prompt {shard.prompts[0].id!r} has {n_pos} tokens;"
                " no other position is left to patch"
            )

    def _positions(self, shard: TokenBatch) -> Int[Tensor, "batch span"]:
        return span_of(shard, self.position, width=self.span)

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return which single hops are known, donors' vectors, and what texts say (not resumed)."""
        prepared: Tensors = {}
        if self.known_only:
            prepared |= known_hops(model, task, max_new_tokens=self.max_new_tokens)
        if "example" in self.controls:
            prepared |= donors(model, task, n=self.n_donors, positions=self._positions)
        if self.max_new_tokens is None:
            return prepared
        return prepared | judge_texts(
            model,
            task,
            lambda shard: self._tries(model.record(shard), shard, prepared),
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
        )

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return ranks, changes and what is right [batch source target] by kind of patch.

        "own" holds the pairs of the prompt's own vectors: back, identity and forward.
        """
        assert shard.answer is not None
        n_layers = recording.n_layers
        clean = recording.logits(recording.resid(n_layers), positions=[-1])[:, 0]
        chance = of_token(clean.softmax(-1), shard.answer).double().cpu()
        tensors: Tensors = {
            "tag": tags_of(shard, self.by),
            "hops": hops_known(shard, prepared),
            "bridge_rank": self._bridge_ranks(recording, shard),
            "is_right": ranks(clean, shard.answer).cpu() == 0,
            "sampled.one": chance.float(),
            "sampled.any": -torch.expm1(torch.log1p(-chance) * n_pairs(n_layers)).float(),
        }
        for tries in self._tries(recording, shard, prepared):
            ends = ends_of_patched(recording, tries.values, positions=tries.positions)
            effects = {t: effects_of(recording, end, clean, shard) for t, end in ends.items()}
            for what in ("rank", "right", "log_prob", "difference"):
                of_target = {target: effect[what] for target, effect in effects.items()}
                tensors[f"{tries.kind}.{what}"] = tries.grid(of_target, n_layers=n_layers)
        return tensors | judgements_of(shard, prepared)

    def _bridge_ranks(self, recording: Recording, shard: TokenBatch) -> Int[Tensor, "batch layer"]:
        """Return the bridge's rank by the lens after each layer, where the patch ends; -1: none."""
        if shard.bridge is None:
            return torch.full((len(shard.prompts), recording.n_layers), -1)
        last = outputs_at(recording, self._positions(shard))[:, :, -1]
        return ranks(logits_at_the_end(recording, last), shard.bridge).T.cpu()

    def _tries(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Iterator[Tries]:
        positions = self._positions(shard)
        return all_tries(
            recording, shard, prepared, controls=self.controls, positions=positions, seed=self.seed
        )

    def combine(self, parts: Sequence[Tensors]) -> BackPatchingResult:
        """Return rates over the failures."""
        return BackPatchingResult(self, joined(parts))

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return (L-1)L(2L-1)/6 blocks after the patch for each kind; texts add a forward each."""
        n_layers, (n, n_pos), positions = model.n_layers, shard.tokens.shape, self._positions(shard)
        how = {"n_layers": n_layers, "seed": self.seed}
        steps, n_tries = work_of(shard, positions, controls=self.controls, **how)
        new = self.max_new_tokens
        decoding = 0.0 if new is None else (n_tries + n_pairs(n_layers)) * (n_pos + new - 1) / n_pos
        behind = n_pos - int(positions.min())
        held = 2 * n * n_layers**2 * behind * model.d_model
        held += held_at_the_end(n_layers, n, model.d_vocab)
        return Cost(
            steps / (n_pos * n_layers) + decoding,
            4 * n * n_layers**2 * len(kinds_of(self.controls)),
            held,
            logits=n * (n_tries + n_layers + 1),
        )
