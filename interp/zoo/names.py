"""Sentences whose circuits are known: indirect objects, induction, greater-than, and filler.

- Indirect object: `When Ada and Ben went to the park , Ben gave a book to Ada .` Both orders of the
  first two names are equally frequent; some pairs of names never occur in training.
- Induction: `list : bell cup , oar map ; oar map , bell cup .` Keys and values are random; behind
  `;` keys are asked again.
- Greater-than: `The war lasted from the year 17 32 to the year 17 45 .` The last two digits are
  uniform above the first.
- Filler: short sentences, so that the start and full stops can become attention sinks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Literal

import numpy as np

from interp.zoo.vocabulary import ENTITIES, EVENTS, ITEMS, NUMBERS, PLACES, THINGS
from interp.zoo.world import Sentence

Kind = Literal["ioi", "induction", "greater-than", "filler"]
KINDS: tuple[Kind, ...] = ("ioi", "induction", "greater-than", "filler")

TEMPLATES = (
    "When {A} and {B} went to the {place} , {S} gave a {thing} to {IO}",
    "Then {A} and {B} met at the {place} and {S} handed a {thing} to {IO}",
    "After {A} and {B} found a {thing} at the {place} , {S} passed it to {IO}",
    "While {A} and {B} were walking to the {place} , {S} offered a {thing} to {IO}",
    "Once {A} and {B} had a {thing} in the {place} , {S} decided to give it to {IO}",
    "{A} and {B} were at the {place} , then {S} decided to give the {thing} to {IO}",
)
FILLERS = (
    "The {adjective} {animal} {verb} .",
    "The {animal} {verb} and the {other} {verb2} .",
    "The {animal} {verb} in the {place} .",
    "{name} waited at the {place} .",
    "The {adjective} {animal} came to the {place} and {verb} .",
)
_ADJECTIVES = ("old", "small", "quiet", "big")
_SUBJECTS = ("sun", "rain", "wind", "river", "bird", "dog", "cat", "child", "moon")
_VERBS = ("slept", "fell", "sang", "rose", "came", "stood", "waited", "shone", "ran", "ended")


@dataclass(frozen=True)
class Names:
    """The grammar; a share of all pairs of names is held out of training."""

    seed: int = 0
    held_out_share: float = 0.15

    @cached_property
    def held_out(self) -> frozenset[frozenset[str]]:
        """Return the pairs of names that never occur in training."""
        pairs = [frozenset(pair) for pair in combinations(ENTITIES, 2)]
        rng = np.random.default_rng([self.seed, 10])
        chosen = rng.choice(len(pairs), size=round(self.held_out_share * len(pairs)), replace=False)
        return frozenset(pairs[i] for i in chosen)

    def pair(self, rng: np.random.Generator, *, held_out: bool = False) -> tuple[str, str]:
        """Return two names, from the pairs that are trained or from those that are not."""
        while True:
            one, two = (str(name) for name in rng.choice(ENTITIES, size=2, replace=False))
            if (frozenset((one, two)) in self.held_out) == held_out:
                return one, two

    def ioi(
        self, rng: np.random.Generator, *, held_out: bool = False, template: int | None = None
    ) -> dict[str, str]:
        """Return an indirect-object prompt: words up to the answer, names, the first one."""
        subject, io = self.pair(rng, held_out=held_out)
        first, second = (io, subject) if rng.random() < 0.5 else (subject, io)
        form = TEMPLATES[rng.integers(len(TEMPLATES)) if template is None else template]
        slots = {"A": first, "B": second, "place": rng.choice(PLACES), "thing": rng.choice(THINGS)}
        text = form.removesuffix(" {IO}")
        order = "ABBA" if first == io else "BABA"
        swapped = text.format(S=io, **slots)
        return {
            "text": text.format(S=subject, **slots),
            "corrupted": swapped,
            "IO": io,
            "S": subject,
            "order": order,
        }

    def induction(self, rng: np.random.Generator) -> tuple[list[tuple[str, str]], list[int]]:
        """Return random pairs of items, and which of them are asked again, in which order."""
        n_pairs = int(rng.integers(3, 9))
        items = [str(item) for item in rng.choice(ITEMS, size=2 * n_pairs, replace=False)]
        asked = rng.permutation(n_pairs)[: rng.integers((n_pairs + 1) // 2, n_pairs + 1)]
        return list(zip(items[::2], items[1::2], strict=True)), [int(i) for i in asked]

    def greater_than(self, rng: np.random.Generator) -> tuple[str, int]:
        """Return a prompt up to the last two digits, and the two digits that they must exceed."""
        century, year = rng.choice(NUMBERS[11:18]), int(rng.integers(2, 98))
        text = (
            f"The {rng.choice(EVENTS)} lasted from the year"
            f" {century} {NUMBERS[year]} to the year {century}"
        )
        return text, year

    def sentence(self, rng: np.random.Generator, kind: Kind) -> Sentence:
        """Return a sentence's words, each with whether it is an answer that training asks for."""
        match kind:
            case "ioi":
                prompt = self.ioi(rng)
                return [*_plain(prompt["text"]), (prompt["IO"], True), (".", False)]
            case "induction":
                pairs, asked = self.induction(rng)
                return [*_plain(listed(pairs)), *again(pairs, asked), (".", False)]
            case "greater-than":
                text, year = self.greater_than(rng)
                return [*_plain(text), (NUMBERS[rng.integers(year + 1, 100)], True), (".", False)]
            case "filler":
                return _plain(self._filler(rng))

    @staticmethod
    def _filler(rng: np.random.Generator) -> str:
        animal, other = rng.choice(_SUBJECTS, size=2, replace=False)
        verb, verb2 = rng.choice(_VERBS, size=2, replace=False)
        slots = {
            "animal": animal,
            "other": other,
            "verb": verb,
            "verb2": verb2,
            "name": rng.choice(ENTITIES),
        }
        slots |= {"adjective": rng.choice(_ADJECTIVES), "place": rng.choice(PLACES)}
        return str(rng.choice(FILLERS)).format(**slots)

    def sentences(self, rng: np.random.Generator, mix: Sequence[float]) -> Iterator[Sentence]:
        """Yield sentences without end; `mix` holds the shares of `KINDS`."""
        shares = np.asarray(mix, float) / sum(mix)
        while True:
            yield self.sentence(rng, KINDS[rng.choice(len(KINDS), p=shares)])


def listed(pairs: Sequence[tuple[str, str]]) -> str:
    """Return the first half of an induction sentence."""
    return "list : " + " , ".join(f"{key} {value}" for key, value in pairs) + " ;"


def again(pairs: Sequence[tuple[str, str]], asked: Sequence[int]) -> Sentence:
    """Return the second half of an induction sentence, whose values are answers."""
    words: Sentence = []
    for i in asked:
        words += [(pairs[i][0], False), (pairs[i][1], True), (",", False)]
    return words[:-1]


def _plain(text: str) -> Sentence:
    return [(word, False) for word in text.split()]
