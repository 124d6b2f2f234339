"""English sentences for models of real language: who is given what, numbers, verbs, repetition.

Names, places and things are single tokens behind a space for common tokenizers, so that twins line
up. No prompt begins with a word that its twin changes: where nothing is put in front of a text,
position 0 is a real word, and often an attention sink.
"""

from collections.abc import Sequence
from itertools import combinations, pairwise, product

import numpy as np

from interp.tasks import Prompt, Task
from interp.tasks.task import Need

_PAIRED: tuple[Need, ...] = ("single_token_answer", "aligned_twin")
_KNOWN: tuple[Need, ...] = ("known_words", *_PAIRED)

NAMES = (
    "Mary", "John", "Tom", "James", "Anna", "Paul", "Kate", "Jack", "Lucy", "Sarah", "David",
    "Emma", "Peter", "Alice", "Robert", "Laura", "Daniel", "Julia", "Michael", "Rachel", "Henry",
    "Jane", "George", "Susan", "Martin", "Lisa", "Simon", "Helen", "Maria", "Edward", "Emily",
    "William",
)  # fmt: skip
PLACES = (
    "store", "park", "school", "library", "station", "hospital", "market", "office", "garden",
    "theater", "beach", "restaurant", "museum", "church", "airport", "hotel",
)  # fmt: skip
THINGS = (
    "book", "ring", "ball", "basket", "drink", "letter", "ticket", "flower", "map", "key", "cup",
    "pen", "bottle", "bag", "card", "phone", "gift", "watch", "box", "bell", "coat", "lamp",
    "clock", "mirror",
)  # fmt: skip
GIVING = (
    "When {A} and {B} went to the {place}, {S} gave a {thing} to",
    "After {A} and {B} had lunch near the {place}, {S} handed a {thing} to",
    "While {A} and {B} were waiting at the {place}, {S} showed a {thing} to",
    "Yesterday {A} and {B} met at the {place}, and {S} lent a {thing} to",
    "Before {A} and {B} left the {place}, {S} passed a {thing} to",
    "At the {place}, {A} talked with {B} for an hour, and then {S} offered a {thing} to",
    "Because {A} and {B} had been friends since the {place} opened, {S} sent a {thing} to",
    "On the day that {A} and {B} came to the {place}, {S} had a {thing} for",
)
ORDERS = ("ABBA", "BABA")
_EVENTS = ("war", "journey", "trial", "strike", "siege", "reign", "project")
_CENTURIES = tuple(str(century) for century in range(12, 19))
_SPANS = (
    "The {event} lasted from the year {start} to the year {century}",
    "The {event} began in the year {start} and ended in the year {century}",
    "The {event} that started in {start} came to an end in {century}",
    "The {event} went on from {start} until {century}",
)
_NOUNS = (
    "dog", "cat", "book", "car", "teacher", "doctor", "boy", "girl", "king", "bird", "horse",
    "table", "student", "lawyer", "artist",
)  # fmt: skip
_OTHERS = (
    "house", "tree", "door", "window", "river", "friend", "nurse", "chair", "picture", "farmer",
)  # fmt: skip
_AGREEING = (
    "I think that the {noun} near the {other}",
    "Everyone can see that the {noun} behind the {other}",
    "They told me that the {noun} beside the {other}",
    "We all know that the {noun} in front of the {other}",
)
VERBS = {"singular": ("is", "was", "has", "does"), "plural": ("are", "were", "have", "do")}
_REPEATED = (
    ("The farmer found a silver", "under the old bridge."),
    ("On Monday the teacher bought a small", "at the market."),
    ("My brother keeps a wooden", "in his room."),
    ("The museum shows a broken", "from another country."),
    ("Behind the door there was a heavy", "with a red label."),
)
_BETWEEN = ("", " Nobody said a word.", " It was a quiet day and the sun was low.")


def _pairs(words: Sequence[str], n: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Return `n` different pairs, each in a random order."""
    pairs = [*combinations(words, 2)]
    chosen = [pairs[i] for i in rng.choice(len(pairs), size=n, replace=False)]
    return [(a, b) if rng.random() < 0.5 else (b, a) for a, b in chosen]


def indirect_objects(*, n: int = 240, seed: int = 0) -> Task:
    """Return who is given a thing, each prompt with other names; the twin swaps who gives it."""
    rng = np.random.default_rng([seed, 40])
    prompts = []
    for i, (first, second) in enumerate(_pairs(NAMES, n, rng)):
        order = ORDERS[i // len(GIVING) % 2]
        giver, other = (second, first) if order == "ABBA" else (first, second)
        words = {"A": first, "B": second, "place": rng.choice(PLACES), "thing": rng.choice(THINGS)}
        template = GIVING[i % len(GIVING)]
        prompts.append(
            Prompt(
                f"ioi-english-{i:03d}",
                template.format(S=giver, **words),
                answer=other,
                wrong=giver,
                corrupted=template.format(S=other, **words),
                tags={"order": order, "template": str(i % len(GIVING))},
                group=" and ".join(sorted((first, second))),
            )
        )
    about = (
        "indirect objects in English, “When Mary and John went to the store, John gave a drink to”"
        " → “Mary”; twins swap the giver."
    )
    return Task("ioi-english", tuple(prompts), about, _KNOWN)


def later_decades(*, seed: int = 0) -> Task:
    """Return years that end in 9, to be followed by a later decade; the twin starts in year 09."""
    rng = np.random.default_rng([seed, 41])
    prompts = []
    for century, decade, i in product(_CENTURIES, range(1, 9), range(len(_SPANS))):
        start = f"{century}{decade}9"
        words = {"event": rng.choice(_EVENTS), "century": century}
        later = [str(digit) for digit in rng.permutation(np.arange(decade + 1, 10))]
        prompts.append(
            Prompt(
                f"decades-{start}-{i}",
                _SPANS[i].format(start=start, **words),
                answer=later[0],
                wrong=str(rng.integers(1, decade + 1)),
                corrupted=_SPANS[i].format(start=f"{century}09", **words),
                aliases=tuple(sorted(later[1:])),
                tags={"decade": str(decade), "template": str(i)},
                group=start,
            )
        )
    about = (
        "decades in English, “The war lasted from the year 1739 to the year 17” → any digit above"
        " 3; for tokenizers that read numbers digit by digit."
    )
    return Task("greater-than-english", tuple(prompts), about, _KNOWN)


def agreement(*, seed: int = 0) -> Task:
    """Return subjects in both numbers, behind each a noun in both; the twin's subject differs."""
    rng = np.random.default_rng([seed, 42])
    prompts = []
    for noun, number, other_number, i in product(_NOUNS, VERBS, VERBS, range(len(_AGREEING))):
        other = _in_number(str(rng.choice(_OTHERS)), other_number)
        twin_number = next(name for name in VERBS if name != number)
        text, twin = (
            _AGREEING[i].format(noun=_in_number(noun, each), other=other)
            for each in (number, twin_number)
        )
        kind = "same" if number == other_number else "other"
        prompts.append(
            Prompt(
                f"agreement-{noun}-{number}-{kind}-{i}",
                text,
                answer=VERBS[number][0],
                wrong=VERBS[twin_number][0],
                corrupted=twin,
                aliases=VERBS[number][1:],
                tags={"number": number, "noun between": kind, "template": str(i)},
                group=noun,
            )
        )
    about = (
        "agreement of subject and verb, “I think that the dogs near the house” → “are”;"
        " twins have the other number."
    )
    return Task("agreement", tuple(prompts), about, _KNOWN)


def _in_number(noun: str, number: str) -> str:
    return noun if number == "singular" else f"{noun}s"


def repetitions(*, n: int = 16, seed: int = 0) -> Task:
    """Return sentences that begin a second time; in the twin the first had another word there.

    There are `n` for every sentence and what stands between its two copies.
    """
    rng = np.random.default_rng([seed, 43])
    prompts = []
    for i, j in product(range(len(_REPEATED)), range(len(_BETWEEN))):
        words, (begin, end) = [str(word) for word in rng.permutation(THINGS)], _REPEATED[i]
        for word, other in list(pairwise(words))[:n]:
            text, twin = (f"{begin} {each} {end}{_BETWEEN[j]} {begin}" for each in (word, other))
            prompts.append(
                Prompt(
                    f"repeated-{i}-{j}-{word}",
                    text,
                    answer=word,
                    wrong=other,
                    corrupted=twin,
                    tags={"template": str(i), "between": str(j)},
                    group=word,
                )
            )
    about = (
        "induction in English, “My brother keeps a wooden box in his room. My brother keeps a"
        " wooden” → “box”; twins had another word."
    )
    return Task("induction-text", tuple(prompts), about, _KNOWN)
