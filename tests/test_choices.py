"""Options are scored by the likelihood of all their tokens."""

import pytest
import torch

from interp.errors import TaskError
from interp.models import load_model
from interp.sweeps.choices import score_choices
from interp.tasks import Prompt, Task


def test_scores_are_those_of_one_option_at_a_time() -> None:
    model = load_model("zoo/hops-4l")
    prompts = (
        Prompt("a", "Ada friend", answer="Ned", choices=("Ned", "Pia . Ada")),
        Prompt("b", "Ada friend boss", answer="Pia", choices=("Uma", "Pia", "Uma friend boss")),
    )
    frame = score_choices(model, Task("mine", prompts))
    assert frame["prompt"].tolist() == ["a", "a", "b", "b", "b"]
    for row in frame.itertuples():
        prompt = prompts["ab".index(row.prompt)]
        start, ids = (
            model.tokenizer(text)["input_ids"]
            for text in (prompt.text, f"{prompt.text} {row.option}")
        )
        log_probs = model.module(torch.tensor([ids])).logits[0].log_softmax(-1)
        naive = sum(log_probs[i - 1, ids[i]].item() for i in range(len(start), len(ids)))
        assert row.log_likelihood == pytest.approx(naive, abs=1e-4)
        assert row.per_byte == pytest.approx(naive / len(row.option), abs=1e-5)
    assert frame.groupby("prompt").chosen.sum().tolist() == [1, 1]
    assert frame.query("prompt == 'a' and is_answer").option.tolist() == ["Ned"]


def test_a_prompt_without_a_choice_is_named() -> None:
    with pytest.raises(TaskError, match="'a' has 0 choices"):
        score_choices(
            load_model("zoo/hops-4l"), Task("mine", (Prompt("a", "Ada friend", answer="Ned"),))
        )
