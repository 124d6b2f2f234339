"""From which layer on does a vector, put into another prompt, say the bridge, or the answer?

"Hopping Too Late" (arXiv 2406.12775), section 4, after "Patchscopes" (arXiv 2401.06102): the output
of a source layer at the last token of the first-hop phrase, or of the prompt, is written over a
target layer's output at a word of a list of names said twice; what the model says there is what the
vector stands for. The paper samples 10 tokens three times for every pair of layers; here it is the
first token: its rank (greedy), and its probability (what samples would find).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch

from interp.analyses.entity_description.result import EntityDescriptionResult
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError
from interp.interventions import Patch
from interp.models import Model
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Tensors
from interp.sites import Site
from interp.sweeps.answers import require_answers
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
from interp.sweeps.mixers import require_kv
from interp.sweeps.patches import outputs_at, span_of
from interp.sweeps.two_hop import (
    another_prompts_entities,
    require_bridge,
    require_hops,
    right_and_compared,
)
from interp.tasks import Prompt, Task
from interp.tasks.batch import TokenBatch


@dataclass(frozen=True)
class EntityDescription(Analysis):
    """Put vectors from each of `positions` into `prompt` in the place of its one `placeholder`.

    `variant` "cheap" tries target layers 0 to 3, "full" all. The default prompt is a built-in list
    of names. The control reads another prompt's bridge and answer from the same vectors, which is
    the paper's pairing of a vector with another example, and has as many tries. `n_samples` are the
    tries per pair of layers of the sampled rate.
    """

    positions: tuple[Literal["subject", "last"], ...] = ("subject", "last")
    variant: Literal["cheap", "full"] = "cheap"
    prompt: str = ""
    placeholder: str = ""
    n_samples: Annotated[int, AtLeast(1)] = 3
    known_only: bool = True
    no_shortcuts: bool = True
    seed: int = 0
    question: ClassVar[str] = (
        "From which layer on does a hidden state stand for the bridge, or the answer?"
    )
    how: ClassVar[str] = (
        "A layer's output at a token is written over a word of another, neutral prompt, at several"
        " layers, and what the model says there is what the vector stands for. The control reads"
        " another prompt's entities from the same vectors."
    )
    caveat: ClassVar[str] = (
        "The other prompt's own layers can finish the work,"
        " so a vector may say what it does not yet hold."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.positions:
            raise AnalysisError("no positions given; there is subject, last")
        refuse_half_a_prompt(self.prompt, self.placeholder)

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise TaskError where an entity is missing, and for an unusable target prompt."""
        require_kv(model)
        require_hops(shard)
        self.target(model)

    def target(self, model: Model) -> TokenBatch:
        """Return the prompt into which vectors are put."""
        return target_prompt(model, self.prompt, self.placeholder)

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return which prompts are compared, others' bridges and answers, and the target prompt."""
        only = {"known_only": self.known_only, "no_shortcuts": self.no_shortcuts}
        return description_tensors(model, task, self.target(model), **only)

    def _layers(self, n_layers: int) -> range:
        return target_layers(n_layers, is_full=self.variant == "full")

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return ranks and probabilities [batch source target entity] by the vector's position.

        Entities: own bridge and answer, then another prompt's.
        """
        own = (require_bridge(shard), require_answers(shard)[:, 0])
        tokens = [*own, *another_prompts_entities(shard, prepared)]
        target, place = recording.of(prepared["target"]), int(prepared["place"])
        tensors = right_and_compared(recording, shard, prepared["kept"])
        tensors["anyway"] = unpatched_guesses(target, tokens).cpu()
        for position in ("subject", "last"):
            if position not in self.positions:
                continue
            vectors = outputs_at(recording, span_of(shard, position))[:, :, 0]
            rank, probability = described_ranks(
                target, vectors, tokens, layers=self._layers(recording.n_layers), position=place
            )
            tensors[f"{position}.rank"] = rank.cpu().int()
            tensors[f"{position}.probability"] = probability.cpu()
        return tensors

    def combine(self, parts: Sequence[Tensors]) -> EntityDescriptionResult:
        """Return ranks and probabilities of all prompts."""
        return EntityDescriptionResult(self, joined(parts))

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return a pass of the target prompt, and per pair of layers what is after the word."""
        (n, n_pos), n_layers, prompt = shard.tokens.shape, model.n_layers, self.target(model)
        layers, n_positions = self._layers(n_layers), len(set(self.positions))
        behind = prompt.tokens.shape[1] - placeholder_position(prompt)
        steps = n_positions * n * description_steps(n_layers, layers=layers) * behind
        forwards = (steps + n_layers * prompt.tokens.shape[1]) / (n * n_pos * n_layers)
        held = n * (n_layers * behind * model.d_model + 3 * model.d_vocab)
        described = n * n_layers * len(layers) * n_positions
        return Cost(forwards, 8 * described, held, logits=described)


def described_texts(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    layers: tuple[int, int],
    position: Literal["subject", "last"],
    max_new_tokens: int = 10,
    analysis: EntityDescription | None = None,
) -> tuple[str, ...]:
    """Return the greedy texts after the target prompt with each prompt's vector in it.

    `layers` are the vector's source layer and the target layer whose output it replaces.
    """
    for what, layer in zip(("source", "target"), layers, strict=True):
        if not 0 <= layer < model.n_layers:
            raise AnalysisError(f"{what}={layer}; the model's last layer is {model.n_layers - 1}")
    shard, filled = model.tokenize(prompts), (analysis or EntityDescription()).target(model)
    source, target = (Site("resid_post", layer) for layer in layers)
    outputs = model.forward(shard, capture=[source]).activations[source]
    at = span_of(shard, position)[:, 0]
    vectors = outputs[torch.arange(len(at), device=at.device), at]
    into = model.tokenize([Prompt(prompt.id, filled.prompts[0].text) for prompt in prompts])
    plan = [Patch(target, vectors[:, None], positions=[placeholder_position(filled)])]
    return model.generate(into, max_new_tokens=max_new_tokens, plan=plan, phase="prefill").texts
