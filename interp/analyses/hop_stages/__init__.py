"""In which order, and how late, is a two-hop query resolved: right answers against wrong ones?

"Hopping Too Late" (arXiv 2406.12775), section 5, joins its measures into four stages per prompt:
(1) the first hop is resolved: the first layer whose vector, at the last token of the first-hop
phrase, says the bridge in another prompt; (2) it reaches the prompt's last token: the mean of the
first layers, as far as there are any, at which hiding the phrase from it changes the guess,
attention there writes the bridge, and the vector there says the bridge; (3) the second hop is
resolved: the vector there says the answer; (4) the MLP there writes the guess.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.analyses.hop_stages.result import MEASURES, HopStagesResult
from interp.analysis import Analysis, Cost
from interp.models import Model
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Tensors
from interp.sweeps.answers import require_answers
from interp.sweeps.cuts import (
    Cut,
    cut_elsewhere,
    cut_of,
    cut_steps,
    ends_of_cuts,
    half_width_of,
    require_hiding,
)
from interp.sweeps.descriptions import (
    described_ranks,
    description_steps,
    description_tensors,
    placeholder_position,
    refuse_half_a_prompt,
    target_layers,
    target_prompt,
    unpatched_guesses,
)
from interp.sweeps.outputs import held_at_the_end, read_at_the_end
from interp.sweeps.patches import outputs_at, span_of
from interp.sweeps.two_hop import (
    another_prompts_entities,
    first_layer,
    last_logits,
    require_bridge,
    require_hops,
    right_and_compared,
    written_ranks,
)
from interp.tasks import Task
from interp.tasks.batch import TokenBatch


@dataclass(frozen=True)
class HopStages(Analysis):
    """Find each stage's first layer in prompts with known hops and no working shortcut.

    What the task does not ask excludes nothing.

    `variant`, `prompt` and `placeholder` are entity_description's, `half_width` (3 in 32 layers) is
    attention_knockout's. The control looks for another prompt's entities, and hides another token.
    """

    variant: Literal["cheap", "full"] = "cheap"
    prompt: str = ""
    placeholder: str = ""
    half_width: Annotated[int | None, AtLeast(0)] = None
    known_only: bool = True
    no_shortcuts: bool = True
    seed: int = 0
    question: ClassVar[str] = (
        "In which order, and how late, are the steps of a two-hop query resolved, for right "
        "and wrong answers?"
    )
    how: ClassVar[str] = (
        "Four stages are located for each prompt, from descriptions of vectors, attention knock-out"
        " and projections: first hop resolved, handed on, second hop resolved, guess written. Right"
        " answers are compared with wrong ones, and with another prompt's entities."
    )
    caveat: ClassVar[str] = (
        "Stages are defined only where they are found, so mean layers compare different prompts;"
        " the shares found and their controls belong to them."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_half_a_prompt(self.prompt, self.placeholder)

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise for missing entities, an unusable target prompt, and keys that cannot be hidden."""
        require_hops(shard)
        target_prompt(model, self.prompt, self.placeholder)
        self._cuts(shard, model.n_layers)
        require_hiding(model, shard)

    def _cuts(self, shard: TokenBatch, n_layers: int) -> tuple[Cut, Cut]:
        cut = cut_of(shard, half_width=half_width_of(n_layers, self.half_width))
        return cut, cut_elsewhere(shard, cut, seed=self.seed)

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return which prompts are compared, others' bridges and answers, and the target prompt."""
        only = {"known_only": self.known_only, "no_shortcuts": self.no_shortcuts}
        return description_tensors(
            model, task, target_prompt(model, self.prompt, self.placeholder), **only
        )

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return the first layers of `MEASURES` and of their controls [batch measure]; -1: none."""
        own = (require_bridge(shard), require_answers(shard)[:, 0])
        other = another_prompts_entities(shard, prepared)
        target, place = recording.of(prepared["target"]), int(prepared["place"])
        described = self._described(recording, target, shard, [*own, *other], place=place)
        guess = last_logits(recording).argmax(-1)
        first, last = (span_of(shard, where)[:, 0] for where in ("subject", "last"))
        at_first = written_ranks(recording, first, [own[0], other[0]]) == 0
        at_last = written_ranks(recording, last, [*own, guess, *other, other[1]]) == 0
        tensors = right_and_compared(recording, shard, prepared["kept"])
        for i, cut in enumerate(self._cuts(shard, recording.n_layers)):
            entity_said = {where: says[..., 2 * i : 2 * i + 2] for where, says in described.items()}
            changed = self._changed(recording, cut, guess)
            written = (at_first[..., i], at_last[..., 3 * i : 3 * i + 3])
            tensors["control" if i else "own"] = _first_layers(entity_said, changed, *written)
        anyway = unpatched_guesses(target, [*own, *other])
        return tensors | {"anyway": anyway.any(1).cpu()}

    def _described(
        self,
        recording: Recording,
        target: Recording,
        shard: TokenBatch,
        tokens: list[Tensor],
        *,
        place: int,
    ) -> dict[str, Bool[Tensor, "batch source token"]]:
        """Return which source layers' vectors say each token for any target layer, by position."""
        layers, is_said = self._layers(recording.n_layers), {}
        for where in ("subject", "last"):
            vectors = outputs_at(recording, span_of(shard, where))[:, :, 0]
            rank, _ = described_ranks(target, vectors, tokens, layers=layers, position=place)
            is_said[where] = (rank == 0).any(2)
        return is_said

    def _layers(self, n_layers: int) -> range:
        return target_layers(n_layers, is_full=self.variant == "full")

    def _changed(
        self, recording: Recording, cut: Cut, guess: Tensor
    ) -> Bool[Tensor, "batch centre"]:
        """Return whether a cut around each layer changes the guess."""
        ends = ends_of_cuts(recording, cut)
        found = read_at_the_end(recording, ends, lambda logits: {"guess": logits.argmax(-1)})
        return (found["guess"] != guess).T

    def combine(self, parts: Sequence[Tensors]) -> HopStagesResult:
        """Return the first layers of all prompts."""
        return HopStagesResult(self, joined(parts))

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return the cost of two positions' descriptions, two cuts, and one target prompt."""
        (n, n_pos), n_layers = shard.tokens.shape, model.n_layers
        prompt = target_prompt(model, self.prompt, self.placeholder)
        behind = prompt.tokens.shape[1] - placeholder_position(prompt)
        steps = 2 * n * description_steps(n_layers, layers=self._layers(n_layers)) * behind
        for cut in self._cuts(shard, n_layers):
            steps += n * cut_steps(n_layers, half_width=cut.half_width) * (n_pos - cut.start)
        steps += n_layers * prompt.tokens.shape[1]
        held = 2 * n * n_layers * max(behind, n_pos) * model.d_model
        held += held_at_the_end(n_layers, n, model.d_vocab)
        numbers, logits = n * (2 * len(MEASURES) + 3), 4 * n * n_layers
        return Cost(steps / (n * n_pos * n_layers), numbers, held, logits=logits)


def _first_layers(
    said: dict[str, Bool[Tensor, "batch layer entity"]],
    changed: Bool[Tensor, "batch layer"],
    at_first: Bool[Tensor, "batch part layer"],
    at_last: Bool[Tensor, "batch part layer token"],
) -> Int[Tensor, "batch measure"]:
    """Return the first layers of `MEASURES`.

    `at_first` tells which part writes the bridge; `at_last`, the bridge, the answer and the guess.
    """
    attention, mlp, stream = at_last.unbind(1)
    is_there = (
        said["subject"][..., 0],
        changed,
        attention[..., 0],
        said["last"][..., 0],
        said["last"][..., 1],
        mlp[..., 2],
        at_first[:, 2],
        stream[..., 0],
        stream[..., 1],
    )
    return torch.stack([first_layer(each) for each in is_there], dim=1).cpu().int()
