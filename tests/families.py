"""Tiny random models: one configuration a family, norms and biases perturbed so that nothing is
trivially zero.
"""

from functools import cache
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

from interp.models import Model
from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch

Config = dict[str, Any]
_PLAIN: Config = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_LLAMA = {**_PLAIN, "num_key_value_heads": 2, "head_dim": 8}
_GPT2: Config = {"vocab_size": 97, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
_EXPERTS: Config = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}
_LATENT: Config = {
    **_PLAIN,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
_WINDOW = {**_LLAMA, "sliding_window": 8}
_SCALED: Config = {
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.3,
}
_MIXED: Config = {**_LLAMA, "num_hidden_layers": 2}
_DELTA: Config = {
    **_MIXED,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_MAMBA: Config = {
    **_MIXED,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 16,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
_BASE: dict[str, Config] = {
    "llama": _LLAMA,
    "gpt2": _GPT2,
    "gpt_neox": {**_PLAIN, "use_parallel_residual": True},
    "gemma2": _WINDOW,
    "qwen3": {**_LLAMA, "head_dim": 16},
    "mixtral": {**_LLAMA, **_EXPERTS},
}
FAMILIES = tuple(_BASE)  # those that every test of a model runs on

ALL: dict[str, tuple[str, Config]] = {
    family: (family, config) for family, config in _BASE.items()
} | {
    "llama tied": ("llama", {**_LLAMA, "tie_word_embeddings": True}),
    "gpt_neox sequential": ("gpt_neox", {**_PLAIN, "use_parallel_residual": False}),
    "gptj": ("gptj", {**_GPT2, "rotary_dim": 4}),
    "gpt_neo": (
        "gpt_neo",
        {
            "vocab_size": 97,
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 4,
            "max_position_embeddings": 64,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 8,
            "intermediate_size": 48,
        },
    ),
    "gpt_bigcode": ("gpt_bigcode", _GPT2),
    "codegen": ("codegen", {**_GPT2, "rotary_dim": 4}),
    "opt": ("opt", {**_PLAIN, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "xglm": (
        "xglm",
        {
            "vocab_size": 97,
            "d_model": 32,
            "ffn_dim": 48,
            "num_layers": 4,
            "attention_heads": 4,
            "max_position_embeddings": 64,
        },
    ),
    "bloom": ("bloom", {"vocab_size": 97, "hidden_size": 32, "n_layer": 4, "n_head": 4}),
    "mpt": (
        "mpt",
        {"vocab_size": 97, "d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 64},
    ),
    "falcon": ("falcon", {**_PLAIN, "multi_query": True, "parallel_attn": True, "alibi": False}),
    "falcon new": (
        "falcon",
        {**_PLAIN, "num_kv_heads": 2, "new_decoder_architecture": True, "alibi": False},
    ),
    "phi": ("phi", _PLAIN),
    "phi3": ("phi3", _LLAMA),
    "mistral": ("mistral", _WINDOW),
    "qwen2": ("qwen2", _LLAMA),
    "qwen2_moe": ("qwen2_moe", {**_LLAMA, **_EXPERTS, "shared_expert_intermediate_size": 24}),
    "qwen3_moe": ("qwen3_moe", {**_LLAMA, **_EXPERTS}),
    "gemma": ("gemma", _LLAMA),
    "gemma3": ("gemma3_text", _WINDOW),
    "olmo": ("olmo", _LLAMA),
    "olmo2": ("olmo2", _LLAMA),
    "olmo3": ("olmo3", _WINDOW),
    "olmoe": ("olmoe", {**_LLAMA, **_EXPERTS}),
    "stablelm": ("stablelm", _LLAMA),
    "granite": ("granite", {**_LLAMA, **_SCALED, "logits_scaling": 4.0}),
    "granitemoe": ("granitemoe", {**_LLAMA, **_EXPERTS, **_SCALED}),
    "cohere": ("cohere", {**_LLAMA, "logit_scale": 0.25}),
    "cohere2": ("cohere2", {**_WINDOW, "logit_scale": 0.25}),
    "gpt_oss": ("gpt_oss", {**_WINDOW, **_EXPERTS}),
    "deepseek_v2": ("deepseek_v2", _LATENT),
    "deepseek_v3": ("deepseek_v3", _LATENT),
    "llama4": ("llama4_text", _LLAMA),
    "starcoder2": ("starcoder2", _LLAMA),
    "smollm3": ("smollm3", _LLAMA),
    "nemotron": ("nemotron", _LLAMA),
    "glm": ("glm", _LLAMA),
    "glm4": ("glm4", _LLAMA),
    "exaone4": ("exaone4", _LLAMA),
    "arcee": ("arcee", _LLAMA),
    "seed_oss": ("seed_oss", _LLAMA),
    "ernie4_5": ("ernie4_5", _LLAMA),
    "hunyuan": ("hunyuan_v1_dense", _LLAMA),
    "glm4_moe": ("glm4_moe", {**_LATENT, "num_hidden_layers": 2, "head_dim": 8}),
}
# layers that mix positions by something else than attention alone, or do more than add two writes
OTHER_BLOCKS: dict[str, tuple[str, Config]] = {
    "gemma4": (
        "gemma4_text",
        {
            **_MIXED,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "global_head_dim": 8,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 97,
            "num_kv_shared_layers": 0,
        },
    ),
    "qwen3_next": (
        "qwen3_next",
        {**_DELTA, **_EXPERTS, "shared_expert_intermediate_size": 24},
    ),
    "qwen3_5": ("qwen3_5_text", _DELTA),
    "olmo_hybrid": ("olmo_hybrid", _DELTA),
    "lfm2": ("lfm2", {**_MIXED, "layer_types": ["conv", "full_attention"]}),
    "falcon_h1": ("falcon_h1", {**_MAMBA, "mamba_d_ssm": 64}),
    "bamba": ("bamba", {**_MAMBA, "attn_layer_indices": [1]}),
    "granitemoehybrid": (
        "granitemoehybrid",
        {
            **_MAMBA,
            **_EXPERTS,
            "layer_types": ["mamba", "attention"],
            "shared_intermediate_size": 48,
            "residual_multiplier": 0.5,
        },
    ),
    "jamba": (
        "jamba",
        {
            **_MIXED,
            **_EXPERTS,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
    ),
    "nemotron_h": (
        "nemotron_h",
        {
            **_LLAMA,
            "num_hidden_layers": 3,
            "layers_block_type": ["mamba", "attention", "mlp"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 16,
            "n_groups": 1,
            "chunk_size": 8,
        },
    ),
    "qwen3_5_moe": (
        "qwen3_5_moe_text",
        {**_DELTA, **_EXPERTS, "shared_expert_intermediate_size": 24},
    ),
    "mamba": ("mamba", {**_MIXED, "state_size": 8}),
    "mamba2": (
        "mamba2",
        {
            "vocab_size": 97,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_heads": 8,
            "head_dim": 8,
            "state_size": 16,
            "n_groups": 1,
            "chunk_size": 8,
        },
    ),
    "zamba2": (
        "zamba2",
        {
            **_MIXED,
            "layers_block_type": ["mamba", "hybrid"],
            "hybrid_layer_ids": [1],
            "mamba_d_state": 16,
            "mamba_ngroups": 1,
            "n_mamba_heads": 8,
            "mamba_headdim": 8,
            "chunk_size": 8,
            "num_mem_blocks": 1,
        },
    ),
}

# families that TransformerLens does not know: their modules are found in a pass
WITHOUT_LENS: dict[str, tuple[str, Config]] = {
    "biogpt": ("biogpt", _MIXED),
    "cohere2_moe": ("cohere2_moe", {**_MIXED, **_EXPERTS, "sliding_window": 8}),
    "ctrl": (
        "ctrl",
        {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 48, "n_positions": 64},
    ),
    "cwm": ("cwm", _MIXED),
    "diffllama": ("diffllama", _MIXED),
    "doge": ("doge", _MIXED),
    "dots1": ("dots1", {**_LATENT, "num_hidden_layers": 2, "head_dim": 8}),
    "exaone_moe": ("exaone_moe", {**_MIXED, **_EXPERTS}),
    "granitemoeshared": ("granitemoeshared", {**_MIXED, **_EXPERTS}),
    "helium": ("helium", _MIXED),
    "hunyuan_moe": ("hunyuan_v1_moe", {**_MIXED, **_EXPERTS}),
    "lfm3": ("lfm3", {**_MIXED, "layer_types": ["conv", "full_attention"]}),
    "ministral": ("ministral", {**_MIXED, "sliding_window": 8}),
    "minicpm3": ("minicpm3", {**_LATENT, "num_hidden_layers": 2}),
    "persimmon": ("persimmon", _MIXED),
    "phimoe": ("phimoe", {**_MIXED, **_EXPERTS}),
    "solar_open": ("solar_open", {**_MIXED, **_EXPERTS, "n_routed_experts": 4}),
}
_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_TEXT: Config = {**_MIXED, **_SPECIAL}
_TURNED: Config = {
    **_TEXT,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
}
_SEEN: Config = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
_SEEN_BY_QWEN: Config = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 32,
}
# models of texts and images: what is read is their language model, on texts alone
WITH_IMAGES: dict[str, tuple[str, Config]] = {
    "gemma3 with images": (
        "gemma3",
        {
            "text_config": {**_TEXT, "sliding_window": 8},
            "vision_config": _SEEN,
            "mm_tokens_per_image": 4,
        },
    ),
    "internvl": (
        "internvl",
        {
            "text_config": {"model_type": "qwen2", **_TEXT},
            "vision_config": _SEEN,
            "image_token_id": 96,
        },
    ),
    "llava": (
        "llava",
        {
            "text_config": {"model_type": "llama", **_TEXT},
            "vision_config": {"model_type": "clip_vision_model", **_SEEN, "projection_dim": 16},
            "image_token_index": 96,
        },
    ),
    "mistral3": (
        "mistral3",
        {
            "text_config": {"model_type": "mistral", **_TEXT},
            "vision_config": {"model_type": "pixtral", **_SEEN, "head_dim": 8},
            "image_token_index": 96,
        },
    ),
    "qwen2_5_vl": ("qwen2_5_vl", {"text_config": _TURNED, "vision_config": _SEEN_BY_QWEN}),
    "qwen3_5 with images": (
        "qwen3_5",
        {"text_config": {**_DELTA, **_SPECIAL}, "vision_config": _SEEN_BY_QWEN},
    ),
    "qwen3_vl": (
        "qwen3_vl",
        {
            "text_config": _TURNED,
            "vision_config": {
                **_SEEN_BY_QWEN,
                "deepstack_visual_indexes": [0],
                "num_position_embeddings": 16,
            },
        },
    ),
}
EVERY = ALL | OTHER_BLOCKS | WITHOUT_LENS | WITH_IMAGES


@cache
def tiny(family: str, *, seed: int = 0) -> Model:
    return Model(f"tiny-{family}", untouched(family, seed=seed))


def one_layer(family: str) -> Model:
    """Return a family whose layers are called `model.layers`, with the first one alone."""
    module = untouched(family)
    del module.model.layers[1:]
    module.config.num_hidden_layers = 1
    return Model(f"one-layer-{family}", module)


def untouched(family: str, *, seed: int = 0) -> PreTrainedModel:
    """Return a family's module in fp32, which nothing has looked at."""
    torch.manual_seed(seed)
    kind, given = EVERY[family]
    auto = AutoModelForImageTextToText if family in WITH_IMAGES else AutoModelForCausalLM
    special = {} if family in WITH_IMAGES else _SPECIAL
    config = AutoConfig.for_model(kind, **given, **special)
    module = auto.from_config(config).float().eval()
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module


def stock_logits(model: Model, batch: TokenBatch) -> torch.Tensor:
    """Return what the module itself computes, with whatever hooks a test has put on it."""
    mask = batch.mask if batch.is_padded else None
    return model.module(input_ids=batch.tokens, attention_mask=mask, use_cache=False).logits.float()


def tokens(*, batch: int = 3, n_pos: int = 12, seed: int = 0) -> TokenBatch:
    ids = torch.randint(3, 97, (batch, n_pos), generator=torch.Generator().manual_seed(seed))
    last = torch.full((batch,), n_pos - 1)
    prompts = tuple(Prompt(str(i), "x") for i in range(batch))
    return TokenBatch(prompts, ids, torch.ones_like(ids, dtype=torch.bool), last, answer=ids[:, 0])
