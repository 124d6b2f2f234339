"""From prompts to token ids: what a model is fed, what can be asked, and why not the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from interp.errors import TaskError
from interp.figures.words import counted
from interp.tasks.given import Ids
from interp.tasks.prompts import Prompt, followed_by

UNKNOWN = "with words that the tokenizer does not know"
TOO_LONG = "longer than the model reads"
EMPTY = "without a token"
OUTSIDE = "with token ids that the model does not have"
NO_TOKENIZER = "of text, for a model without a tokenizer"

Offsets = Sequence[tuple[int, int]]
_FOLLOWING = ("answer", "wrong", "bridge")
_PROBES = ("a", "the", "0", "b c")


@dataclass(frozen=True)
class Limits:
    """What a model takes: ids below `n_ids`, prompts of up to `longest` tokens; None: no limit."""

    n_ids: int | None = None
    longest: int | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Encoded:
    """A prompt's tokens, and the tokens of what is asked of it.

    `subject` are the first and last position of its first-hop phrase, `corrupted` its twin's
    tokens, equally many. What is missing or unusable is None, and `why` says why by field. `misfit`
    is why the whole prompt cannot be used; `problem` is the same in full.
    """

    prompt: Prompt
    tokens: Ids
    answer: Ids | None = None
    wrong: Ids | None = None
    bridge: Ids | None = None
    subject: tuple[int, int] | None = None
    corrupted: Ids | None = None
    why: Mapping[str, str] = field(default_factory=dict)
    misfit: str = ""
    problem: str = ""

    @property
    def facts(self) -> tuple[int, ...]:
        """Return what prompts of one shard share: their length, and what can be asked of them."""
        there = (self.answer, self.wrong, self.subject, self.bridge, self.corrupted)
        return (len(self.tokens), *(int(value is not None) for value in there))


@dataclass(frozen=True, eq=False)
class Encoder:
    """Turns texts into ids, with the tokenizer's special tokens in front and none behind."""

    tokenizer: Any
    limits: Limits = NO_LIMITS

    @cached_property
    def front(self) -> list[int]:
        """Return the special tokens (BOS) that the tokenizer puts before every text."""
        return [] if self.tokenizer is None else special_tokens(self.tokenizer)[0]

    @cached_property
    def _unknown(self) -> tuple[int | None, set[str]]:
        """Return the id of unknown words, and the texts that are this token itself."""
        tokenizer = self.tokenizer
        token = None if tokenizer is None else tokenizer.unk_token_id
        itself = set() if token is None else {str(tokenizer.unk_token), tokenizer.decode([token])}
        return token, {text.strip() for text in itself}

    def own(self, texts: Sequence[str]) -> list[list[int]]:
        """Return every text's own tokens, without special ones."""
        if not texts:
            return []
        return [
            list(row) for row in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        ]

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Return every text's tokens, with what is put in front."""
        return list(map(self.fronted, self.own(texts)))

    def fronted(self, own: list[int]) -> list[int]:
        """Return tokens with what is put before them, unless the text brings it."""
        return own if self.front and own[: len(self.front)] == self.front else [*self.front, *own]

    def unknown_words(self, text: str, own: Sequence[int]) -> bool:
        """Tell whether a text has words that the tokenizer does not know."""
        token, itself = self._unknown
        if token is None or token not in own:
            return False
        pieces = [
            text[a:b].strip()
            for (a, b), i in zip(self.offsets(text, own), own, strict=True)
            if i == token
        ]
        return not all(piece in itself for piece in pieces)

    def offsets(self, text: str, own: Sequence[int]) -> Offsets:
        """Return where each token stands in a text; by decoding, if the tokenizer does not tell."""
        if getattr(self.tokenizer, "is_fast", False):
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            if list(encoded["input_ids"]) == list(own):
                return list(encoded["offset_mapping"])
        return self._decoded_offsets(text, own)

    def _decoded_offsets(self, text: str, own: Sequence[int]) -> Offsets:
        """Return where tokens stand, by decoding longer and longer prefixes.

        Tokens that make up one character share its place.
        """
        whole = self.decode(own)
        lengths = [len(self.decode(own[:i]).rstrip("\ufffd")) for i in range(len(own))] + [
            len(whole)
        ]
        ends = [
            next((n for n in lengths[i:] if n > lengths[i]), lengths[-1]) for i in range(len(own))
        ]
        shift = len(text) - len(text.lstrip()) if whole[:1] != text[:1] else 0
        return [(begin + shift, end + shift) for begin, end in zip(lengths, ends, strict=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    # Prompts

    def encode(self, prompts: Sequence[Prompt], *, subjects: bool = True) -> list[Encoded]:
        """Return every prompt's tokens and what can be asked of it.

        Without `subjects`, it is not looked up where they stand: half of the work.
        """
        texts = [prompt.text for prompt in prompts if self.is_text(prompt)]
        own = dict(zip(texts, self.own(texts), strict=True))
        follow = self._following(prompts, own)
        return [self._encoded(prompt, own.get(prompt.text), follow, subjects) for prompt in prompts]

    def is_text(self, prompt: Prompt) -> bool:
        """Tell whether a prompt's text is to be tokenized."""
        return prompt.tokens is None and self.tokenizer is not None

    def _following(
        self, prompts: Sequence[Prompt], own: Mapping[str, list[int]]
    ) -> dict[str, list[int]]:
        """Map every text with an answer after it, and every twin, to its own tokens."""
        texts: dict[str, None] = {}
        for prompt in filter(self.is_text, prompts):
            texts |= {
                _behind(prompt, given): None
                for name in _FOLLOWING
                if (given := getattr(prompt, name))
            }
            texts |= {} if prompt.corrupted is None else {prompt.corrupted: None}
        missing = [text for text in texts if text not in own]
        return {**own, **dict(zip(missing, self.own(missing), strict=True))}

    def _encoded(
        self,
        prompt: Prompt,
        own: list[int] | None,
        follow: Mapping[str, list[int]],
        subjects: bool,
    ) -> Encoded:
        tokens = tuple(self.fronted(own)) if own is not None else prompt.tokens or ()
        misfit, problem = self._misfit(prompt, own, tokens)
        if misfit:
            return Encoded(prompt, tokens, misfit=misfit, problem=problem)
        tokens_of: dict[str, Any] = {}
        why: dict[str, str] = {}
        for name in _FOLLOWING:
            if (given := getattr(prompt, name)) is not None:
                tokens_of[name], why[name] = self._follows(prompt, name, given, own, follow)
        if prompt.corrupted is not None:
            tokens_of["corrupted"], why["corrupted"] = self._twin(prompt, tokens, follow)
        if subjects and prompt.subject is not None:
            tokens_of["subject"], why["subject"] = self._subject(prompt, own, tokens)
        reasons = {name: f"prompt {prompt.id!r}{text}" for name, text in why.items() if text}
        return Encoded(prompt, tokens, **tokens_of, why=reasons)

    def _misfit(self, prompt: Prompt, own: list[int] | None, tokens: Ids) -> tuple[str, str]:
        """Return why a prompt cannot be used, in short and in full; "" if it can."""
        where, (n_ids, longest) = f"prompt {prompt.id!r}", (self.limits.n_ids, self.limits.longest)
        if prompt.tokens is None and own is None:
            return (
                NO_TOKENIZER,
                f"{where} is text, and there is no tokenizer; give token ids, or a tokenizer",
            )
        if not (tokens if own is None else own):
            return (
                EMPTY,
                f"{where} has no tokens: the tokenizer makes nothing of {prompt.text!r:.80}",
            )
        if own is not None and self.unknown_words(prompt.text, own):
            return UNKNOWN, ""
        if n_ids is not None and max(tokens) >= n_ids:
            return (
                OUTSIDE,
                f"{where} has token {max(tokens)}; the model's vocabulary is 0 to {n_ids - 1}",
            )
        if longest is not None and len(tokens) > longest:
            return (
                f"{TOO_LONG} ({longest} tokens)",
                f"{where} has {len(tokens)} tokens; the model reads at most {longest}",
            )
        return "", ""

    def _follows(
        self,
        prompt: Prompt,
        name: str,
        given: str,
        own: list[int] | None,
        follow: Mapping[str, list[int]],
    ) -> tuple[Ids | None, str]:
        """Return the tokens of an answer after a prompt, or why there are none."""
        if own is None:
            if given not in prompt.spelling:
                return (
                    None,
                    (
                        f": its {name}, {given!r}, is text;"
                        " token ids are needed where the prompt is token ids"
                    ),
                )
            tokens = prompt.spelling[given]
            text = given
        else:
            text = _behind(prompt, given)
            both = follow[text]
            tokens = tuple(both[len(own) :]) if both[: len(own)] == own else ()
        if not tokens:
            return None, f": its tokens change when {given!r} follows; end the text at a word"
        if own is not None and self.unknown_words(text, follow[text]):
            return None, f": the tokenizer does not know its {name}, {given!r}"
        if self.limits.n_ids is not None and max(tokens) >= self.limits.n_ids:
            return (
                None,
                (
                    f": its {name}, {given!r}, has token {max(tokens)};"
                    f" the model's are 0 to {self.limits.n_ids - 1}"
                ),
            )
        return tokens, ""

    def options(self, prompt: Prompt, options: Sequence[str]) -> list[Ids]:
        """Return the tokens of options after a prompt; TaskError names one that cannot follow."""
        bare: dict[str, Any] = dict.fromkeys(
            ("answer_index", "wrong", "bridge", "subject", "corrupted")
        ) | {"choices": ()}
        encoded = self.encode([replace(prompt, answer=option, **bare) for option in options])
        for each in encoded:
            if each.answer is None:
                raise TaskError(each.why.get("answer") or each.problem or self.unknown_in(encoded))
        return [each.answer for each in encoded if each.answer is not None]

    def _twin(
        self, prompt: Prompt, tokens: Ids, follow: Mapping[str, list[int]]
    ) -> tuple[Ids | None, str]:
        """Return the tokens of a prompt's corrupted twin, or why it cannot be compared."""
        given = str(prompt.corrupted)
        if prompt.tokens is None:
            own = follow[given]
            if self.unknown_words(given, own):
                return None, ": the tokenizer does not know every word of its corrupted twin"
            twin = tuple(self.fronted(own))
        elif given in prompt.spelling:
            twin = prompt.spelling[given]
        else:
            return (
                None,
                ": its corrupted twin is text; token ids are needed where the prompt is token ids",
            )
        if len(twin) != len(tokens):
            return (
                None,
                f" has {len(tokens)} tokens, its corrupted twin {len(twin)}; as many are needed",
            )
        if self.limits.n_ids is not None and max(twin) >= self.limits.n_ids:
            return (
                None,
                f": its twin has token {max(twin)}; the model's are 0 to {self.limits.n_ids - 1}",
            )
        return twin, ""

    def _subject(
        self, prompt: Prompt, own: list[int] | None, tokens: Ids
    ) -> tuple[tuple[int, int] | None, str]:
        """Return the subject's first and last position, by offsets, or why there is none."""
        subject = str(prompt.subject)
        if (ids := prompt.spelling.get(subject)) is not None:
            starts = [i for i in range(len(tokens)) if tokens[i : i + len(ids)] == ids]
            if len(starts) != 1:
                return None, f": subject {subject!r} found {len(starts)} times; once is needed"
            return (starts[0], starts[0] + len(ids) - 1), ""
        if prompt.tokens is not None and self.tokenizer is None:
            return None, ": a subject is a phrase of a text, and this prompt is token ids"
        text, begin = prompt.text, self._begin(prompt, own, tokens)
        n_found = text.count(subject)
        if n_found != 1:
            return None, f": subject {subject!r} found {n_found} times; once is needed"
        start = text.index(subject)
        end = start + len(subject)
        offsets = self.offsets(text, list(tokens[begin:]))
        places = [i for i, (a, b) in enumerate(offsets, begin) if a < end and b > max(a, start)]
        return (
            ((places[0], places[-1]), "")
            if places
            else (None, f": no token is part of subject {subject!r}")
        )

    def _begin(self, prompt: Prompt, own: list[int] | None, tokens: Ids) -> int:
        """Return at which token a prompt's text begins."""
        own = self.own([prompt.text])[0] if own is None else own
        begin = len(tokens) - len(own)
        return begin if begin > 0 and list(tokens[begin:]) == own else 0

    def unknown_in(self, encoded: Sequence[Encoded]) -> str:
        """Return which prompts have words unknown to the tokenizer, and the first such words."""
        bad = [each.prompt for each in encoded if each.misfit == UNKNOWN]
        words = [
            word
            for word in dict.fromkeys(bad[0].text.split())
            if self.unknown_words(word, self.own([word])[0])
        ]
        which = f"; not {', '.join(map(repr, words[:3]))}" if words else ""
        return (
            "the tokenizer does not know every word of"
            f" {named([prompt.id for prompt in bad])}{which}"
        )


def _behind(prompt: Prompt, answer: str) -> str:
    return followed_by(prompt.text, answer, space=prompt.space)


def named(ids: Sequence[str]) -> str:
    """Return the number of prompts and the first of them, in words."""
    return f"{counted(len(ids), 'prompt')} (first: {', '.join(map(repr, ids[:3]))})"


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the special tokens that a tokenizer now puts before and after texts."""
    front: list[int] = []
    for probe in _PROBES:
        with_them, own = (
            list(tokenizer(probe, add_special_tokens=added)["input_ids"]) for added in (True, False)
        )
        starts = range(len(with_them) - len(own) + 1) if own else ()
        begins = [i for i in starts if with_them[i : i + len(own)] == own]
        if len(begins) == 1:
            return with_them[: begins[0]], with_them[begins[0] + len(own) :]
        front = with_them[: begins[-1]] if begins else front
    return front, []


def put_in_front(tokenizer: Any) -> list[str]:
    """Return the special tokens (BOS) that a tokenizer puts before every text."""
    return [str(token) for token in tokenizer.convert_ids_to_tokens(special_tokens(tokenizer)[0])]


def token_rows(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return every text's tokens, with the tokenizer's special tokens in front and none behind."""
    return Encoder(tokenizer).rows(texts)
