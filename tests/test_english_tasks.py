"""English tasks: balanced, grouped, without duplicates, and aligned for a real tokenizer."""

from collections import Counter

import pytest

import interp
from interp.tasks import Task, load_task
from interp.zoo.sentences import NAMES

SIZES = {
    "ioi-english": 240,
    "facts": 1284,
    "greater-than-english": 224,
    "agreement": 240,
    "induction-text": 240,
}
BALANCED = {  # tags whose combinations are equally frequent
    "ioi-english": ("order", "template"),
    "facts": ("phrasing",),
    "greater-than-english": ("decade", "template"),
    "agreement": ("number", "noun between", "template"),
    "induction-text": ("template", "between"),
}
COPYING = ("ioi-english", "induction-text")  # the answer stands in the prompt


@pytest.fixture(scope="module", params=SIZES)
def task(request: pytest.FixtureRequest) -> Task:
    return load_task(request.param)


def test_every_prompt_is_there_once(task: Task) -> None:
    assert len(task) == SIZES[task.name]
    for field in ("id", "text"):
        values = [getattr(prompt, field) for prompt in task.prompts]
        assert len({*values}) == len(values), field


def test_templates_are_equally_frequent(task: Task) -> None:
    counts = Counter(tuple(p.tags[tag] for tag in BALANCED[task.name]) for p in task.prompts)
    assert len({*counts.values()}) == 1
    assert len({p.tags.get("template", p.tags.get("phrasing")) for p in task.prompts}) >= 4


def test_every_prompt_has_a_rival_and_a_twin(task: Task) -> None:
    for prompt in task.prompts:
        right = {prompt.answer, *prompt.aliases}
        assert prompt.wrong
        assert prompt.wrong not in right
        assert prompt.corrupted not in (None, prompt.text)
        assert str(prompt.corrupted).split()[0] == prompt.text.split()[0]  # position 0 is a sink


def test_no_prompt_holds_its_answer(task: Task) -> None:
    holding = [p.id for p in task.prompts if f" {p.answer} " in f" {p.text} "]
    assert len(holding) == (len(task) if task.name in COPYING else 0)


def test_a_part_is_drawn_by_its_seed(task: Task) -> None:
    first, again, other = (load_task(task.name, n=20, seed=seed) for seed in (3, 3, 4))
    assert first.prompts == again.prompts
    assert first.prompts != other.prompts
    assert len(first) == 20


def test_the_twin_of_an_indirect_object_swaps_the_giver() -> None:
    task = load_task("ioi-english")
    for prompt in task.prompts:
        first, second, giver = _names(prompt.text)
        twin_giver = _names(str(prompt.corrupted))[2]
        assert (giver, twin_giver) == (prompt.wrong, prompt.answer)
        assert giver == (second if prompt.tags["order"] == "ABBA" else first)
        assert prompt.group == " and ".join(sorted((first, second)))
    assert len({prompt.group for prompt in task.prompts}) == len(task)


def _names(text: str) -> list[str]:
    return [word for word in text.replace(",", "").split() if word in NAMES]


def test_only_later_decades_are_right() -> None:
    for prompt in load_task("greater-than-english").prompts:
        first = next(word for word in prompt.text.split() if word.isdigit() and len(word) == 4)
        century = prompt.text.split()[-1]
        right = {
            int(f"{century}{digit}0") > int(first) for digit in (prompt.answer, *prompt.aliases)
        }
        assert right == {True}
        assert len(prompt.aliases) + 1 == 9 - int(prompt.tags["decade"])
        assert int(f"{century}{prompt.wrong}9") <= int(first)
        assert prompt.group == first


def test_verbs_agree_with_the_first_noun() -> None:
    for prompt in load_task("agreement").prompts:
        subject = prompt.text.partition(" the ")[2].split()[0]
        is_plural = subject.endswith("s")
        assert prompt.answer == ("are" if is_plural else "is")
        assert subject.removesuffix("s") == prompt.group
        nouns = [prompt.text.split()[-1].endswith("s"), is_plural]
        assert (prompt.tags["noun between"] == "same") == (nouns[0] == nouns[1])


def test_facts_of_one_subject_are_one_group() -> None:
    task = load_task("facts")
    france = [prompt for prompt in task.prompts if prompt.group == "France"]
    assert {(p.tags["relation"], p.answer) for p in france} == {
        ("capital", "Paris"),
        ("language", "French"),
    }
    assert [p.text for p in france[:2]] == [
        "The capital of France is",
        "The capital of France is the city of",
    ]
    answers = {(p.tags["relation"], p.subject): {p.answer, *p.aliases} for p in task.prompts}
    texts = {(p.tags["relation"], p.tags["phrasing"], p.text): p for p in task.prompts}
    for prompt in task.prompts:
        assert str(prompt.corrupted).startswith(prompt.text.partition(str(prompt.subject))[0])
        own = answers[prompt.tags["relation"], prompt.subject]
        twin = texts.get((prompt.tags["relation"], prompt.tags["phrasing"], str(prompt.corrupted)))
        if twin is not None:  # its own text may end in another article
            assert prompt.wrong in (twin.answer, *twin.aliases)
            assert twin.answer not in own


@pytest.mark.real
def test_twins_line_up_for_a_real_tokenizer(smollm2: str, task: Task) -> None:
    model = interp.load_model(smollm2)
    fitted = model.fit(task)
    assert len(fitted.task) == len(task)
    shards = [model.tokenize(shard) for shard in model.shards(fitted.task)]
    aligned = [batch for batch in shards if batch.corrupted is not None]
    n_aligned = sum(len(batch.prompts) for batch in aligned)
    assert n_aligned >= (0.94 if task.name == "facts" else 1.0) * len(task)
    for batch in aligned:
        assert batch.corrupted is not None
        differs = batch.tokens != batch.corrupted
        assert not bool(differs[:, 0].any())
        if task.name != "facts":
            assert differs.sum(1).tolist() == [1] * len(batch.prompts)
            batch.require_single_token_answers()
