"""Built-in prompts line up token by token under usual tokenizers; what does not is counted."""

import re
import warnings
from functools import cache
from typing import Any

import pytest
import torch

from interp.analyses.layer_skip import LayerSkip
from interp.errors import TaskError
from interp.models import Model, load_model
from interp.tasks import Prompt, Task, describe_tasks, load_task
from interp.tasks.batch import tokenize
from interp.tasks.fitting import SEVERAL, UNALIGNED, UNKNOWN, fit
from interp.zoo.tokenizer import build_tokenizer
from tests.tokenizers import byte_level, metaspace

OTHER_WORDS = (
    *("two-hop-facts", "facts", "plain-text"),
    *("ioi-english", "greater-than-english", "agreement", "induction-text"),
)
CPU = torch.device("cpu")
ENGLISH = [name for name in describe_tasks() if name not in ("one-hop", "two-hop")]


@cache
def tokenizers() -> dict[str, Any]:
    texts = [p.text + " " + (p.answer or "") for name in ENGLISH for p in load_task(name).prompts]
    texts += [
        " " + choice for name in ENGLISH for p in load_task(name).prompts for choice in p.choices
    ]
    texts = [re.sub(r"\d\d\d\d", "", text) for text in texts]
    texts += [
        f" {century} x{year:02d}" for century in range(11, 18) for year in range(100)
    ] * 3  # "1732" is "17" and "32"
    return {
        "word level": build_tokenizer(),
        "byte level": byte_level(texts),
        "metaspace": metaspace(texts),
    }


def fits(name: str, kind: str) -> bool:
    """Return what fits: the zoo's tokenizer knows few words, and digits leave years in pieces."""
    return {
        "word level": name not in OTHER_WORDS,
        "byte level": True,
        "metaspace": name != "greater-than",
    }[kind]


@pytest.mark.parametrize("kind", ["word level", "byte level", "metaspace"])
@pytest.mark.parametrize("name", describe_tasks())
def test_prompts_line_up(name: str, kind: str) -> None:
    tokenizer, task = tokenizers()[kind], load_task(name)
    if not fits(name, kind):
        with pytest.raises(TaskError, match="does not fit this tokenizer"):
            fit(tokenizer, task)
        return
    fitted = fit(tokenizer, task)
    assert len(fitted.task) >= 0.5 * len(task)
    prompts = fitted.task.prompts[:60]
    for prompt in prompts:
        batch = tokenize(tokenizer, [prompt], device=CPU, answers=prompt.answer is not None)
        row = batch.tokens[0].tolist()
        if "single_token_answer" in task.needs:
            batch.require_single_token_answers()
        if prompt.answer is not None:
            assert tokenizer.decode(row[batch.last.item() + 1 :]).strip() == prompt.answer
        if prompt.subject is not None:
            assert batch.subject is not None
            last_word = prompt.subject.split()[-1]
            until = tokenizer.decode(row[: batch.subject.item() + 1])
            assert until.rstrip(" ,").endswith(last_word)  # a comma may belong to the word
        if "aligned_twin" in task.needs:
            twin = tokenize(tokenizer, [prompt], device=CPU, corrupted=True).tokens[0].tolist()
            clean = tokenize(tokenizer, [prompt], device=CPU).tokens[0].tolist()
            assert 1 <= sum(a != b for a, b in zip(clean, twin, strict=True)) <= 4


def test_what_does_not_fit_is_counted_by_reason() -> None:
    prompts = (
        Prompt("good", "Ada friend", answer="Ned", corrupted="Ben friend"),
        Prompt("strange", "Ada colleague", answer="Ned"),
        Prompt("long", "Ada friend", answer="Ned Pia"),
        Prompt("shifted", "Ada friend", answer="Ned", corrupted="Ada friend boss"),
    )
    fitted = fit(
        build_tokenizer(), Task("mine", prompts, needs=("single_token_answer", "aligned_twin"))
    )
    assert [p.id for p in fitted.task.prompts] == ["good"]
    assert fitted.left_out == {UNKNOWN: 1, SEVERAL: 1, UNALIGNED: 1}
    assert str(fitted).startswith("1 prompt with words")


def test_a_users_task_is_not_thinned() -> None:
    with pytest.raises(TaskError, match="does not know every word of 1 prompt "):
        load_model("zoo/hops-4l").tokenize(Task("mine", (Prompt("a", "Ada colleague"),)).prompts)


def test_a_run_warns_of_what_it_leaves_out() -> None:
    model: Model = load_model("zoo/hops-4l")
    task = Task(
        "mine",
        (Prompt("a", "Ada friend", answer="Ned"), Prompt("b", "Ada x", answer="Ned")),
        needs=("single_token_answer",),
    )
    with pytest.warns(
        UserWarning, match="left out: 1 prompt with words that the tokenizer does not know"
    ):
        LayerSkip(scopes=("all",)).run(model, task)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LayerSkip(scopes=("all",)).run(model, task.of(task.prompts[:1]))


def test_a_chat_task_is_put_into_the_models_template() -> None:
    tokenizer = metaspace(["hello there user assistant [ ] hello"])
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
        " [assistant]"
    )
    task = Task.from_texts(["hello there"], chat=True)
    fitted = fit(tokenizer, task).task
    assert [prompt.text for prompt in fitted.prompts] == ["[user] hello there [assistant]"]
    assert not fitted.chat
    ids = tokenizer(fitted.prompts[0].text)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    with pytest.raises(TaskError, match="this tokenizer has no chat template"):
        fit(metaspace(["hello"]), task)
