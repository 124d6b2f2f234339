"""Prompts become the right tokens, or are refused by name."""

import json
from pathlib import Path

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
    prompt = Prompt("a", "Nora boss Pia . Ada friend boss", answer="Ned", wrong="Abel", subject="Ada friend")
    batch = model.tokenize([prompt])
    row = words(model, batch.tokens[0])
    assert row == ["<bos>", *["Nora", "boss", "Pia", ".", "Ada", "friend", "boss"]]
    assert batch.subject is not None
    assert row[batch.subject.item()] == "friend"
    assert row[batch.last.item()] == "boss"
    assert words(model, batch.answer) == ["Ned"]
    assert words(model, batch.wrong) == ["Abel"]


def test_answers_follow_and_the_positions_in_front_predict_them(model: Model) -> None:
    prompts = [Prompt("a", "Ada friend", answer="Ned"), Prompt("b", "Ada friend boss", answer="Ned . Pia")]
    batch = model.tokenize(prompts, answers=True)
    assert batch.tokens.shape == (2, 7)
    assert batch.mask.sum(1).tolist() == [4, 7]
    assert batch.answer_positions is not None
    assert batch.answer_positions.tolist() == [[2, 3, 4], [3, 4, 5]]
    following = batch.tokens[1, batch.answer_positions[1] + 1]
    assert torch.equal(following, batch.answer_tokens[1])
    with pytest.raises(TaskError, match=r"1 prompts \(first: 'b'\) with more"):
        batch.require_single_token_answers()


def test_corrupted_twins_line_up_token_by_token(model: Model) -> None:
    good = Prompt("a", "Ada friend", corrupted="Ben friend")
    assert words(model, model.tokenize([good], corrupted=True).tokens[0]) == ["<bos>", "Ben", "friend"]
    with pytest.raises(TaskError, match="'a' has 3 tokens, its corrupted twin 4"):
        model.tokenize([Prompt("a", "Ada friend", corrupted="Ben friend boss")], corrupted=True)
    with pytest.raises(TaskError, match="'a' has no corrupted twin"):
        model.tokenize([Prompt("a", "Ada friend")], corrupted=True)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (Prompt("x", "Ada colleague"), r"does not know every word of 1 prompts \(first: 'x'\)"),
        (Prompt("x", "Ada friend", subject="Ben"), "'Ben' found 0 times"),
        (Prompt("x", "Ada friend . Ada boss", subject="Ada"), "'Ada' found 2 times"),
        (Prompt("x", "Ada " * 200), "at most 128"),
    ],
)
def test_prompts_that_cannot_be_used_are_named(model: Model, prompt: Prompt, says: str) -> None:
    with pytest.raises(TaskError, match=says):
        model.tokenize([prompt])


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
