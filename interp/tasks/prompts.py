"""Prompts and what is asked of them."""

import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from interp.errors import TaskError, unknown

SHARD = 32


@dataclass(frozen=True)
class Prompt:
    """A text whose continuation is asked for, and what is known about it; all but `id` and `text` are optional."""

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
    """Return a text with an answer behind it, one space between them unless either brings its own."""
    space = "" if text[-1:].isspace() or answer[:1].isspace() else " "
    return f"{text}{space}{answer}"


@dataclass(frozen=True)
class Task:
    """A named list of prompts."""

    name: str
    prompts: tuple[Prompt, ...]
    about: str = ""

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

    def take(self, n: int, *, seed: int = 0) -> "Task":
        """Return `n` prompts drawn without replacement; all of them if there are fewer."""
        if n < 1:
            raise TaskError(f"{n} prompts asked for; at least 1 is needed")
        drawn = random.Random(seed).sample(self.prompts, k=min(n, len(self.prompts)))
        return Task(self.name, tuple(drawn), self.about)

    def shards(self, length_of: Callable[[Prompt], int]) -> list[tuple[Prompt, ...]]:
        """Return groups of up to 32 prompts of one length, in order of length and then of the task.

        A shard is the unit of resume and of distribution, and needs no padding.
        """
        by_length: dict[int, list[Prompt]] = {}
        for prompt in self.prompts:
            by_length.setdefault(length_of(prompt), []).append(prompt)
        return [
            tuple(same_length[i : i + SHARD])
            for _, same_length in sorted(by_length.items())
            for i in range(0, len(same_length), SHARD)
        ]

    def to_jsonl(self, path: Path) -> None:
        """Write one prompt a line, without empty fields."""
        lines = [
            json.dumps({key: value for key, value in asdict(prompt).items() if value}, ensure_ascii=False)
            for prompt in self.prompts
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    @classmethod
    def from_jsonl(cls, path: str | Path, *, name: str | None = None) -> "Task":
        """Read one prompt a line; raise TaskError with the line's number for anything that is not a prompt."""
        path = Path(path)
        if not path.is_file():
            raise TaskError(f"no file {path}")
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            line = path.read_bytes()[: error.start].count(b"\n") + 1
            raise TaskError(f"{path}:{line}: not UTF-8 (byte {error.start})") from None
        prompts = [_parse(line, f"{path}:{i}", str(i)) for i, line in enumerate(lines, 1) if line.strip()]
        return cls(name or path.stem, tuple(prompts))

    @classmethod
    def from_texts(cls, texts: Iterable[str], *, name: str = "texts") -> "Task":
        """Return a task of plain texts without answers."""
        return cls(name, tuple(Prompt(str(i), text) for i, text in enumerate(texts)))


_FIELDS = {f.name for f in fields(Prompt)}


def _parse(line: str, where: str, number: str) -> Prompt:
    try:
        record: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise TaskError(f"{where}: not JSON ({error})") from None
    if not isinstance(record, dict):
        raise TaskError(f"{where}: {type(record).__name__} given; a JSON object is needed")
    for key in record.keys() - _FIELDS:
        raise TaskError(f"{where}: {unknown('field', key, _FIELDS)}")
    record.setdefault("id", number)
    record["id"] = str(record["id"])
    for key, value in record.items():
        if key in ("aliases", "choices"):
            if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
                raise TaskError(f"{where}: {key!r} is {value!r}; a list of strings is needed")
            record[key] = tuple(value)
        elif key == "tags":
            if not (isinstance(value, dict) and all(isinstance(item, str) for item in value.values())):
                raise TaskError(f"{where}: 'tags' is {value!r}; an object of strings is needed")
        elif not isinstance(value, str):
            raise TaskError(f"{where}: {key!r} is {value!r}; a string is needed")
    if not record.get("text", "").strip():
        raise TaskError(f"{where}: no 'text'")
    return Prompt(**record)
