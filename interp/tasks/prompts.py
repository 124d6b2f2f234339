"""Prompts and what is asked of them."""

import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from interp.errors import TaskError
from interp.tasks.given import (
    distinct,
    is_id,
    is_missing,
    list_of,
    list_of_texts,
    read_ids,
    spelled,
)
from interp.tasks.spacing import Space, check_space, space_between

if TYPE_CHECKING:
    import pandas as pd

SHARD = 32
NAMES = ".names.json"
Need = Literal["known_words", "single_token_answer", "aligned_twin"]
_OPTIONAL_TEXTS = ("answer", "wrong", "corrupted", "subject", "bridge")


@dataclass(frozen=True)
class Prompt:
    """A text whose continuation is asked for, and what is known about it; all but `id` and `text`
    are optional.

    `aliases` are other right answers; `corrupted` is a twin of the text in which something else,
    usually `wrong`, is right; `subject` is the phrase that names the first hop's entity, `bridge`
    the first hop's answer. `answer_index` says which of the `choices` is the answer, where two read
    the same. `space` is how answers follow the text. With `tokens` the prompt is these ids, as they
    are, and `spelling` has the ids of its answers, choices and twin, by text. Blank texts are
    missing. Raises TaskError for what is no prompt.
    """

    id: str
    text: str
    answer: str | None = None
    wrong: str | None = None
    corrupted: str | None = None
    subject: str | None = None
    bridge: str | None = None
    aliases: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    answer_index: int | None = None
    space: Space = "auto"
    tokens: tuple[int, ...] | None = None
    spelling: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"prompt {self.id!r}"
        if not isinstance(self.id, str):
            raise TaskError(f"prompt id {self.id!r:.80} is {_type(self.id)}; a string is needed")
        self._set("tokens", None if self.tokens is None else read_ids(self.tokens, where))
        if self.tokens is not None and is_missing(self.text):
            self._set("text", spelled(self.tokens))
        for name in ("text", *_OPTIONAL_TEXTS):
            value = getattr(self, name)
            if is_missing(value):
                self._set(name, None)
            elif not isinstance(value, str):
                raise TaskError(f"{where}: {name!r} is {value!r:.80}; a string is needed")
        if self.text is None:
            raise TaskError(f"{where}: no 'text'")
        for name in ("aliases", "choices"):
            self._set(name, list_of_texts(getattr(self, name), f"{where}: {name!r}"))
        self._set("aliases", tuple(alias for alias in self.aliases if alias.strip()))
        if not all(choice.strip() for choice in self.choices):
            raise TaskError(f"{where}: one of its {len(self.choices)} choices is empty")
        check_space(self.space)
        self._choose(where)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _choose(self, where: str) -> None:
        """Let the answer be one option where it is any, and the one at `answer_index` where that is
        given.
        """
        if self.answer_index is None:
            if self.choices.count(self.answer or "") > 1:
                raise TaskError(
                    f"{where}: several choices are {self.answer!r}; answer_index says which is the"
                    " answer"
                )
            return
        if isinstance(self.answer_index, bool) or not isinstance(self.answer_index, int):
            raise TaskError(
                f"{where}: answer_index is {self.answer_index!r:.80}; a whole number is needed"
            )
        if not 0 <= self.answer_index < len(self.choices):
            raise TaskError(
                f"{where}: answer_index is {self.answer_index}; there are {len(self.choices)}"
                " choices, from 0 on"
            )
        option = self.choices[self.answer_index]
        if self.answer not in (None, option):
            raise TaskError(
                f"{where}: the answer is {self.answer!r}, and choice {self.answer_index} is"
                f" {option!r}"
            )
        self._set("answer", option)

    @property
    def option(self) -> int | None:
        """Return which of the choices is the answer, if one of them is."""
        if self.answer_index is not None:
            return self.answer_index
        return self.choices.index(self.answer) if self.answer in self.choices else None


def followed_by(text: str, answer: str, *, space: Space = "auto") -> str:
    """Return a text with an answer behind it, with a space between them where a writer would leave
    one.
    """
    return f"{text}{space_between(text, answer, space)}{answer}"


def _type(value: object) -> str:
    return type(value).__name__


@dataclass(frozen=True)
class Task:
    """A named list of prompts.

    `needs` says what its prompts must be for a tokenizer (`Model.fit` leaves out those that are
    not). `related` holds further prompts by the id of a prompt and what they ask: its first hop,
    its second hop, its shortcuts. With `chat`, texts are what a user says, and each model puts them
    into its own chat template. `names` are what token ids stand for, where prompts are ids.
    """

    name: str
    prompts: tuple[Prompt, ...]
    about: str = ""
    needs: tuple[Need, ...] = ()
    related: Mapping[str, Mapping[str, Prompt]] = field(default_factory=dict, repr=False)
    chat: bool = False
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompts:
            raise TaskError(f"task {self.name!r} has no prompts")
        seen: set[str] = set()
        for prompt in self.prompts:
            if prompt.id in seen:
                raise TaskError(f"task {self.name!r} has two prompts with the id {prompt.id!r}")
            seen.add(prompt.id)

    def __len__(self) -> int:
        return len(self.prompts)

    def of(self, prompts: Iterable[Prompt]) -> "Task":
        """Return this task with some of its prompts."""
        kept = tuple(prompts)
        ids = {prompt.id for prompt in kept}
        return replace(
            self,
            prompts=kept,
            related={key: value for key, value in self.related.items() if key in ids},
        )

    def take(self, n: int, *, seed: int = 0) -> "Task":
        """Return `n` prompts drawn without replacement; all of them if there are fewer."""
        if n < 1:
            raise TaskError(f"{n} prompts asked for; at least 1 is needed")
        return self.of(random.Random(seed).sample(self.prompts, k=min(n, len(self.prompts))))

    def tagged(self, **tags: str) -> "Task":
        """Return the prompts with these tags; raise TaskError if there are none."""
        kept = [
            p for p in self.prompts if all(p.tags.get(key) == value for key, value in tags.items())
        ]
        if not kept:
            values = {
                key: sorted({p.tags[key] for p in self.prompts if key in p.tags}) for key in tags
            }
            raise TaskError(f"task {self.name!r} has no prompts tagged {tags}; there is {values}")
        return self.of(kept)

    def spaced(self, space: Space) -> "Task":
        """Return this task with answers that follow their texts in this way, those of related
        prompts too.
        """
        check_space(space)
        related = {
            key: {what: replace(prompt, space=space) for what, prompt in others.items()}
            for key, others in self.related.items()
        }
        return replace(
            self, prompts=tuple(replace(p, space=space) for p in self.prompts), related=related
        )

    def shards(self, alike_by: Callable[[Prompt], Any]) -> list[tuple[Prompt, ...]]:
        """Return groups of up to 32 prompts for which `alike_by`, their length first, is the same,
        in its order.

        A shard is the unit of resume and of distribution, and needs no padding. What one prompt of
        a shard lacks, such as an answer, cannot be asked of the shard, so prompts that have it
        stand apart from those that do not.
        """
        alike: dict[tuple[object, ...], list[Prompt]] = {}
        for prompt in self.prompts:
            there = (
                getattr(prompt, name) is not None
                for name in ("answer", "wrong", "subject", "bridge", "corrupted")
            )
            alike.setdefault((alike_by(prompt), *there), []).append(prompt)
        return [
            tuple(group[i : i + SHARD])
            for _, group in sorted(alike.items())
            for i in range(0, len(group), SHARD)
        ]

    def to_records(self) -> list[dict[str, Any]]:
        """Return one dictionary a prompt, without empty fields; what is related stands under
        `related`, without ids.
        """
        records = []
        for prompt in self.prompts:
            related = {
                name: _filled(other) for name, other in self.related.get(prompt.id, {}).items()
            }
            for record in related.values():
                del record["id"]
            records.append(_filled(prompt) | ({"related": related} if related else {}))
        return records

    def to_jsonl(self, path: str | Path) -> None:
        """Write one prompt a line, without empty fields; names of tokens go into NAME.names.json
        beside it.
        """
        Path(path).write_text(self.to_lines(), encoding="utf-8")
        if self.names:
            Path(path).with_suffix(NAMES).write_text(
                json.dumps(self.names, ensure_ascii=False), encoding="utf-8"
            )

    def to_lines(self) -> str:
        """Return one JSON object a prompt, each on a line."""
        return "".join(
            f"{json.dumps(record, ensure_ascii=False)}\n" for record in self.to_records()
        )

    def to_frame(self) -> "pd.DataFrame":
        """Return one row a prompt, tags as columns `tag_…`; fields that no prompt has are left out."""
        import pandas as pd

        rows = [
            {k: v for k, v in record.items() if k not in ("tags", "related")}
            for record in self.to_records()
        ]
        tags = [
            {f"tag_{key}": value for key, value in prompt.tags.items()} for prompt in self.prompts
        ]
        return pd.DataFrame([row | more for row, more in zip(rows, tags, strict=True)])

    @classmethod
    def from_jsonl(
        cls,
        path: str | Path,
        *,
        name: str | None = None,
        column_map: Mapping[str, str] | None = None,
        chat: bool = False,
        space: Space = "auto",
    ) -> "Task":
        """Read one prompt a line; raise TaskError with the line's number for anything that is not a
        prompt.

        A line may have "tokens" instead of "text": ids, with answer, wrong, corrupted and bridge
        given as ids too. Where NAME.names.json stands beside NAME.jsonl, its list says what each id
        stands for. The other parameters are those of `from_hf`.
        """
        from interp.tasks.records import names_beside, read_prompts, rows_of_file

        names = names_beside(Path(path))
        prompts, related = read_prompts(rows_of_file(Path(path)), column_map, names=names)
        return cls._made(
            name or Path(path).stem, prompts, related=related, chat=chat, space=space, names=names
        )

    @classmethod
    def from_hf(
        cls,
        dataset: Any,
        column_map: Mapping[str, str] | None = None,
        *,
        name: str = "dataset",
        split: str | None = None,
        chat: bool = False,
        space: Space = "auto",
    ) -> "Task":
        """Return a task from the rows of a Hugging Face data set, or any rows of named columns.

        `column_map` maps fields of `Prompt` to columns, such as {"text": "question", "choices":
        "choices", "answer": "answerKey"}. An answer may name one of the choices by its label (given
        with the choices, or as a column "labels"), its letter, its number (from 0) or its text;
        what could mean two options is refused. `split` takes one split of several. With `chat`,
        texts are what a user says. `space` is how answers follow texts.
        """
        from interp.tasks.records import read_prompts, rows_of

        prompts, related = read_prompts(
            ((f"row {i}", row) for i, row in enumerate(rows_of(dataset, split), 1)), column_map
        )
        return cls._made(name, prompts, related=related, chat=chat, space=space)

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        column_map: Mapping[str, str] | None = None,
        *,
        name: str = "frame",
        chat: bool = False,
        space: Space = "auto",
    ) -> "Task":
        """Return a task from a pandas frame; columns `tag_…` become tags, empty cells are left out."""
        from interp.tasks.records import read_prompts, rows_of_frame

        rows, tags = rows_of_frame(frame)
        if column_map is not None and tags:
            column_map = {**column_map, "tags": "tags"}
        prompts, related = read_prompts(
            ((f"row {i}", row) for i, row in enumerate(rows, 1)), column_map
        )
        return cls._made(name, prompts, related=related, chat=chat, space=space)

    @classmethod
    def from_texts(
        cls, texts: Any, *, name: str = "texts", chat: bool = False, space: Space = "auto"
    ) -> "Task":
        """Return a task of a list of plain texts without answers; with `chat`, of what a user says
        to a chat model.
        """
        prompts = tuple(
            Prompt(str(i), text) for i, text in enumerate(list_of_texts(texts, "texts"))
        )
        return cls._made(name, prompts, chat=chat, space=space)

    @classmethod
    def from_tokens(
        cls,
        rows: Any,
        *,
        answers: Any = None,
        wrong: Any = None,
        corrupted: Any = None,
        names: Any = None,
        name: str = "tokens",
    ) -> "Task":
        """Return a task whose prompts are token ids, fed as they are: lists of ids, or a tensor
        [prompt pos].

        `answers` and `wrong` hold an id, or ids, for each prompt (None: it has none), `corrupted`
        the ids of its twin. `names` say what each id stands for, such as an amino acid or a note;
        without them ids are shown as numbers.
        """
        from interp.tasks.records import read_prompts

        ids = list_of(rows, "rows of token ids")
        if any(map(is_id, ids)):
            raise TaskError("one row of token ids given; a list of rows is needed")
        columns = {"answer": answers, "wrong": wrong, "corrupted": corrupted}
        given = {key: list_of(value, key) for key, value in columns.items() if value is not None}
        for key, values in given.items():
            if len(values) != len(ids):
                raise TaskError(
                    f"{len(values)} {key} given for {len(ids)} prompts; one each is needed"
                )
        known = () if names is None else distinct(list_of_texts(names, "names"))
        records = [
            {"tokens": row} | {key: values[i] for key, values in given.items()}
            for i, row in enumerate(ids)
        ]
        numbered = ((f"row {i + 1}", {"id": str(i)} | record) for i, record in enumerate(records))
        prompts, _ = read_prompts(numbered, names=known)
        return cls(name, prompts, names=known)

    @classmethod
    def _made(cls, name: str, prompts: Iterable[Prompt], *, space: Space, **about: Any) -> "Task":
        task = cls(name, tuple(prompts), **about)
        return task if space == "auto" else task.spaced(space)


def _filled(prompt: Prompt) -> dict[str, Any]:
    empty = {"space": "auto"}
    return {
        key: value
        for key, value in asdict(prompt).items()
        if value not in (None, "", (), {}, empty.get(key))
    }
