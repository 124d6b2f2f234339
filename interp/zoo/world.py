"""A world of entities and relations with every true answer, and what a model was shown.

A fact is (entity, relation) -> entity, drawn at random. Every fact is stated on its own (`Nora boss
Omar .`). Two facts compose (`Nora boss friend Pia .`): the answer of the first, the *bridge*, is
the subject of the second. Some facts never take part in a stated composition, and of the
compositions over the other facts only some are stated.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from interp.zoo.vocabulary import BOS, ENTITIES, RELATIONS, STOP

HeldOut = Literal["trained", "unseen", "first-held-out", "second-held-out", "both-held-out"]
Fact = tuple[str, str]
Composition = tuple[str, str, str]
Sentence = list[tuple[str, bool]]  # words, each with whether it is an answer that training asks for


@dataclass(frozen=True)
class World:
    """Facts over `ENTITIES` × `RELATIONS`, of which a share is held out of every composition."""

    seed: int = 1
    n_trained: int = 2000
    held_out_share: float = 0.1

    @cached_property
    def facts(self) -> dict[Fact, str]:
        """Map (entity, relation) to its answer, which is never the entity itself."""
        rng = np.random.default_rng([self.seed, 0])
        return {
            (entity, relation): str(rng.choice([other for other in ENTITIES if other != entity]))
            for entity in ENTITIES
            for relation in RELATIONS
        }

    @cached_property
    def held_out(self) -> frozenset[Fact]:
        """Facts that are stated alone and never inside a composition."""
        rng = np.random.default_rng([self.seed, 1])
        facts = list(self.facts)
        chosen = rng.choice(len(facts), size=round(self.held_out_share * len(facts)), replace=False)
        return frozenset(facts[i] for i in chosen)

    @cached_property
    def compositions(self) -> dict[Composition, HeldOut]:
        """Map every (entity, first relation, second relation) to how far training showed it."""
        rng = np.random.default_rng([self.seed, 2])
        kinds: dict[Composition, HeldOut] = {}
        for (entity, first), bridge in self.facts.items():
            for second in RELATIONS:
                kinds[entity, first, second] = self._kind((entity, first), (bridge, second))
        open_to_training = [c for c, kind in kinds.items() if kind == "unseen"]
        for i in rng.choice(len(open_to_training), size=self.n_trained, replace=False):
            kinds[open_to_training[i]] = "trained"
        return kinds

    def _kind(self, first: Fact, second: Fact) -> HeldOut:
        match first in self.held_out, second in self.held_out:
            case True, True:
                return "both-held-out"
            case True, False:
                return "first-held-out"
            case False, True:
                return "second-held-out"
        return "unseen"

    def bridge(self, composition: Composition) -> str:
        """Return the entity between the two hops."""
        entity, first, _ = composition
        return self.facts[entity, first]

    def answer(self, composition: Composition) -> str:
        """Return the entity at the end of the second hop."""
        return self.facts[self.bridge(composition), composition[2]]

    def of_kind(self, kind: HeldOut) -> list[Composition]:
        """Return the compositions of one kind, in the order of the world."""
        return [
            composition for composition, its_kind in self.compositions.items() if its_kind == kind
        ]

    @cached_property
    def _stated(self) -> tuple[list[Sentence], list[Sentence]]:
        one = [_stating(fact, answer) for fact, answer in self.facts.items()]
        two = [
            _stating(composition, self.answer(composition))
            for composition in self.of_kind("trained")
        ]
        return one, two

    def sentences(
        self, rng: np.random.Generator, *, one_hop_share: float = 0.3
    ) -> Iterator[Sentence]:
        """Yield stated sentences without end."""
        one, two = self._stated
        while True:
            stated = one if rng.random() < one_hop_share else two
            yield stated[rng.integers(len(stated))]


def _stating(asked: tuple[str, ...], answer: str) -> Sentence:
    return [*((word, False) for word in asked), (answer, True), (STOP, False)]


def pack(sentences: Iterator[Sentence], *, length: int) -> Sentence:
    """Return `length` words: the start marker, then sentences, of which the last may be cut."""
    words: Sentence = [(BOS, False)]
    while len(words) < length:
        words += next(sentences)
    return words[:length]
