"""A task: a named list of prompts, read from files, tables, texts or token ids."""

import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from interp.errors import TaskError
from interp.figures.words import counted, shortened
from interp.tasks.given import distinct, list_of_texts
from interp.tasks.prompts import Prompt
from interp.tasks.records import (
    NAMES,
    read_file,
    read_ids_rows,
    read_rows,
    rows_of,
    rows_of_frame,
)
from interp.tasks.spacing import Space, check_space

if TYPE_CHECKING:
    import pandas as pd

SHARD = 32
Need = Literal["known_words", "single_token_answer", "aligned_twin"]


@dataclass(frozen=True, repr=False)
class Task:
    """A named list of prompts.

    `needs` says what a tokenizer must do with its prompts (`Model.fit` leaves out the others).
    `related` has further prompts, by the id of a prompt and their kind: its first hop, its second
    hop, its shortcuts. With `chat`, texts are user messages in each model's own chat template.
    `names` are what token ids stand for, if prompts are ids.
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

    def __repr__(self) -> str:
        first = self.prompts[0]
        example = repr(shortened(first.text)) + (f" → {first.answer!r}" if first.answer else "")
        return f"Task({self.name!r}: {counted(len(self), 'prompt')}, such as {example})"

    def of(self, prompts: Iterable[Prompt]) -> Self:
        """Return this task with only some of its prompts."""
        kept = tuple(prompts)
        ids = {prompt.id for prompt in kept}
        return replace(
            self,
            prompts=kept,
            related={key: value for key, value in self.related.items() if key in ids},
        )

    def take(self, n: int, *, seed: int = 0) -> Self:
        """Return `n` prompts drawn without replacement; all of them if there are fewer."""
        if n < 1:
            raise TaskError(f"{n} prompts asked for; at least 1 is needed")
        return self.of(random.Random(seed).sample(self.prompts, k=min(n, len(self.prompts))))

    def tagged(self, **tags: str) -> Self:
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

    def spaced(self, space: Space) -> Self:
        """Return this task, and its related prompts, with answers spaced from texts in this way."""
        check_space(space)
        related = {
            key: {what: replace(prompt, space=space) for what, prompt in others.items()}
            for key, others in self.related.items()
        }
        return replace(
            self, prompts=tuple(replace(p, space=space) for p in self.prompts), related=related
        )

    def _spaced(self, space: Space) -> Self:
        """Return this task spaced in this way; "auto" keeps what its prompts say."""
        return self if space == "auto" else self.spaced(space)

    def shards(self, alike_by: Callable[[Prompt], Any]) -> list[tuple[Prompt, ...]]:
        """Return groups of up to 32 prompts for which `alike_by` is the same, in its order.

        `alike_by` begins with a prompt's length, so shards need no padding. A shard is the unit of
        resuming and distribution. Prompts with and without a field that analyses use, such as an
        answer, are in different shards.
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
        """Return a dictionary per prompt, without empty fields; `related` prompts have no ids."""
        records = []
        for prompt in self.prompts:
            related = {
                name: other.to_record() for name, other in self.related.get(prompt.id, {}).items()
            }
            for record in related.values():
                del record["id"]
            records.append(prompt.to_record() | ({"related": related} if related else {}))
        return records

    def to_jsonl(self, path: str | Path) -> None:
        """Write one prompt per line, and any names of tokens to NAME.names.json next to it."""
        Path(path).write_text(self.to_lines(), encoding="utf-8")
        if self.names:
            Path(path).with_suffix(NAMES).write_text(
                json.dumps(self.names, ensure_ascii=False), encoding="utf-8"
            )

    def to_lines(self) -> str:
        """Return a JSON object per prompt, one per line."""
        return "".join(
            f"{json.dumps(record, ensure_ascii=False)}\n" for record in self.to_records()
        )

    def to_frame(self) -> "pd.DataFrame":
        """Return a row per prompt, tags as columns `tag_…`, without fields that no prompt has."""
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
    ) -> Self:
        """Read one prompt a line; raise TaskError with the line's number for what is no prompt.

        A line may have "tokens" instead of "text": ids, with answer, wrong, corrupted and bridge
        given as ids too. Where NAME.names.json stands beside NAME.jsonl, its list says what each id
        stands for. The other parameters are those of `from_hf`.
        """
        path = Path(path)
        prompts, related, names = read_file(path, column_map)
        return cls(name or path.stem, prompts, related=related, chat=chat, names=names)._spaced(
            space
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
    ) -> Self:
        """Return a task from the rows of a Hugging Face data set, or any rows of named columns.

        `column_map` maps fields of `Prompt` to columns, such as {"text": "question", "choices":
        "choices", "answer": "answerKey"}. An answer may name one of the choices by its label (given
        with the choices, or as a column "labels"), its letter, its number (from 0) or its text;
        what could mean two options is refused. `split` takes one split of several. With `chat`,
        texts are what a user says. `space` is how answers follow texts.
        """
        prompts, related = read_rows(rows_of(dataset, split), column_map)
        return cls(name, prompts, related=related, chat=chat)._spaced(space)

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        column_map: Mapping[str, str] | None = None,
        *,
        name: str = "frame",
        chat: bool = False,
        space: Space = "auto",
    ) -> Self:
        """Return a task from a pandas frame; columns `tag_…` become tags, empty cells nothing."""
        rows, has_tags = rows_of_frame(frame)
        if column_map is not None and has_tags:
            column_map = {**column_map, "tags": "tags"}
        prompts, related = read_rows(rows, column_map)
        return cls(name, prompts, related=related, chat=chat)._spaced(space)

    @classmethod
    def from_texts(
        cls, texts: Any, *, name: str = "texts", chat: bool = False, space: Space = "auto"
    ) -> Self:
        """Return a task of plain texts without answers; with `chat`, of what a user says."""
        numbered = enumerate(list_of_texts(texts, "texts"))
        prompts = tuple(Prompt(str(i), text) for i, text in numbered)
        return cls(name, prompts, chat=chat)._spaced(space)

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
    ) -> Self:
        """Return a task whose prompts are token ids: lists of ids, or a tensor [prompt pos].

        `answers` and `wrong` hold an id, or ids, for each prompt (None: it has none), `corrupted`
        the ids of its twin. `names` say what each id stands for, such as an amino acid or a note;
        without them ids are shown as numbers.
        """
        columns = {"answer": answers, "wrong": wrong, "corrupted": corrupted}
        given = {key: value for key, value in columns.items() if value is not None}
        known = () if names is None else distinct(list_of_texts(names, "names"))
        return cls(name, read_ids_rows(rows, given, names=known), names=known)
