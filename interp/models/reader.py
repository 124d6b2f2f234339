"""Prompts as a model reads them: their tokens, its limits, and the texts it answers with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from interp.errors import ModelError, TaskError
from interp.models.generate import Generation
from interp.tasks import Prompt, Task
from interp.tasks.batch import TokenBatch, as_prompts, tokenize
from interp.tasks.encoding import Encoder, Limits
from interp.tasks.fitting import Fitted, fit


def limits_of(module: PreTrainedModel, *, d_vocab: int) -> Limits:
    """Return which ids a model reads, and how many at once."""
    embedding = module.get_input_embeddings()
    n_ids = d_vocab if embedding is None else min(d_vocab, len(embedding.weight))
    config = module.config.get_text_config()
    return Limits(n_ids, getattr(config, "max_position_embeddings", None))


@dataclass(frozen=True)
class PromptReader:
    """The tokenizer of a model called `name`, if it has one, and which ids the model reads."""

    name: str
    tokenizer: Any
    limits: Limits

    def tokenize(
        self, prompts: Any, *, answers: bool, corrupted: bool, device: torch.device
    ) -> TokenBatch:
        """Return the tokens of prompts; raise TaskError for some that are too long."""
        asked = as_prompts(prompts)
        self._require_tokenizer(asked)
        batch = tokenize(
            self.tokenizer,
            asked,
            answers=answers,
            corrupted=corrupted,
            device=device,
            limits=self.limits,
        )
        longest = self.limits.longest
        if longest is not None and batch.tokens.shape[1] > longest:
            raise TaskError(
                f"a prompt of {batch.tokens.shape[1]} tokens; the model reads at most {longest}"
            )
        return batch

    def fit(self, task: Task) -> Fitted:
        """Return the prompts of a task that can be read; raise TaskError if there are none."""
        self._require_tokenizer(task.prompts[:1])
        return fit(self.tokenizer, task, limits=self.limits)

    def shards(self, task: Task) -> list[tuple[Prompt, ...]]:
        """Return a task's shards."""
        self._require_tokenizer(task.prompts[:1])
        encoded = Encoder(self.tokenizer, self.limits).encode(task.prompts)
        facts = {each.prompt.id: each.facts for each in encoded}
        return task.shards(lambda prompt: facts[prompt.id])

    def options(self, prompt: Prompt, options: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the tokens of options after a prompt."""
        self._require_tokenizer([prompt])
        return Encoder(self.tokenizer, self.limits).options(prompt, options)

    def names(self, ids: Sequence[int]) -> list[str]:
        """Return tokens as the tokenizer writes them, spaces as ␣ and new lines as ↵."""
        if self.tokenizer is None:
            return list(map(str, ids))
        names = zip(self.tokenizer.convert_ids_to_tokens(list(ids)), ids, strict=True)
        return [
            str(i if name is None else name).replace("Ġ", "␣").replace("▁", "␣").replace("Ċ", "↵")
            for name, i in names
        ]

    def refuse_texts(self, prompts: Sequence[Prompt]) -> None:
        """Raise where generated texts cannot be read and compared with the prompts' answers."""
        if self.tokenizer is None:
            raise ModelError(
                f"model {self.name!r} has no tokenizer;"
                " generated texts (max_new_tokens) cannot be read"
            )
        for prompt in prompts:
            ids = list(prompt.spelling.get(prompt.answer or "", ()))
            if ids and str(self.tokenizer.decode(ids)).strip() != (prompt.answer or "").strip():
                raise TaskError(
                    f"prompt {prompt.id!r} is token ids;"
                    " its answer cannot be found in a generated text"
                )

    def refuse_responses(self, batch: TokenBatch, max_new_tokens: int) -> None:
        """Raise TaskError for fewer than 1 new token and for texts too long to be read."""
        if max_new_tokens < 1:
            raise TaskError(f"max_new_tokens={max_new_tokens}; at least 1 is needed")
        n_pos, longest = int(batch.mask.sum(1).max()) + max_new_tokens - 1, self.limits.longest
        if longest is not None and n_pos > longest:
            raise TaskError(
                f"{n_pos} tokens with the response (max_new_tokens={max_new_tokens});"
                f" the model reads {longest}"
            )

    def with_texts(self, generation: Generation) -> Generation:
        """Return a generation with its responses as texts, where there is a tokenizer."""
        if self.tokenizer is None:
            return generation
        response = generation.response
        rows = [
            row[alive].tolist()
            for row, alive in zip(
                generation.tokens[:, response], generation.mask[:, response], strict=True
            )
        ]
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return replace(generation, texts=tuple(texts))

    def _require_tokenizer(self, prompts: Sequence[Prompt]) -> None:
        if self.tokenizer is None and any(prompt.tokens is None for prompt in prompts):
            raise ModelError(
                f"model {self.name!r} has no tokenizer; give token ids, or a tokenizer"
            )
