"""Choosing the next token: greedily or by sampling, under a checkpoint's `generation_config`.

Penalties, forbidden and forced tokens and truncated distributions are transformers' own logits
processors. Every prompt is judged on its own tokens, and drawn for from its own random numbers, so
that its response depends on no other in the batch.
"""

import copy
import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interp.errors import ModelError, TaskError

# what `generation_config` may ask for that is no choice of one next token: its value, or values,
# that ask for nothing
_OTHERS: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0, 0.0),
    "dola_layers": (),
    "constraints": (),
    "force_words_ids": (),
    "prompt_lookup_num_tokens": (),
    "assistant_early_exit": (),
    "is_assistant": (False,),
    "use_mtp": (False,),
    "guidance_scale": (1, 1.0),
    "stop_strings": (),
    "max_time": (),
    "token_healing": (False,),
    "watermarking_config": (),
}


class Chooser:
    """Chooses the next token of prompts, greedily (temperature 0) or by sampling.

    Sampling takes the temperature given here, and what else the checkpoint asks for (top_k, top_p,
    min_p, …); what it does not ask for is not added. One `seed` serves all prompts, or each has its
    own; the same prompt given twice is drawn for twice. Raises TaskError for a negative
    temperature, ModelError for processors that cannot be built.
    """

    def __init__(
        self,
        module: Any,
        rows: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
    ) -> None:
        if temperature < 0:
            raise TaskError(f"temperature={temperature}; 0 (greedy) or more is needed")
        self.ends = ending_tokens(module)
        self._randoms = _randoms(rows, seed) if temperature else []
        by_length: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            by_length.setdefault(len(row), []).append(i)
        self._groups = []
        for length, chosen in by_length.items():
            tokens = torch.tensor([list(rows[i]) for i in chosen], device=module.device)
            processors = _processors(module, tokens, length + max_new_tokens, temperature)
            self._groups.append((chosen, tokens, processors))

    def __call__(self, new: Tensor, logits: Tensor) -> Tensor:
        """Return the next token [batch] after `new` [batch new], from logits [batch d_vocab]."""
        scores = logits.clone()
        for rows, tokens, processors in self._groups:
            if processors:
                scores[rows] = processors(
                    torch.cat([tokens, new[rows]], dim=1), logits[rows].clone()
                )
        if not self._randoms:
            return scores.argmax(-1)
        drawn = [torch.rand((), generator=random, dtype=torch.float64) for random in self._randoms]
        shares = scores.double().softmax(-1).cumsum(-1)
        until = torch.stack(drawn).to(shares.device)[:, None] * shares[:, -1:]
        return (shares <= until).sum(-1)


def refuse_decoding(module: Any) -> None:
    """Raise ModelError, naming it, for a generation setting that single tokens cannot obey."""
    config = module.generation_config
    for name, nothing in _OTHERS.items():
        value = getattr(config, name, None)
        if value is not None and value not in nothing:
            raise ModelError(
                f"generation_config asks for {name}={value!r}; texts are decoded greedily or"
                f" sampled here: set model.module.generation_config.{name} to None"
            )


def ending_tokens(module: Any) -> list[int]:
    """Return the tokens that end a response, as the model's own generation settings name them."""
    return _ids(getattr(module.generation_config, "eos_token_id", None))


def padding_token(module: Any, tokenizer: Any) -> int:
    """Return what pads an ended response, as in transformers: the padding token or an end token."""
    named = [*_ids(getattr(module.generation_config, "pad_token_id", None)), *ending_tokens(module)]
    named += _ids(getattr(tokenizer, "pad_token_id", None))
    n_vocab = int(module.get_input_embeddings().weight.shape[0])
    return next((token for token in named if 0 <= token < n_vocab), 0)


def _ids(given: Any) -> list[int]:
    if given is None:
        return []
    listed = given.tolist() if isinstance(given, Tensor) else given
    return [int(token) for token in listed] if isinstance(listed, list | tuple) else [int(listed)]


def _processors(module: Any, tokens: Tensor, max_length: int, temperature: float) -> Any:
    """Return transformers' processors for prompts [batch pos] of one length."""
    config = copy.deepcopy(module.generation_config)
    config.do_sample, config.temperature, config.max_length = (
        temperature > 0,
        temperature or None,
        max_length,
    )
    module._prepare_special_tokens(config, True, device=tokens.device)
    try:
        return module._get_logits_processor(
            config,
            input_ids_seq_length=tokens.shape[1],
            encoder_input_ids=tokens,
            device=tokens.device,
            model_kwargs={},
        )
    except (TypeError, ValueError) as error:
        raise ModelError(f"generation_config cannot be honoured: {error}") from None


def _randoms(rows: Sequence[Sequence[int]], seed: int | Sequence[int]) -> list[torch.Generator]:
    """Return random numbers per prompt, from its seed, its tokens and how often it came before."""
    seeds = [seed] * len(rows) if isinstance(seed, int) else [*seed]
    seen: Counter[str] = Counter()
    randoms = []
    for own, row in zip(seeds, rows, strict=True):
        name = f"{own}:{','.join(map(str, row))}"
        digest = hashlib.blake2b(f"{name}:{seen[name]}".encode(), digest_size=7).digest()
        seen[name] += 1
        randoms.append(torch.Generator().manual_seed(int.from_bytes(digest, "little")))
    return randoms
