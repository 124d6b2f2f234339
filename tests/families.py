"""Tiny random models: one configuration a family, norms and biases perturbed so that nothing is trivially zero."""

from functools import cache

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from interp.models import Model
from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch

_COMMON = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {**_COMMON},
    "gpt2": {"vocab_size": 97, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64},
    "gpt_neox": {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
        "max_position_embeddings": 64, "use_parallel_residual": True,
    },
    "gemma2": {**_COMMON, "sliding_window": 8},
    "qwen3": {**_COMMON},
    "mixtral": {**_COMMON, "num_local_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip


OTHERS: dict[str, dict[str, object]] = {
    "qwen2": {**_COMMON},
    "mistral": {**_COMMON, "sliding_window": 8},
    "olmo2": {**_COMMON},
}


@cache
def tiny(family: str, *, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **(FAMILIES | OTHERS)[family], bos_token_id=1, eos_token_id=2, pad_token_id=0)
    module = AutoModelForCausalLM.from_config(config).float()
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return Model(f"tiny-{family}", module)


def tokens(*, batch: int = 3, n_pos: int = 12, seed: int = 0) -> TokenBatch:
    ids = torch.randint(3, 97, (batch, n_pos), generator=torch.Generator().manual_seed(seed))
    last = torch.full((batch,), n_pos - 1)
    prompts = tuple(Prompt(str(i), "x") for i in range(batch))
    return TokenBatch(prompts, ids, torch.ones_like(ids, dtype=torch.bool), last, answer=ids[:, 0])
