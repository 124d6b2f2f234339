"""What is trained, on what, for how long: the recipe of every shipped model."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from transformers import GPT2Config, LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast

from interp.zoo.names import Names
from interp.zoo.world import Sentence, World


@dataclass(frozen=True)
class Stage:
    """A stretch of training; `mix` holds the shares of the kinds of sentences (names only)."""

    steps: int
    batch: int
    learning_rate: float
    decay: int
    mix: tuple[float, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A model's shape and its training; training stops after the stages' steps, whatever the loss.

    `keep` names steps whose weights ship too, as `NAME@step-0500`.
    """

    name: str
    family: Literal["llama", "gpt2"]
    n_layers: int
    d_model: int
    d_head: int
    length: int
    stages: tuple[Stage, ...]
    warmup: int = 200
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    other_weight: float = 0.1
    init_std: float = 0.02
    seed: int = 0
    keep: tuple[int, ...] = ()
    one_hop_share: float = 0.3

    @property
    def steps(self) -> int:
        """Return the number of steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> tuple[Stage, int]:
        """Return the stage that a step belongs to, and the step's number within it."""
        for stage in self.stages:
            if step < stage.steps:
                return stage, step
            step -= stage.steps
        raise IndexError(f"step {step} lies after the last stage")

    def rate(self, step: int) -> float:
        """Return the learning rate: linear warm-up, constant, linear decay at a stage's end."""
        stage, within = self.stage_at(step)
        return stage.learning_rate * min(
            1.0, (step + 1) / self.warmup, 0.1 + 0.9 * (stage.steps - within) / stage.decay
        )

    def sentences(self, rng: np.random.Generator, step: int) -> Iterator[Sentence]:
        """Return the sentences that this model is trained on at a step."""
        if self.family == "llama":
            return World().sentences(rng, one_hop_share=self.one_hop_share)
        return Names().sentences(rng, self.stage_at(step)[0].mix)

    def config(self, tokenizer: PreTrainedTokenizerFast) -> PretrainedConfig:
        """Return the Hugging Face configuration of the family."""
        n_heads = self.d_model // self.d_head
        tokens = {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": None,
            "pad_token_id": tokenizer.pad_token_id,
        }
        if self.family == "gpt2":
            return GPT2Config(
                vocab_size=len(tokenizer),
                n_embd=self.d_model,
                n_layer=self.n_layers,
                n_head=n_heads,
                n_positions=128,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                initializer_range=self.init_std,
                **tokens,
            )
        return LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.d_model,
            intermediate_size=8 * self.d_model // 3 // 8 * 8,
            num_hidden_layers=self.n_layers,
            num_attention_heads=n_heads,
            num_key_value_heads=n_heads // 2,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            initializer_range=self.init_std,
            **tokens,
        )


def _hops(
    name: str,
    n_layers: int,
    *,
    steps: tuple[int, ...],
    share: float,
    seed: int = 0,
    keep: tuple[int, ...] = (),
) -> Recipe:
    """Hops of eight layers.

    A deep model that hears facts often on their own composes held-out ones too; a smaller share
    keeps that "too late".
    """
    stages = tuple(Stage(steps=n, batch=64, learning_rate=1e-3, decay=n // 5) for n in steps)
    return Recipe(
        name,
        "llama",
        n_layers,
        128,
        32,
        length=25,
        stages=stages,
        seed=seed,
        keep=keep,
        one_hop_share=share,
    )


# The shares are those of indirect objects, induction, greater-than and filler.
_NAMES_6L = (
    Stage(6000, 16, 1e-3, 6000, (3.0, 5.0, 2.0, 0.3)),
    Stage(2500, 16, 1e-3, 2500, (2.0, 2.0, 7.0, 0.2)),
    Stage(1500, 32, 1e-3, 1500, (1.0, 1.0, 8.0, 0.1)),
)
_NAMES_12L = (
    Stage(5000, 16, 1.2e-3, 5000, (4.0, 5.0, 1.0, 0.3)),
    Stage(1200, 16, 1e-3, 1200, (2.0, 3.0, 6.0, 0.2)),
)
_RECIPES = (
    _hops("hops-4l", 4, steps=(1500,), share=0.3, seed=2),
    _hops("hops-8l", 8, steps=(1800, 800), share=0.15, keep=(0, 400, 900)),
    _hops("hops-8l@seed1", 8, steps=(1800, 800), share=0.15, seed=1),
    _hops("hops-16l", 16, steps=(1200,), share=0.3),
    Recipe("names-6l", "gpt2", 6, 128, 32, length=64, stages=_NAMES_6L, warmup=100, init_std=0.06),
    Recipe(
        "names-12l",
        "gpt2",
        12,
        64,
        16,
        length=64,
        stages=_NAMES_12L,
        warmup=100,
        init_std=0.09,
        seed=1,
    ),
)
RECIPES = {recipe.name: recipe for recipe in _RECIPES}
