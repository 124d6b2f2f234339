"""The identity of a number: everything that it depends on, hashed ingredient by ingredient."""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from hashlib import blake2b
from typing import Any

from torch import Tensor

from interp.analysis import Analysis
from interp.models import Model
from interp.runs.own import source_of
from interp.tasks import Prompt, Task
from interp.tasks.batch import TokenBatch

_WORDS = {
    "code": "code of the analysis",
    "others": "weights of the model compared with",
    "generation": "generation settings",
    "related": "related prompts",
}


@dataclass(frozen=True)
class NumberIdentity:
    """Hashes of all that a number depends on: the model, what it was fed, and what was asked.

    `others` are other models that an analysis uses, `code` the file of an analysis from outside
    this library, `related` the prompts that belong to prompts, `tokens` all token ids of prompts,
    answers and twins.
    """

    weights: str
    tokenizer: str
    generation: str
    others: str = ""
    parameters: str = ""
    code: str = ""
    prompts: str = ""
    related: str = ""
    tokens: str = ""

    @property
    def key(self) -> str:
        """Return one hash of everything."""
        return _hash(asdict(self))

    def changed(self, recorded: Mapping[str, str]) -> list[str]:
        """Return, in words, what differs from what was recorded."""
        return [
            _WORDS.get(name, name)
            for name, value in asdict(self).items()
            if recorded.get(name) != value
        ]

    @classmethod
    def of_model(cls, model: Model) -> "NumberIdentity":
        """Return what numbers of a model depend on, before anything is asked of it."""
        generation = model.module.generation_config
        return cls(
            weights=model.fingerprint,
            tokenizer="" if model.tokenizer is None else hash_of_tokenizer(model.tokenizer),
            generation=(
                ""
                if generation is None
                else _hash({**generation.to_dict(), "transformers_version": None})
            ),
        )

    def asking(self, analysis: Analysis, model: Model) -> "NumberIdentity":
        """Return the identity of an analysis's numbers about the same model."""
        return replace(
            self,
            others=_hash(analysis.others(model)),
            parameters=_hash([type(analysis).__name__, asdict(analysis)]),
            code=_code_of(type(analysis)),
        )

    def about(self, shards: Sequence["Fed"]) -> "NumberIdentity":
        """Return the identity of numbers about the prompts of these shards."""
        joined = {
            field.name: _hash([getattr(shard, field.name) for shard in shards])
            for field in fields(Fed)
        }
        return replace(self, **joined)


@dataclass(frozen=True)
class Fed:
    """Hashes of a shard's prompts, of those related to them, and of their token ids."""

    prompts: str
    related: str
    tokens: str

    @classmethod
    def of(cls, task: Task, batch: TokenBatch) -> "Fed":
        """Return the hashes of a shard of a task."""
        return cls(
            prompts=_hash([_settings(task), [vars(prompt) for prompt in batch.prompts]]),
            related=_hash([_related(task, prompt) for prompt in batch.prompts]),
            tokens=_hash([_numbers(batch, field.name) for field in fields(batch)]),
        )


def hash_of_task(task: Task) -> str:
    """Return a hash of a task's prompts, their related prompts, and how they are put to a model."""
    prompts = [[vars(prompt), _related(task, prompt)] for prompt in task.prompts]
    return _hash([_settings(task), prompts])


def hash_of_tokenizer(tokenizer: Any) -> str:
    """Return a hash of how a tokenizer turns text into tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # then its words and settings are known, not its rules
        rules: Any = [
            sorted(tokenizer.get_vocab().items()),
            type(tokenizer).__name__,
            tokenizer.init_kwargs,
        ]
    else:
        rules = {**json.loads(backend.to_str()), "truncation": None, "padding": None}
    return _hash([rules, tokenizer.special_tokens_map, tokenizer.chat_template])


def _code_of(analysis: type[Analysis]) -> str:
    """Return a hash of a user's analysis file; this library's own is known by its version."""
    if analysis.__module__.startswith("interp.analyses."):
        return ""
    if (source := source_of(analysis)) is not None:
        return _hash(source)
    try:
        return _hash(inspect.getsource(inspect.getmodule(analysis) or analysis))
    except (OSError, TypeError):  # made in a notebook or a shell
        return ""


def _settings(task: Task) -> dict[str, Any]:
    """Return what a task says of all its prompts, whichever of them are used."""
    about = ("name", "about", "prompts", "related", "needs")
    return {
        field.name: getattr(task, field.name) for field in fields(task) if field.name not in about
    }


def _related(task: Task, prompt: Prompt) -> dict[str, Any]:
    return {name: vars(other) for name, other in task.related.get(prompt.id, {}).items()}


def _numbers(batch: TokenBatch, name: str) -> Any:
    value = getattr(batch, name)
    return value.tolist() if isinstance(value, Tensor) else None


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=_plain)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
