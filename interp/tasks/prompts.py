"""A prompt and what is asked of it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any

from interp.errors import TaskError
from interp.figures.words import counted, shortened
from interp.tasks.given import is_missing, list_of_texts, read_ids, spelled
from interp.tasks.spacing import Space, check_space, space_between

_OPTIONAL_TEXTS = ("answer", "wrong", "corrupted", "subject", "bridge", "group")
_SHOWN = ("answer", "wrong", "subject", "bridge")  # in a repr, where they are known


@dataclass(frozen=True, repr=False)
class Prompt:
    """A text to be continued, and what is known about it.

    All but `id` and `text` are optional. `aliases` are other right answers; `corrupted` is a twin
    of the text with another right answer, usually `wrong`; `subject` is the phrase that names the
    first hop's entity, `bridge` the first hop's answer. Prompts of one `group` share a fact, a name
    or a text, and count as one draw in intervals. `answer_index` says which of the `choices` is the
    answer if two have the same text. `space` says how answers follow the text. With `tokens` the
    prompt is these ids, unchanged, and `spelling` has the ids of its answers, choices and twin, by
    text. Blank texts count as missing. Raises TaskError if a field is invalid.
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
    group: str | None = None

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

    def __repr__(self) -> str:
        known = {name: getattr(self, name) for name in _SHOWN}
        more = [f"{name}={shortened(text)!r}" for name, text in known.items() if text]
        if self.choices:
            more.append(counted(len(self.choices), "choice"))
        return f"Prompt({', '.join([repr(self.id), repr(shortened(self.text)), *more])})"

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _choose(self, where: str) -> None:
        """Set the answer to the choice at `answer_index`; refuse an answer that fits several."""
        if self.answer_index is None:
            if self.choices.count(self.answer or "") > 1:
                raise TaskError(
                    f"{where}: several choices are {self.answer!r};"
                    " answer_index says which is the answer"
                )
            return
        if isinstance(self.answer_index, bool) or not isinstance(self.answer_index, int):
            raise TaskError(
                f"{where}: answer_index is {self.answer_index!r:.80}; a whole number is needed"
            )
        if not 0 <= self.answer_index < len(self.choices):
            raise TaskError(
                f"{where}: answer_index is {self.answer_index};"
                f" there are {len(self.choices)} choices, from 0 on"
            )
        option = self.choices[self.answer_index]
        if self.answer not in (None, option):
            raise TaskError(
                f"{where}: the answer is {self.answer!r},"
                f" and choice {self.answer_index} is {option!r}"
            )
        self._set("answer", option)

    @property
    def option(self) -> int | None:
        """Return which of the choices is the answer, if one of them is."""
        if self.answer_index is not None:
            return self.answer_index
        return self.choices.index(self.answer) if self.answer in self.choices else None

    @property
    def drawn(self) -> str:
        """Return what was drawn independently: the group; by default the subject, else the id."""
        return self.group or self.subject or self.id

    def to_record(self) -> dict[str, Any]:
        """Return the fields that are not empty."""
        empty = {"space": "auto"}
        return {
            key: value
            for key, value in asdict(self).items()
            if value not in (None, "", (), {}, empty.get(key))
        }


def key_of(text: str) -> int:
    """Return a number that stands for an id or a group in tensors."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def followed_by(text: str, answer: str, *, space: Space = "auto") -> str:
    """Return a text with an answer after it, and a space between where a writer would put one."""
    return f"{text}{space_between(text, answer, space)}{answer}"


def _type(value: object) -> str:
    return type(value).__name__
