"""What is trained for how long: the recipe of every shipped model."""

from dataclasses import dataclass

from transformers import LlamaConfig, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Recipe:
    """A model's shape and its training; training stops after `steps`, whatever the loss."""

    name: str
    n_layers: int
    steps: int
    d_model: int = 128
    d_head: int = 32
    batch: int = 64
    length: int = 25
    learning_rate: float = 1e-3
    warmup: int = 200
    decay: int = 500
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    other_weight: float = 0.1
    seed: int = 0

    def config(self, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
        """Return the Hugging Face configuration: RMSNorm, SwiGLU, grouped queries, rotary positions."""
        return LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.d_model,
            intermediate_size=8 * self.d_model // 3 // 8 * 8,
            num_hidden_layers=self.n_layers,
            num_attention_heads=self.d_model // self.d_head,
            num_key_value_heads=self.d_model // self.d_head // 2,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=None,
            pad_token_id=tokenizer.pad_token_id,
        )

    def rate(self, step: int) -> float:
        """Return the learning rate's factor: linear warm-up, constant, linear decay to a tenth."""
        to_go = self.steps - step
        return min(1.0, (step + 1) / self.warmup, 0.1 + 0.9 * to_go / self.decay)


RECIPES = {recipe.name: recipe for recipe in (Recipe("hops-4l", n_layers=4, steps=1500, decay=300),)}
