"""What dictionaries are trained on: the texts of tasks and files, without massive activations."""

from pathlib import Path

import torch

from interp.tasks import load_task
from scripts.dictionary_texts import split
from scripts.train_dictionary import usual


def test_texts_of_tasks_and_files_are_each_read_once_and_some_are_kept_for_the_end(
    tmp_path: Path,
) -> None:
    file = tmp_path / "some.txt"
    file.write_text("one\n text\n\nanother\n\n\nanother")
    prompts = load_task("ioi-english").prompts
    twins = {text for p in prompts for text in (p.text, p.corrupted)} - {None}
    known, new = split(["ioi-english", str(file)], seed=0)
    assert {*known, *new} == {*twins, "one text", "another"}
    assert len(known) + len(new) == len(twins) + 2
    assert len(new) == (len(twins) + 2) // 10
    assert split(["ioi-english", str(file)], seed=0) == (known, new)


def test_massive_activations_are_left_out() -> None:
    x = torch.eye(4)
    x[2] *= 100
    torch.testing.assert_close(usual(x), x[[0, 1, 3]])
