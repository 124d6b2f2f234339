"""The space before an answer is where a writer would leave one."""

import pytest

from interp.errors import TaskError
from interp.tasks import Task, load_task
from interp.tasks.prompts import followed_by
from interp.tasks.spacing import check_space, space_between

NONE = [
    ("日本の首都は", "東京"), ("法国的首都是", "巴黎"), ("首都：", "东京"), ("答案:", "东京"),
    ("เมืองหลวงคือ", "กรุงเทพ"), ("រាជធានី", "ភ្នំពេញ"), ("ເມືອງຫຼວງ", "ວຽງຈັນ"),
    ("မြို့တော်", "နေပြည်တော်"), ("ལྷ", "ས"), ("カナ", "カ"), ("東京は", "Tokyo"),
    ('She said "', "Hello"), ("“", "Hi"), ("„", "Hallo"), ("Il dit «", "Oui"),
    ("Er sagte »", "Ja"), ("He said '", "Hi"), ('{"name": "', "Bob"),
    ("The code is `", "x"), ("It is **", "Paris"), ("「", "x"), ("print(", "x"), ("[", "1"),
    ("{", "a"), ("It costs $", "5"), ("It costs €", "5"), ("£", "5"), ("¥", "5"),
    ("US$", "5"), ("Issue #", "12"), ("user@", "example"), ("twenty-", "five"),
    ("/usr/", "bin"), ("C:\\", "Windows"), ("snake_", "case"), ("x=", "5"),
    ("1914–", "1918"), ("x = -", "5"), ("x->", "y"), ("<b>", "bold"),
    ("<|assistant|>", "Hi"), ("in 17", "32"), ("It is 3.", "14"), ("Paris", ","),
    ("50", "%"), ("(x", ")"), ('He said "Hi', '"'), ("Tom", "'s"), ("l'", "homme"),
    ("qu’", "il"), ("dell'", "arte"), ("a ", "b"), ("a", "\nb"),
]  # fmt: skip
SPACE = [
    ("The capital is", "Paris"), ("Answer:", "Paris"), ("Is it?", "Yes"), ("서울은", "한국의"),
    ("Столица", "Москва"), ("عاصمة مصر هي", "القاهرة"), ("राजधानी", "दिल्ली"),
    ("Answer:", "東京"), ("The Chinese for Paris is", "巴黎"), ('He said "Hi"', "and"),
    ("„Hallo“", "sagte"), ("«oui»", "dit"), ("»ja«", "sagte"), ("He said 'hello'", "and"),
    ("(x)", "y"), ("the dogs'", "bowl"), ("2 + 2 =", "4"), ("cat ->", "chat"),
    ("5 €", "today"), ("C#", "is"), ("#", "Title"), ("\n-", "apples"), ("Tom &", "Jerry"),
    ("is", "-5"), ("is", ".5"), ("is", "'hello'"), ("is", '"hello"'), ("is", "(a)"),
    ("is", "$5"), ("**Paris**", "is"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "answer"), NONE)
def test_no_space_stands_after_what_opens_or_joins_and_in_scripts_without(
    text: str, answer: str
) -> None:
    assert followed_by(text, answer) == text + answer


@pytest.mark.parametrize(("text", "answer"), SPACE)
def test_a_space_stands_between_words(text: str, answer: str) -> None:
    assert followed_by(text, answer) == f"{text} {answer}"


def test_the_space_can_be_set_and_is_part_of_the_prompt() -> None:
    assert [space_between("x =", "5", how) for how in ("auto", "always", "never")] == [" ", " ", ""]
    assert [space_between("東京", "は", how) for how in ("auto", "always", "never")] == [
        "",
        " ",
        "",
    ]
    assert space_between("a ", "b", "always") == ""
    task = Task.from_hf([{"text": "x =", "answer": "5"}], space="never")
    assert task.prompts[0].space == "never"
    assert {
        p.space
        for others in load_task("two-hop-facts", n=2, space="always").related.values()
        for p in others.values()
    } == {"always"}
    with pytest.raises(TaskError, match="unknown space 'none'; there is always, auto, never"):
        check_space("none")


def test_the_space_survives_a_file(tmp_path) -> None:
    task = Task.from_hf([{"text": "x =", "answer": "5"}, {"text": "y ="}], space="never")
    task.to_jsonl(tmp_path / "t.jsonl")
    assert Task.from_jsonl(tmp_path / "t.jsonl").prompts == task.prompts
    assert Task.from_frame(task.to_frame()).prompts == task.prompts
