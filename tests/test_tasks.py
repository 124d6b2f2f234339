"""Prompts become the right tokens, or are refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.errors import TaskError
from interp.models import Model, load_model
from interp.tasks import Prompt, Task, load_task


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("zoo/hops-4l")


def words(model: Model, row: torch.Tensor) -> list[str]:
    return model.tokenizer.convert_ids_to_tokens(row.tolist())


def test_positions_point_at_what_they_say(model: Model) -> None:
    prompt = Prompt(
        "a", "Nora boss Pia . Ada friend boss", answer="Ned", wrong="Abel", subject="Ada friend"
    )
    batch = model.tokenize([prompt])
    row = words(model, batch.tokens[0])
    assert row == ["<bos>", *["Nora", "boss", "Pia", ".", "Ada", "friend", "boss"]]
    assert batch.subject is not None
    assert row[batch.subject.item()] == "friend"
    assert row[batch.last.item()] == "boss"
    assert words(model, batch.answer) == ["Ned"]
    assert words(model, batch.wrong) == ["Abel"]


def test_answers_follow_and_the_positions_in_front_predict_them(model: Model) -> None:
    prompts = [
        Prompt("a", "Ada friend", answer="Ned"),
        Prompt("b", "Ada friend boss", answer="Ned . Pia"),
    ]
    batch = model.tokenize(prompts, answers=True)
    assert batch.tokens.shape == (2, 7)
    assert batch.mask.sum(1).tolist() == [4, 7]
    assert batch.answer_positions is not None
    assert batch.answer_positions.tolist() == [[2, 3, 4], [3, 4, 5]]
    following = batch.tokens[1, batch.answer_positions[1] + 1]
    assert torch.equal(following, batch.answer_tokens[1])
    with pytest.raises(TaskError, match=r"1 prompt \(first: 'b'\) with more"):
        batch.require_single_token_answers()


def test_corrupted_twins_line_up_token_by_token(model: Model) -> None:
    good = Prompt("a", "Ada friend", corrupted="Ben friend")
    assert words(model, model.tokenize([good], corrupted=True).tokens[0]) == [
        "<bos>",
        "Ben",
        "friend",
    ]
    with pytest.raises(TaskError, match="'a' has 3 tokens, its corrupted twin 4"):
        model.tokenize([Prompt("a", "Ada friend", corrupted="Ben friend boss")], corrupted=True)
    with pytest.raises(TaskError, match="'a' has no corrupted twin"):
        model.tokenize([Prompt("a", "Ada friend")], corrupted=True)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (
            Prompt("x", "Ada colleague"),
            r"does not know every word of 1 prompt \(first: 'x'\); not 'colleague'",
        ),
        (Prompt("x", "Ada " * 200), "at most 128"),
    ],
)
def test_prompts_that_cannot_be_used_are_named(model: Model, prompt: Prompt, says: str) -> None:
    with pytest.raises(TaskError, match=says):
        model.tokenize([prompt])


@pytest.mark.parametrize(
    ("prompt", "name", "says"),
    [
        (
            Prompt("x", "Ada friend", answer="Zebedee"),
            "answer",
            "prompt 'x': the tokenizer does not know its answer, 'Zebedee'",
        ),
        (
            Prompt("x", "Ada friend", wrong="Zebedee"),
            "wrong",
            "prompt 'x': the tokenizer does not know its wrong, 'Zebedee'",
        ),
        (
            Prompt("x", "Ada friend", subject="Ben"),
            "subject",
            "prompt 'x': subject 'Ben' found 0 times; once is needed",
        ),
        (
            Prompt("x", "Ada boss Ada", subject="Ada"),
            "subject",
            "prompt 'x': subject 'Ada' found 2 times; once is needed",
        ),
        (
            Prompt("x", "Ada boss", corrupted="Ben"),
            "corrupted",
            "prompt 'x' has 3 tokens, its corrupted twin 2; as many are needed",
        ),
    ],
)
def test_what_cannot_be_used_of_a_prompt_is_none_and_says_why(
    model: Model, prompt: Prompt, name: str, says: str
) -> None:
    batch = model.tokenize([Prompt("a", "Ada friend"), prompt])
    assert getattr(batch, name) is None
    assert batch.why == {name: says}


def test_a_prompt_without_an_answer_takes_none_from_others() -> None:
    prompts = [Prompt(str(i), "a b", answer=None if i == 2 else "c") for i in range(6)]
    shards = Task("t", tuple(prompts)).shards(lambda _: 2)
    assert sorted([len(shard) for shard in shards]) == [1, 5]
    assert {prompt.id for shard in shards for prompt in shard} == set("012345")


def test_shards_have_one_length_and_lose_nobody() -> None:
    task = load_task("two-hop", n=200)
    shards = task.shards(lambda prompt: len(prompt.text.split()))
    assert sorted(p.id for shard in shards for p in shard) == sorted(p.id for p in task.prompts)
    assert all(len({len(p.text.split()) for p in shard}) == 1 for shard in shards)
    assert max(map(len, shards)) == 32


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("", "has no prompts"),
        ("{}", ":1: no 'text'"),
        ('{"text": "a"}\nnot json', ":2: not JSON"),
        ("[1]", ":1: list given"),
        ('{"text": "a", "anser": "b"}', "did you mean 'answer'"),
        ('{"text": 3}', "'text' is 3; a string is needed"),
        ('{"text": "a", "choices": "b"}', "a list of strings"),
        ('{"text": "a", "tags": {"level": 1}}', "an object of strings"),
        ('{"text": "a", "id": "1"}\n{"text": "b", "id": "1"}', "two prompts with the id '1'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, lines: str, says: str) -> None:
    path = tmp_path / "my.jsonl"
    path.write_text(lines)
    with pytest.raises(TaskError, match=says):
        Task.from_jsonl(path)


def test_a_line_of_a_hundred_megabytes_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "a"}\n{"text": "')
        file.seek(100_000_000, 1)
        file.write(b'"}\n')
    with pytest.raises(TaskError, match=":2: a line of more than 1,000,000 bytes"):
        Task.from_jsonl(path)


ARC = {
    "question": "Ice is frozen",
    "choices": {"text": ["sand", "water"], "label": ["A", "B"]},
    "answerKey": "B",
    "id": 7,
}
MMLU = {"question": "Ice is frozen", "choices": ["sand", "water"], "answer": 1}
HELLASWAG = {"ctx": "Ice is frozen", "endings": ["sand", "water"], "label": "1"}


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (ARC, {"text": "question", "choices": "choices", "answer": "answerKey", "id": "id"}),
        (MMLU, {"text": "question", "choices": "choices", "answer": "answer"}),
        (HELLASWAG, {"text": "ctx", "choices": "endings", "answer": "label"}),
        (
            {"q": "Ice is frozen", "o": ("sand", "water"), "a": "water"},
            {"text": "q", "choices": "o", "answer": "a"},
        ),
    ],
)
def test_the_usual_ways_of_writing_a_choice_are_read(
    row: dict[str, Any], columns: dict[str, str]
) -> None:
    (prompt,) = Task.from_hf([row], columns).prompts
    assert (prompt.text, prompt.choices, prompt.answer) == (
        "Ice is frozen",
        ("sand", "water"),
        "water",
    )
    assert prompt.id == ("7" if "id" in columns else "1")


@pytest.mark.parametrize(
    ("rows", "columns", "says"),
    [
        (
            [MMLU, {"choices": []}],
            {"text": "question"},
            "row 2: unknown column 'question'; there is choices",
        ),
        ([MMLU], {"txt": "question"}, "unknown field 'txt'; did you mean 'text'"),
        ([MMLU], None, "row 1: unknown field 'question'"),
        (
            [MMLU | {"answer": 4}],
            {"text": "question", "choices": "choices", "answer": "answer"},
            "row 1: the answer 4 is not among",
        ),
        (
            [MMLU | {"choices": "ab"}],
            {"text": "question", "choices": "choices"},
            "row 1: 'choices' is 'ab'; a list of strings",
        ),
        ([MMLU | {"question": 3}], {"text": "question"}, "row 1: 'text' is 3; a string"),
        (
            [ARC, ARC],
            {"text": "question", "id": "id"},
            "row 2: two prompts with the id '7', the other at row 1",
        ),
        (
            [{"text": "a", "answer": "b", "wrong": "b"}],
            None,
            "row 1: 'answer' and 'wrong' are both 'b'",
        ),
        ([{"text": "a", "related": [1]}], None, "row 1: 'related' is"),
    ],
)
def test_a_bad_row_is_named(
    rows: list[dict[str, Any]], columns: dict[str, str] | None, says: str
) -> None:
    with pytest.raises(TaskError, match=says):
        Task.from_hf(rows, columns)


def test_a_task_survives_a_frame() -> None:
    task = load_task("two-hop", n=5)
    frame = task.to_frame()
    assert frame["tag_set"].tolist() == [p.tags["set"] for p in task.prompts]
    assert Task.from_frame(frame).prompts == task.prompts
    mapped = Task.from_frame(frame.rename(columns={"text": "question"}), {"text": "question"})
    assert [p.text for p in mapped.prompts] == [p.text for p in task.prompts]


def test_what_is_related_survives_a_round_trip_and_a_draw(tmp_path: Path) -> None:
    task = load_task("two-hop", n=5)
    assert set(task.related) == {p.id for p in task.prompts}
    first = task.related[task.prompts[0].id]["first_hop"]
    assert (first.text.split()[-2:], first.answer) == (
        list(task.prompts[0].subject.split()),
        task.prompts[0].bridge,
    )
    task.to_jsonl(tmp_path / "t.jsonl")
    assert Task.from_jsonl(tmp_path / "t.jsonl").related == task.related


def test_prompts_are_chosen_by_tag() -> None:
    task = load_task("two-hop").tagged(set="unseen")
    assert {p.tags["set"] for p in task.prompts} == {"unseen"}
    with pytest.raises(
        TaskError, match=r"no prompts tagged {'set': 'x'}; there is .*first-held-out"
    ):
        load_task("two-hop").tagged(set="x")


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(TaskError, match=":2: not UTF-8"):
        Task.from_jsonl(path)


def test_a_task_survives_a_round_trip(tmp_path: Path) -> None:
    task = load_task("two-hop", n=5)
    task.to_jsonl(tmp_path / "two-hop.jsonl")
    assert Task.from_jsonl(tmp_path / "two-hop.jsonl").prompts == task.prompts
    assert "wrong" in json.loads((tmp_path / "two-hop.jsonl").read_text().splitlines()[0])


def test_groups_are_given_or_the_subject_or_the_prompt(model: Model) -> None:
    prompts = [
        Prompt("a", "Ada friend", group="1"),
        Prompt("b", "Ned friend", group="1"),
        Prompt("c", "Ada boss friend", subject="Ada boss"),
        Prompt("d", "Ada boss mother", subject="Ada boss"),
        Prompt("e", "Ada mother"),
    ]
    assert [prompt.drawn for prompt in prompts] == ["1", "1", "Ada boss", "Ada boss", "e"]
    pair, other = model.tokenize(prompts[:2]).groups, model.tokenize(prompts[2:4]).groups
    assert len({*pair.tolist()}) == len({*other.tolist()}) == 1
    assert pair[0] != other[0]


def test_groups_are_read_from_files_as_text(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"text": "Ada friend", "group": 7}\n{"text": "Ned friend", "group": "x"}\n')
    task = Task.from_jsonl(file)
    assert [prompt.group for prompt in task.prompts] == ["7", "x"]
    assert task.to_records()[0]["group"] == "7"
