"""Questions about the real world, from a table of facts: one hop in four phrasings, and two hops.

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
_MORE_PHRASINGS = {
    "country-of-landmark": (
        "To visit {}, you have to travel to the country of",
        "Visitors of {} are in the country of",
        "The country in which you can see {} is called",
    ),
    "country-of-city": (
        "The city of {} is in the country of",
        "The country in which you find the city of {} is called",
        "The people of the city of {} are citizens of the country of",
    ),
    "author": (
        "The work known as {} was written by",
        "The author of {} was a writer by the name of",
        "The author who wrote {} is called",
    ),
    "painter": (
        "The work known as {} was painted by",
        "The painter of {} was an artist by the name of",
        "The artist who painted {} is called",
    ),
    "composer": (
        "The work known as {} was composed by",
        "The composer of {} was a musician by the name of",
        "The musician who composed {} is called",
    ),
    "capital": (
        "The capital of {} is the city of",
        "The city that is the capital of {} is called",
        "The name of the capital of {} is",
    ),
    "currency": (
        "The official currency of {} is called",
        "People in {} pay with a currency called",
        "The name of the currency of {} is",
    ),
    "language": (
        "The language that most people speak in {} is",
        "People in {} speak a language called",
        "The name of the official language of {} is",
    ),
    "continent": (
        "On a map of the world, {} is on the continent of",
        "Travellers who visit {} are on the continent of",
        "The continent on which you find {} is called",
    ),
    "birthplace": (
        "The birth of {} took place in the city of",
        "The mother of {} gave birth in the city of",
        "The city where {} was born is called",
    ),
    "birth-country": (
        "The birth of {} took place in the country of",
        "The mother of {} gave birth in the country of",
        "The country where {} was born is called",
    ),
}
N_CHOICES = 4


@dataclass(frozen=True)
class Fact:
    """Subject, relation, answer; names keep their article, as in “the Netherlands”.

    `twin` is another subject of the relation with another answer, of as many tokens where there is
    one (counted with SmolLM2's tokenizer).
    """

    subject: str
    relation: str
    answer: str
    aliases: tuple[str, ...]
    twin: str

    @property
    def phrase(self) -> str:
        """Return the noun phrase for the answer: “the capital of France”."""
        return _PHRASES[self.relation].format(self.subject)

    def texts(self, subject: str) -> tuple[str, ...]:
        """Return the questions about this fact, asked about a subject; all end alike."""
        first = f"The {_PHRASES[self.relation].removeprefix('the ')} is"
        article = " the" if self.answer.startswith("the ") else ""
        return tuple(
            f"{text.format(subject)}{article}" for text in (first, *_MORE_PHRASINGS[self.relation])
        )


def read_facts(path: Path) -> list[Fact]:
    """Read the columns subject, relation, answer, aliases (separated by |), twin."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        Fact(
            row["subject"],
            row["relation"],
            row["answer"],
            tuple(filter(None, row["aliases"].split("|"))),
            row["twin"],
        )
        for row in rows
    ]


def _asked(phrase: str, fact: Fact, *, identity: str) -> Prompt:
    """Return a prompt that a fact's answer continues; the prompt ends in its article."""
    article = " the" if fact.answer.startswith("the ") else ""
    text = f"{phrase[0].upper()}{phrase[1:]} is{article}"
    return Prompt(identity, text, answer=_bare(fact.answer), aliases=_aliases(fact))


def _aliases(fact: Fact) -> tuple[str, ...]:
    """Return other names of a fact's answer, without articles."""
    return tuple(
        alias
        for alias in fact.aliases
        if not alias.startswith("the ") and alias != _bare(fact.answer)
    )


def _bare(name: str) -> str:
    return name.removeprefix("the ")


def facts_asked(facts: list[Fact], *, seed: int = 0) -> Task:
    """Return every fact in four phrasings, each with a twin about another subject.

    The choices are four answers of the relation, in random order.
    """
    rng = random.Random(seed)
    answer_of = {(fact.relation, fact.subject): _bare(fact.answer) for fact in facts}
    prompts = []
    for fact in facts:
        others = sorted({_bare(name) for name in _answers(facts, fact.relation, without=fact)})
        choices = [_bare(fact.answer), *rng.sample(others, k=N_CHOICES - 1)]
        rng.shuffle(choices)
        twins = zip(fact.texts(fact.subject), fact.texts(fact.twin), strict=True)
        for i, (text, twin) in enumerate(twins):
            name = f"{fact.relation}/{_bare(fact.subject)}"
            prompts.append(
                Prompt(
                    name if i == 0 else f"{name}/{i}",
                    text,
                    answer=_bare(fact.answer),
                    wrong=answer_of[fact.relation, fact.twin],
                    corrupted=twin,
                    subject=fact.subject,
                    aliases=_aliases(fact),
                    choices=tuple(choices),
                    tags={"relation": fact.relation, "phrasing": str(i)},
                    group=_bare(fact.subject),
                )
            )
    about = (
        "facts of geography, works and people in four phrasings, “The capital of France is”"
        " → “Paris”; twins name another subject."
    )
    return Task("facts", tuple(prompts), about, ("known_words",))


def _answers(facts: list[Fact], relation: str, *, without: Fact) -> set[str]:
    """Return the answers of a relation that are no name of a fact's answer."""
    taken = {without.answer, *without.aliases}
    return {
        f.answer
        for f in facts
        if f.relation == relation and taken.isdisjoint({f.answer, *f.aliases})
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
        wrong = sorted(_answers(facts, second.relation, without=second))
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
