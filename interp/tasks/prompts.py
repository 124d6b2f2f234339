"""Prompts and what is asked of them."""

import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from interp.errors import TaskError

if TYPE_CHECKING:
    import pandas as pd

SHARD = 32
Need = Literal["known_words", "single_token_answer", "aligned_twin"]


@dataclass(frozen=True)
class Prompt:
    """A text whose continuation is asked for, and what is known about it; all but `id` and `text` are optional.

    `aliases` are other right answers; `corrupted` is a twin of the text in which something else, usually `wrong`, is right;
    `subject` is the phrase that names the first hop's entity, `bridge` the answer of the first hop.
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


def followed_by(text: str, answer: str) -> str:
    """Return a text with an answer behind it, one space between them unless either brings its own or a number goes on."""
    goes_on = text[-1:].isdigit() and answer[:1].isdigit()
    space = "" if text[-1:].isspace() or answer[:1].isspace() or goes_on else " "
    return f"{text}{space}{answer}"


@dataclass(frozen=True)
class Task:
    """A named list of prompts.

    `needs` says what its prompts must be for a tokenizer (`Model.fit` leaves out those that are not). `related` holds
    further prompts by the id of a prompt and what they ask: its first hop, its second hop, its shortcuts. With `chat`, texts
    are what a user says, and each model puts them into its own chat template.
    """

    name: str
    prompts: tuple[Prompt, ...]
    about: str = ""
    needs: tuple[Need, ...] = ()
    related: Mapping[str, Mapping[str, Prompt]] = field(default_factory=dict, repr=False)
    chat: bool = False

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
        return replace(self, prompts=kept, related={key: value for key, value in self.related.items() if key in ids})

    def take(self, n: int, *, seed: int = 0) -> "Task":
        """Return `n` prompts drawn without replacement; all of them if there are fewer."""
        if n < 1:
            raise TaskError(f"{n} prompts asked for; at least 1 is needed")
        return self.of(random.Random(seed).sample(self.prompts, k=min(n, len(self.prompts))))

    def tagged(self, **tags: str) -> "Task":
        """Return the prompts with these tags; raise TaskError if there are none."""
        kept = [p for p in self.prompts if all(p.tags.get(key) == value for key, value in tags.items())]
        if not kept:
            values = {key: sorted({p.tags[key] for p in self.prompts if key in p.tags}) for key in tags}
            raise TaskError(f"task {self.name!r} has no prompts tagged {tags}; there is {values}")
        return self.of(kept)

    def shards(self, length_of: Callable[[Prompt], int]) -> list[tuple[Prompt, ...]]:
        """Return groups of up to 32 prompts of one length, in order of length and then of the task.

        A shard is the unit of resume and of distribution, and needs no padding. What one prompt of a shard lacks, such as
        an answer, cannot be asked of the shard, so prompts that have it stand apart from those that do not.
        """
        alike: dict[tuple[object, ...], list[Prompt]] = {}
        for prompt in self.prompts:
            there = (getattr(prompt, name) is not None for name in ("answer", "wrong", "subject", "bridge", "corrupted"))
            alike.setdefault((length_of(prompt), *there), []).append(prompt)
        return [tuple(group[i : i + SHARD]) for _, group in sorted(alike.items()) for i in range(0, len(group), SHARD)]

    def to_records(self) -> list[dict[str, Any]]:
        """Return one dictionary a prompt, without empty fields; what is related stands under `related`, without ids."""
        records = []
        for prompt in self.prompts:
            related = {name: _filled(other) for name, other in self.related.get(prompt.id, {}).items()}
            for record in related.values():
                del record["id"]
            records.append(_filled(prompt) | ({"related": related} if related else {}))
        return records

    def to_jsonl(self, path: str | Path) -> None:
        """Write one prompt a line, without empty fields."""
        Path(path).write_text(self.to_lines(), encoding="utf-8")

    def to_lines(self) -> str:
        """Return one JSON object a prompt, each on a line."""
        return "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in self.to_records())

    def to_frame(self) -> "pd.DataFrame":
        """Return one row a prompt, tags as columns `tag_…`; fields that no prompt has are left out."""
        import pandas as pd

        rows = [{k: v for k, v in record.items() if k not in ("tags", "related")} for record in self.to_records()]
        tags = [{f"tag_{key}": value for key, value in prompt.tags.items()} for prompt in self.prompts]
        return pd.DataFrame([row | more for row, more in zip(rows, tags, strict=True)])

    @classmethod
    def from_jsonl(cls, path: str | Path, *, name: str | None = None, column_map: Mapping[str, str] | None = None) -> "Task":
        """Read one prompt a line; raise TaskError with the line's number for anything that is not a prompt."""
        from interp.tasks.records import read_prompts, rows_of_file

        prompts, related = read_prompts(rows_of_file(Path(path)), column_map)
        return cls(name or Path(path).stem, prompts, related=related)

    @classmethod
    def from_hf(
        cls, dataset: Iterable[Mapping[str, Any]], column_map: Mapping[str, str] | None = None, *, name: str = "dataset"
    ) -> "Task":
        """Return a task from the rows of a Hugging Face data set, or any rows of named columns.

        `column_map` maps fields of `Prompt` to columns, such as {"text": "question", "choices": "choices", "answer":
        "answerKey"}. An answer may name one of the choices by its text, label, letter or number (from 0).
        """
        from interp.tasks.records import read_prompts

        prompts, related = read_prompts(((f"row {i}", row) for i, row in enumerate(dataset, 1)), column_map)
        return cls(name, prompts, related=related)

    @classmethod
    def from_frame(
        cls, frame: "pd.DataFrame", column_map: Mapping[str, str] | None = None, *, name: str = "frame"
    ) -> "Task":
        """Return a task from a pandas frame; columns `tag_…` become tags, empty cells are left out."""
        tags = [column for column in frame.columns if str(column).startswith("tag_")]
        rows = frame.to_dict("records")
        for row in rows:
            found = {str(key).removeprefix("tag_"): row.pop(key) for key in tags}
            found = {key: value for key, value in found.items() if isinstance(value, str)}
            if found:
                row["tags"] = found
        column_map = None if column_map is None else {**column_map, **({"tags": "tags"} if tags else {})}
        return cls.from_hf([{str(k): v for k, v in row.items()} for row in rows], column_map, name=name)

    @classmethod
    def from_texts(cls, texts: Iterable[str], *, name: str = "texts", chat: bool = False) -> "Task":
        """Return a task of plain texts without answers; with `chat`, of what a user says to a chat model."""
        return cls(name, tuple(Prompt(str(i), text) for i, text in enumerate(texts)), chat=chat)


def _filled(prompt: Prompt) -> dict[str, Any]:
    return {key: value for key, value in asdict(prompt).items() if value}
