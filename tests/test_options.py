"""An answer is one option, by label first; what could mean two is refused with its row."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from interp.analyses.void_skip import VoidSkip
from interp.errors import TaskError
from interp.models import load_model
from interp.sweeps.choices import option_order, score_choices, shuffled
from interp.tasks import Prompt, Task

COLUMNS = {"text": "q", "choices": "o", "answer": "a"}
LEGS = ["2", "1", "4", "3"]


def read(options: Any, key: Any, labels: Any = None) -> Prompt:
    row = {"q": "How many legs?", "o": options, "a": key} | (
        {} if labels is None else {"l": labels}
    )
    return Task.from_hf([row], COLUMNS | ({} if labels is None else {"labels": "l"})).prompts[0]


@pytest.mark.parametrize(
    ("options", "key", "option"),
    [
        ({"text": LEGS, "label": ["1", "2", "3", "4"]}, "3", 2),
        ({"text": LEGS, "label": ["1", "2", "3", "4"]}, 3, 2),
        (
            {
                "text": np.array(LEGS, dtype=object),
                "label": np.array(["1", "2", "3", "4"], dtype=object),
            },
            "3",
            2,
        ),
        ({"text": ["B", "A", "O", "AB"], "label": ["A", "B", "C", "D"]}, "B", 1),
        ({"text": ["B", "A", "O", "AB"], "label": ["A", "B", "C", "D"]}, "AB", 3),
        ({"text": ["B", "A", "O", "AB"], "label": ["A", "B", "C", "D"]}, 0, 0),
        ({"A": "B", "B": "O", "C": "A"}, "A", 0),
        ([{"text": "2", "label": "1"}, {"text": "1", "label": "2"}], "2", 1),
        (["red", "green"], "B", 1),
        (["red", "green"], "b", 1),
        (["red", "green"], np.int64(1), 1),
        (["red", "green"], 1.0, 1),
        (["0", "1", "2"], "2", 2),
        (("red", "green"), "green", 1),
    ],
)
def test_an_answer_is_the_option_that_its_key_names(options: Any, key: Any, option: int) -> None:
    prompt = read(options, key)
    assert (prompt.option, prompt.answer) == (option, prompt.choices[option])


def test_labels_may_be_a_column_of_their_own() -> None:
    assert read(LEGS, "3", labels=["1", "2", "3", "4"]).answer == "4"
    assert read(LEGS, "C", labels=list("ABCD")).answer == "4"
    with pytest.raises(TaskError, match="row 1: 3 labels for 4 choices"):
        read(LEGS, "A", labels=list("ABC"))


@pytest.mark.parametrize(
    ("options", "key", "says"),
    [
        (
            LEGS,
            "2",
            "row 1: the answer '2' may be the text of choice 0 or a number; give labels",
        ),
        (["3", "0", "1"], 1, "row 1: the answer 1 may be the text of choice 2 or a number"),
        (["B", "A", "O"], "A", "row 1: the answer 'A' may be the text of choice 1 or a letter"),
        (
            ["red", "red"],
            "red",
            "row 1: the answer 'red' may be the text of choice 0 or the text of choice 1",
        ),
        (
            ["red", "green"],
            2,
            "row 1: the answer 2 is not among the choices 'red', 'green'; numbers count from 0",
        ),
        (["red", "green"], -1, "row 1: the answer -1 is not among"),
        ({"text": LEGS, "label": ["1", "2", "3", "4"]}, 0, "is not among the labels 1, 2, 3, 4"),
        ({"text": LEGS, "label": ["1", "1", "3", "4"]}, "1", "3 labels for 4 choices"),
        (["red", "green"], True, "'answer' is True; a choice's label"),
        (["red", "green"], ["red"], "'answer' is \\['red'\\]; a choice's label"),
        ("ab", "a", "row 1: 'choices' is 'ab'; a list of strings"),
        (["red", None], "red", "row 1: 'choices' has NoneType None; a list of strings"),
        (["red", " "], "red", "row 1: one of its 2 choices is empty"),
    ],
)
def test_what_may_be_two_options_or_none_is_refused(options: Any, key: Any, says: str) -> None:
    with pytest.raises(TaskError, match=says):
        read(options, key)


def test_options_that_read_the_same_are_told_apart_by_index(tmp_path: Path) -> None:
    prompt = read({"text": ["Ned", "Pia", "Ned"], "label": ["A", "B", "C"]}, "C")
    assert (prompt.answer, prompt.option) == ("Ned", 2)
    task = Task("t", (prompt,))
    task.to_jsonl(tmp_path / "t.jsonl")
    assert Task.from_jsonl(tmp_path / "t.jsonl").prompts == task.prompts
    assert Task.from_frame(task.to_frame()).prompts == task.prompts
    with pytest.raises(
        TaskError, match="prompt '1': several choices are 'Ned'; answer_index says which"
    ):
        Prompt("1", "Ada friend", answer="Ned", choices=("Ned", "Ned"))
    with pytest.raises(TaskError, match="answer_index is 2; there are 2 choices"):
        Prompt("1", "Ada friend", choices=("Ned", "Pia"), answer_index=2)
    with pytest.raises(TaskError, match="the answer is 'Ned', and choice 1 is 'Pia'"):
        Prompt("1", "Ada friend", answer="Ned", choices=("Ned", "Pia"), answer_index=1)


def test_one_option_is_the_answer_also_where_two_read_the_same() -> None:
    model = load_model("zoo/hops-4l")
    frame = score_choices(
        model,
        Task("t", (Prompt("1", "Ada friend", choices=("Ned", "Pia", "Ned"), answer_index=2),)),
    )
    assert frame["is_answer"].tolist() == [False, False, True]
    assert frame["log_likelihood"][0] == pytest.approx(frame["log_likelihood"][2], abs=1e-5)


def test_options_are_shuffled_as_their_numbers() -> None:
    prompt = Prompt("7", "x", answer="c", choices=("a", "b", "c", "d"))
    assert shuffled(prompt, seed=3) == tuple(
        prompt.choices[i] for i in option_order(prompt, seed=3)
    )


def test_choices_without_an_answer_are_read_and_refused_only_where_one_is_needed() -> None:
    rows = [
        {"q": "Ada friend", "o": ["Ned", "Pia"], "a": missing}
        for missing in (None, "", float("nan"), pd.NA)
    ]
    task = Task.from_hf(rows, COLUMNS)
    assert [(p.answer, p.option) for p in task.prompts] == [(None, None)] * 4
    model = load_model("zoo/hops-4l")
    with pytest.raises(TaskError, match="prompt '1' has 2 choices and the answer None"):
        score_choices(model, task)
    assert VoidSkip(alpha=0.8, alphas=(), n_random=1).run(model, task).scores == ("nats per token",)
