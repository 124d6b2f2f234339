"""Questions about the real world, from a table of facts: one hop with choices, and two hops.

The prompts of a composition follow “Hopping Too Late” (arXiv 2406.12775): both hops alone, and two
shortcuts, one without the first relation and one without the entity, that a model must not be able
to answer.
"""

import csv
import random
from dataclasses import dataclass, replace
from pathlib import Path

from interp.tasks import Prompt, Task

_PHRASES = {
    "country-of-landmark": "the country of {}",
    "country-of-city": "the country of {}",
    "author": "the author of {}",
    "painter": "the painter of {}",
    "composer": "the composer of {}",
    "capital": "the capital of {}",
    "currency": "the currency of {}",
    "language": "the official language of {}",
    "continent": "the continent of {}",
    "birthplace": "the birthplace of {}",
    "birth-country": "the country of birth of {}",
}
N_CHOICES = 4


@dataclass(frozen=True)
class Fact:
    """Subject, relation, answer; names keep their article, as in “the Netherlands”."""

    subject: str
    relation: str
    answer: str
    aliases: tuple[str, ...]

    @property
    def phrase(self) -> str:
        """Return the noun phrase for the answer: “the capital of France”."""
        return _PHRASES[self.relation].format(self.subject)


def read_facts(path: Path) -> list[Fact]:
    """Read the columns subject, relation, answer, aliases (separated by |)."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        Fact(
            row["subject"],
            row["relation"],
            row["answer"],
            tuple(filter(None, row["aliases"].split("|"))),
        )
        for row in rows
    ]


def _asked(phrase: str, fact: Fact, *, identity: str) -> Prompt:
    """Return a prompt that a fact's answer continues; the prompt ends in its article."""
    article = " the" if fact.answer.startswith("the ") else ""
    aliases = tuple(
        alias
        for alias in fact.aliases
        if not alias.startswith("the ") and alias != _bare(fact.answer)
    )
    return Prompt(
        identity,
        f"{phrase[0].upper()}{phrase[1:]} is{article}",
        answer=_bare(fact.answer),
        aliases=aliases,
    )


def _bare(name: str) -> str:
    return name.removeprefix("the ")


def one_hop_choices(facts: list[Fact], *, seed: int = 0) -> Task:
    """Return every fact as a question with four choices of its relation, in random order."""
    rng = random.Random(seed)
    prompts = []
    for fact in facts:
        asked = _asked(fact.phrase, fact, identity=f"{fact.relation}/{_bare(fact.subject)}")
        taken = {fact.answer, *fact.aliases}
        others = sorted({_bare(name) for name in _answers(facts, fact.relation, without=taken)})
        choices = [_bare(fact.answer), *rng.sample(others, k=N_CHOICES - 1)]
        rng.shuffle(choices)
        tags = {"relation": fact.relation}
        prompts.append(
            Prompt(
                asked.id,
                asked.text,
                asked.answer,
                aliases=asked.aliases,
                choices=tuple(choices),
                tags=tags,
            )
        )
    about = (
        "facts of geography, works and people with four choices,"
        " “The capital of France is” → “Paris”."
    )
    return Task("facts", tuple(prompts), about, ("known_words",))


def _answers(facts: list[Fact], relation: str, *, without: set[str]) -> set[str]:
    """Return the answers of a relation that are none of the names given."""
    return {
        f.answer
        for f in facts
        if f.relation == relation and without.isdisjoint({f.answer, *f.aliases})
    }


def compositions(facts: list[Fact]) -> list[tuple[Fact, Fact]]:
    """Return facts whose answer is another's subject, with that other; no name contains another."""
    by_subject: dict[str, list[Fact]] = {}
    for fact in facts:
        by_subject.setdefault(fact.subject, []).append(fact)
    pairs = [(first, second) for first in facts for second in by_subject.get(first.answer, [])]
    return [
        pair for pair in pairs if _are_distinct(pair[0].subject, pair[0].answer, pair[1].answer)
    ]


def _are_distinct(*names: str) -> bool:
    bare = [_bare(name).casefold() for name in names]
    return not any(
        one in other for i, one in enumerate(bare) for j, other in enumerate(bare) if i != j
    )


def two_hop_facts(facts: list[Fact], *, seed: int = 0) -> Task:
    """Return every composition with its bridge, a wrong answer, and related prompts."""
    rng = random.Random(seed)
    prompts: list[Prompt] = []
    related: dict[str, dict[str, Prompt]] = {}
    for first, second in compositions(facts):
        outer = _PHRASES[second.relation]
        identity = f"{_bare(first.subject)}/{first.relation}/{second.relation}"
        whole = _asked(outer.format(first.phrase), second, identity=identity)
        taken = {second.answer, *second.aliases}
        wrong = sorted(_answers(facts, second.relation, without=taken))
        prompt = Prompt(
            identity,
            whole.text,
            whole.answer,
            wrong=_bare(rng.choice(wrong)),
            subject=first.phrase,
            bridge=_bare(first.answer),
            aliases=whole.aliases,
            tags={"first": first.relation, "second": second.relation},
        )
        prompts.append(prompt)
        without_entity = outer.format(_PHRASES[first.relation].format("").removesuffix(" of "))
        related[identity] = {
            "first_hop": _asked(first.phrase, first, identity=f"{identity}:first_hop"),
            "second_hop": _asked(second.phrase, second, identity=f"{identity}:second_hop"),
            "entity_shortcut": _asked(
                outer.format(first.subject), second, identity=f"{identity}:entity_shortcut"
            ),
            "relation_shortcut": replace(
                whole,
                id=f"{identity}:relation_shortcut",
                text=without_entity[0].upper() + without_entity[1:],
            ),
        }
    about = (
        "compositions in English, “The capital of the country of Kyoto is” → “Tokyo”,"
        " with single hops and shortcuts."
    )
    return Task("two-hop-facts", tuple(prompts), about, ("known_words",), related)
