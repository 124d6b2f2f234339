"""Prompts of token ids, for models without text: fed as they are, asked all that needs no text."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from interp.analyses.void_skip import VoidSkip
from interp.cli import app
from interp.errors import AnalysisError, InterpError, ModelError, TaskError, UnsuitedError
from interp.models import Model, load_model
from interp.runs import Study, open_run
from interp.runs.registry import find_analyses, make_analysis
from interp.tasks import Prompt, Task, load_task
from tests.test_contract import LESS

NEED_TEXT = {"entity_description", "hop_stages"}  # a target prompt of words
NAMES = list("ACDEFGHIKLMNPQRSTVWY")


@pytest.fixture(scope="module")
def bare() -> Model:
    """Return a model without its tokenizer."""
    return load_model(load_model("zoo/hops-4l").module)


@pytest.fixture(scope="module")
def task() -> Task:
    """Return two-hop prompts as ids, with all that can be asked of them."""
    model, prompts = load_model("zoo/hops-4l"), load_task("two-hop", n=16).prompts
    rows = []
    for batch in (model.tokenize([prompt]) for prompt in prompts):
        ids = batch.tokens[0].tolist()
        first, last = int(batch.subject_start.item()), int(batch.subject.item())
        row = {
            "tokens": ids,
            "subject": ids[first : last + 1],
            "corrupted": [*ids[:-1], ids[-1] - 1 if ids[-1] > 5 else 5],
        }
        rows.append(
            row
            | {name: getattr(batch, name).item() for name in ("answer", "wrong", "bridge")}
            | {"tags": {"set": str(len(rows) % 2)}, "group": str(len(rows) // 2)}
        )
    return Task.from_hf(rows)


@pytest.mark.parametrize("name", find_analyses())
def test_every_analysis_that_needs_no_text_measures_ids(name: str, bare: Model, task: Task) -> None:
    less = {} if name in ("checkpoint_stitch", "feature_patching") else LESS.get(name, {})
    analysis = make_analysis(name, less)
    if name in NEED_TEXT:
        with pytest.raises(ModelError, match="has no tokenizer; give token ids, or a tokenizer"):
            analysis.run(bare, task)
        return
    if name == "feature_patching":  # it needs dictionaries; none are shipped for this model
        with pytest.raises(UnsuitedError, match="none are shipped"):
            analysis.run(bare, task)
        return
    if name == "checkpoint_stitch":  # it compares two models
        with pytest.raises(UnsuitedError, match="name the other with --against"):
            analysis.run(bare, task)
        return
    if name == "layer_removal":  # it writes texts, unless it is told not to
        with pytest.raises(ModelError, match="no tokenizer; generated texts"):
            analysis.run(bare, task)
        analysis = make_analysis(name, less | {"max_new_tokens": None})
    if name == "unit_map":
        with pytest.raises(AnalysisError, match="to match 336 units"):
            analysis.run(bare, task)
        return
    if name == "layer_routers":  # it deals groups out in three
        with pytest.raises(AnalysisError, match="15 are needed"):
            analysis.run(bare, task)
        return
    result = analysis.run(bare, task)
    assert result.summary()
    assert len(result.to_frame())


def test_ids_give_what_their_text_gives(bare: Model) -> None:
    model, text = (
        load_model("zoo/hops-4l"),
        Prompt("1", "Ada friend", answer="Ned", wrong="Pia", corrupted="Ben friend"),
    )
    batch = model.tokenize([text])
    names = [model.tokenizer.decode([i]) for i in range(model.d_vocab)]
    given = {"answers": batch.answer, "wrong": batch.wrong, "corrupted": batch.corrupted}
    for made in (
        Task.from_tokens(batch.tokens, **given),
        Task.from_tokens(batch.tokens.tolist(), **given, names=names),
    ):
        for each in (model, bare):
            same = each.tokenize(each.fit(made).task.prompts)
            for field in (
                "tokens",
                "mask",
                "last",
                "answer",
                "wrong",
                "corrupted",
                "answer_tokens",
            ):
                assert torch.equal(getattr(same, field), getattr(batch, field))
    assert made.prompts[0].text == "<bos> Ada friend"
    assert made.prompts[0].answer == "Ned"


def test_answers_of_several_ids_follow() -> None:
    (prompt,) = Task.from_tokens([[3, 4]], answers=[[5, 6]]).prompts
    assert (prompt.text, prompt.answer, prompt.spelling) == ("3 4", "5 6", {"5 6": (5, 6)})
    batch = load_model("zoo/hops-4l").tokenize([prompt], answers=True)
    assert batch.tokens.tolist() == [[3, 4, 5, 6]]


@pytest.mark.parametrize("names", [None, NAMES])
def test_ids_and_their_names_survive_a_file(names: list[str] | None, tmp_path: Path) -> None:
    rows = [[1, 2, 3], [4, 5, 6]]
    task = Task.from_tokens(
        rows, answers=[7, None], wrong=[8, 9], corrupted=[[1, 2, 4], None], names=names
    )
    task.to_jsonl(tmp_path / "t.jsonl")
    again = Task.from_jsonl(tmp_path / "t.jsonl")
    assert (again.prompts, again.names) == (task.prompts, task.names)
    assert again.prompts[0].text == ("C D E" if names else "1 2 3")
    assert again.prompts[1].answer is None


def test_names_that_ids_share_are_told_apart() -> None:
    (prompt,) = Task.from_tokens([[0, 1, 2]], answers=[1], names=["x", "x", " "]).prompts
    assert (prompt.text, prompt.answer, prompt.spelling["x(1)"]) == ("x(0) x(1)  (2)", "x(1)", (1,))
    with pytest.raises(TaskError, match="token 3 given; there are 3 names"):
        Task.from_tokens([[3]], names=["x", "y", "z"])


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"tokens": [1, 2], "answer": "Ned"},
            "row 1: 'answer': 'Ned' given; token ids, whole numbers, are needed",
        ),
        ({"tokens": [1, 2.5]}, "row 1: 'tokens': list"),
        ({"tokens": "1 2"}, "row 1: 'tokens': '1 2' given"),
        ({"tokens": [1, -2]}, "row 1: 'tokens': token -2 given; ids count from 0"),
        ({"tokens": []}, "row 1: 'tokens'"),
        ({"text": "a", "answer": [5]}, "row 1: 'answer' is \\[5\\]; a string is needed"),
    ],
)
def test_a_row_that_mixes_ids_and_texts_is_named(row: dict[str, Any], says: str) -> None:
    with pytest.raises(TaskError, match=says):
        Task.from_hf([row])


def test_what_a_model_says_behind_ids_is_not_compared_as_text(bare: Model, task: Task) -> None:
    for model in (bare, load_model("zoo/hops-4l")):
        with pytest.raises(
            InterpError,
            match=(
                r"generated texts \(max_new_tokens\) cannot be read|cannot be found in a generated"
            ),
        ):
            VoidSkip(max_new_tokens=2).run(model, task)


def test_a_run_on_ids_shows_their_names(
    bare: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bare.module.save_pretrained("proteins")
    Task.from_tokens([[1, 2, 3], [4, 5, 6]], answers=[7, 8], names=NAMES).to_jsonl(
        "sequences.jsonl"
    )
    with Path("sequences.jsonl").open("a") as file:
        file.write('{"text": "a sequence", "id": "x"}\n')
    asked = [
        "run",
        "--model",
        "./proteins",
        "--task",
        "sequences.jsonl",
        "--analysis",
        "logit_lens",
    ]
    done = CliRunner().invoke(app, [*asked, "--out", "r"])
    assert done.exit_code == 0, done.output
    assert "1 prompt of text, for a model without a tokenizer" in done.output
    folder = next(path.parent for path in Path("r").rglob("tokens.json"))
    assert json.loads((folder / "tokens.json").read_text())["tokens"] == [[1, 2, 3], [4, 5, 6]]
    vocabulary = json.loads(next(Path("r").rglob("vocabulary.json")).read_text())["vocabulary"]
    assert vocabulary[:21] == [*NAMES, "20"]
    assert [p.text for p in open_run("r").prompts("./proteins", "sequences.jsonl")] == [
        "C D E",
        "F G H",
    ]
    dry = CliRunner().invoke(app, [*asked, "--dry-run"])
    assert "prompts end like '1' '2' '3', followed by '7'" in dry.output


def test_chat_columns_and_spaces_are_asked_for_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"q": "Ada friend", "gold": "Ned"}\n{"q": "Ben friend", "gold": "Pia"}\n')
    asked = [
        "run",
        "--model",
        "zoo/hops-4l",
        "--task",
        str(file),
        "--analysis",
        "logit_lens",
        "--dry-run",
    ]
    runner = CliRunner()
    done = runner.invoke(app, [*asked, "--columns", "text=q, answer=gold"])
    assert "'friend', followed by 'Ned'" in done.output
    for flags, says in (
        (["--columns", "text"], "FIELD=COLUMN"),
        (["--columns", "text=question"], "unknown column 'question'"),
        (["--columns", "txt=q"], "unknown field 'txt'; did you mean 'text'"),
        (["--columns", "text=q", "--space", "none"], "unknown space 'none'"),
    ):
        refused = runner.invoke(app, [*asked, *flags])
        assert isinstance(refused.exception, InterpError)
        assert says in str(refused.exception)
    chat = runner.invoke(app, [*asked, "--columns", "text=q", "--chat"])
    assert "is a chat; this tokenizer has no chat template" in " ".join(chat.output.split())


def test_a_study_carries_how_texts_are_meant(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"q": "Ada friend", "gold": "Ned"}\n')
    study = Study(
        ("m",), (str(file),), {}, chat=True, columns={"text": "q", "answer": "gold"}, space="never"
    )
    task = study.load_task(str(file))
    assert task.chat
    assert (task.prompts[0].text, task.prompts[0].answer, task.prompts[0].space) == (
        "Ada friend",
        "Ned",
        "never",
    )
