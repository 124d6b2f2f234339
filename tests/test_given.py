"""What is given is understood by its type, is missing, or is refused in one line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

from interp.errors import InterpError, TaskError
from interp.models import Model, load_model
from interp.tasks import Prompt, Task

OPTIONAL = ("answer", "wrong", "corrupted", "subject", "bridge")
MISSING = [None, "", "  ", "\n", float("nan"), np.float32("nan"), pd.NA, pd.NaT]


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("zoo/hops-4l")


@pytest.mark.parametrize("missing", MISSING, ids=repr)
@pytest.mark.parametrize("name", OPTIONAL)
def test_blanks_and_empty_cells_are_missing_however_a_prompt_is_made(
    name: str, missing: Any, tmp_path: Path
) -> None:
    rows = [{"text": "Ada friend", name: "Ned"}, {"text": "Ben friend", name: missing}]
    tasks = [
        Task.from_hf(rows),
        Task.from_frame(pd.DataFrame(rows)),
        Task.from_frame(pd.DataFrame(rows).convert_dtypes()),
    ]
    if isinstance(missing, str | None):
        path = tmp_path / "t.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        tasks.append(Task.from_jsonl(path))
    for task in tasks:
        assert [getattr(prompt, name) for prompt in task.prompts] == ["Ned", None]
    if isinstance(missing, str | None):
        assert getattr(Prompt("1", "Ben friend", **{name: missing}), name) is None


@pytest.mark.parametrize("missing", [*MISSING, b"Ada", 3], ids=repr)
def test_a_prompt_without_a_text_is_named(missing: Any) -> None:
    with pytest.raises(TaskError, match=r"row 2: (no 'text'|'text' is .*; a string is needed)"):
        Task.from_hf([{"text": "Ada"}, {"text": missing}])


_WITHOUT_TYPE_CHECKS = """
import numpy as np, pandas as pd
from interp import Prompt
from interp.errors import TaskError

for missing in ("", " ", None, float("nan"), np.float32("nan"), pd.NA, pd.NaT):
    for name in ("answer", "wrong", "corrupted", "subject", "bridge"):
        assert getattr(Prompt("1", "Ada", **{name: missing}), name) is None
    try:
        raise SystemExit(Prompt("1", missing))
    except TaskError as error:
        assert str(error) == "prompt '1': no 'text'"
wrong = [{"text": b"Ada"}, {"text": ["Ada"]}, {"answer": 3}, {"answer": ["Ned"]}]
wrong += [{"choices": "abc"}, {"choices": ["a", 3]}, {"aliases": "x"}, {"id": 1}]
wrong += [{"space": "some"}, {"tokens": "1 2"}, {"tokens": [1.5]}, {"answer_index": "0"}]
for fields in wrong:
    try:
        raise SystemExit(Prompt(**{"id": "1", "text": "Ada"} | fields))
    except TaskError as error:
        assert "needed" in str(error) or "unknown space" in str(error), error
"""


def test_prompts_made_by_hand_are_checked_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TYPE_CHECKS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "call",
    [
        lambda _: Task.from_texts("Once upon a time"),
        lambda _: Task.from_texts(b"Once"),
        lambda _: Task.from_texts(["Once", None]),
        lambda _: Task.from_texts(["Once", 3]),
        lambda _: Task.from_texts({"text": "Once"}),
        lambda _: Task.from_texts(3),
        lambda _: Task.from_texts(torch.tensor([1, 2])),
        lambda _: Task.from_frame([{"text": "Once"}]),
        lambda _: Task.from_frame(None),
        lambda _: Task.from_hf("imdb"),
        lambda _: Task.from_hf(None),
        lambda _: Task.from_hf(["Once", "upon"]),
        lambda _: Task.from_tokens("1 2 3"),
        lambda _: Task.from_tokens([1, 2, 3]),
        lambda _: Task.from_tokens([["a"]]),
        lambda _: Task.from_tokens([[1.5]]),
        lambda _: Task.from_tokens([[-1]]),
        lambda _: Task.from_tokens([[]]),
        lambda _: Task.from_tokens([[1]], answers=3),
        lambda _: Task.from_tokens([[1], [2]], answers=[3]),
        lambda m: m.tokenize([1, 403, 407]),
        lambda m: m.tokenize([None]),
        lambda m: m.tokenize(None),
        lambda m: m.tokenize(b"Ada"),
        lambda m: m.tokenize(3),
        lambda m: m.tokenize([]),
        lambda m: m.tokenize({"input_ids": [1, 2]}),
        lambda m: m.tokenize(torch.tensor(3)),
        lambda m: m.tokenize(torch.tensor([0.5, 1.0])),
        lambda m: m.tokenize(torch.zeros(2, 2, 2, dtype=torch.long)),
        lambda m: m.tokenize(torch.tensor([[True, False]])),
        lambda m: m.tokenize(Task.from_texts(["Ada friend"])),
        lambda m: m.tokenize([[1, 9999]]),
        lambda m: m.tokenize([["Ada", "friend"]]),
    ],
)
def test_what_is_neither_texts_nor_ids_is_refused_in_one_line(
    call: Callable[[Model], Any], model: Model
) -> None:
    with pytest.raises(InterpError) as refused:
        call(model)
    assert "\n" not in str(refused.value)


def test_texts_and_ids_are_told_apart(model: Model) -> None:
    row = model.tokenize("Ada friend").tokens
    ids = row[0].tolist()
    for given in (
        row,
        row[0],
        [ids],
        [row[0]],
        row.numpy(),
        row[0].numpy(),
        [tuple(ids)],
        row.int(),
        (ids,),
    ):
        assert torch.equal(model.tokenize(given).tokens, row)
    assert torch.equal(model.tokenize(Prompt("1", "Ada friend")).tokens, row)
    assert torch.equal(model.tokenize(np.array(["Ada friend"])).tokens, row)
    assert model.tokenize(["Ada friend", ids]).tokens.tolist() == [ids, ids]
    assert model.tokenize(text for text in ["Ada friend"]).tokens.tolist() == [ids]


ROWS = [{"text": "Ada friend", "answer": "Ned"}, {"text": "Ben friend", "answer": "Pia"}]
COLUMNS = {"text": ["Ada friend", "Ben friend"], "answer": ["Ned", "Pia"]}


@pytest.mark.parametrize(
    "given",
    [
        ROWS,
        tuple(ROWS),
        (row for row in ROWS),
        COLUMNS,
        {"text": np.array(COLUMNS["text"]), "answer": pd.Series(COLUMNS["answer"])},
        pd.DataFrame(ROWS),
        datasets.Dataset.from_list(ROWS),
        datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
    ],
    ids=lambda given: type(given).__name__,
)
def test_rows_and_columns_are_read(given: Any) -> None:
    task = Task.from_hf(given)
    assert [(p.text, p.answer) for p in task.prompts] == [
        ("Ada friend", "Ned"),
        ("Ben friend", "Pia"),
    ]


@pytest.mark.parametrize(
    "splits",
    [
        datasets.DatasetDict(
            {
                "train": datasets.Dataset.from_list(ROWS),
                "test": datasets.Dataset.from_list(ROWS[:1]),
            }
        ),
        datasets.IterableDatasetDict(
            {
                "train": datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
                "test": datasets.Dataset.from_list(ROWS[:1]),
            }
        ),
        {"train": ROWS, "test": ROWS[:1]},
        {"train": pd.DataFrame(ROWS), "test": pd.DataFrame(ROWS[:1])},
        {"train": COLUMNS, "test": {key: column[:1] for key, column in COLUMNS.items()}},
    ],
    ids=lambda given: type(given).__name__,
)
def test_splits_are_named_and_one_is_taken(splits: Any) -> None:
    for columns in (None, {"text": "text"}):
        with pytest.raises(TaskError, match=r"splits train, test given; choose one with split="):
            Task.from_hf(splits, columns)
    assert [len(Task.from_hf(splits, split=split)) for split in ("train", "test")] == [2, 1]
    with pytest.raises(TaskError, match="unknown split 'tset'; did you mean 'test'"):
        Task.from_hf(splits, split="tset")


def test_a_split_of_rows_and_columns_of_several_lengths_are_refused() -> None:
    with pytest.raises(TaskError, match="split 'train' asked for; there is one list of rows"):
        Task.from_hf(ROWS, split="train")
    with pytest.raises(TaskError, match=r"columns of several lengths given \(text 2, answer 1\)"):
        Task.from_hf({"text": ["a", "b"], "answer": ["c"]})
