"""Special tokens stand before prompts, never behind; chats are the template's tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from interp.analyses.logit_lens import LogitLens
from interp.capture import capture
from interp.errors import TaskError
from interp.models import Model, load_model
from interp.sites import Site
from interp.sweeps.choices import score_choices
from interp.tasks import Prompt, Task
from interp.tasks.batch import padding
from interp.tasks.encoding import special_tokens

CPU = torch.device("cpu")
WORDS = [
    "<unk>",
    "<s>",
    "</s>",
    "[CLS]",
    "[SEP]",
    *"abcdefgh",
    "User:",
    "Bot:",
    "Yes",
    "No",
    "one",
    "two",
    "<think>",
    "\n",
    "[",
    "]",
]


def words(single: str = "<s> $A", **special: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words, with special tokens around a text as in `single`."""
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    around = [token for token in single.split() if token != "$A"]
    if around:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[(token, WORDS.index(token)) for token in around]
        )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.replace("\n", " \n ").split(" ") if word]


def model_of(tokenizer: Any, *, d_vocab: int = len(WORDS)) -> Model:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=d_vocab,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    return load_model(LlamaForCausalLM(config).eval(), tokenizer=tokenizer)


AROUND = {
    "<s> $A": ([1], []),
    "<s> $A </s>": ([1], [2]),
    "[CLS] $A [SEP]": ([3], [4]),
    "$A </s>": ([], [2]),
    "$A": ([], []),
}


@pytest.mark.parametrize("single", AROUND)
def test_what_is_put_in_front_stays_and_what_is_put_behind_goes(single: str, tmp_path) -> None:
    tokenizer, (front, behind) = words(single), AROUND[single]
    assert special_tokens(tokenizer) == (front, behind)
    model = model_of(tokenizer)
    prompt = Prompt(
        "1", "a b", answer="c", wrong="d", corrupted="a d", subject="b", choices=("c", "e f")
    )
    batch = model.tokenize([prompt])
    assert batch.tokens.tolist() == [[*front, *ids("a b")]]
    assert (batch.answer.tolist(), batch.wrong.tolist()) == (ids("c"), ids("d"))
    assert batch.corrupted.tolist() == [[*front, *ids("a d")]]
    assert [batch.subject.item(), batch.subject_start.item(), batch.last.item()] == [
        len(front) + 1
    ] * 3
    assert model.tokenize([prompt], answers=True).tokens.tolist() == [[*front, *ids("a b c")]]
    assert model.options(prompt, prompt.choices) == [tuple(ids("c")), tuple(ids("e f"))]
    corpus = capture(
        load_model(model.module, tokenizer=tokenizer, store=tmp_path),
        ["a b"],
        sites=[Site("resid_pre", 0)],
        name="c",
    )
    assert corpus.tokens(0).tolist() == [*front, *ids("a b")]


def test_a_tokenizer_in_python_that_tells_no_offsets_serves_too() -> None:
    tokenizer = ByT5Tokenizer(extra_ids=0)  # bytes, and </s> behind
    model = model_of(tokenizer, d_vocab=300)
    prompt = Prompt("1", "né à Ur", answer="ok", subject="à")
    batch = model.tokenize([prompt])
    assert batch.tokens.tolist() == [[byte + 3 for byte in "né à Ur".encode()]]
    assert [batch.subject_start.item(), batch.subject.item()] == [4, 5]
    assert batch.answer_tokens.tolist() == [[byte + 3 for byte in b" ok"]]


@pytest.mark.parametrize(
    ("special", "single"),
    [
        ({"unk_token": "<s>", "eos_token": "<s>"}, "<s> $A"),  # OPT, GPT-2 with BOS
        ({"unk_token": "</s>"}, "<s> $A </s>"),
        ({"bos_token": "<unk>"}, "<unk> $A"),
        ({"unk_token": "a"}, "<s> $A"),  # a word of the language
    ],
)
def test_a_special_token_that_is_also_unknown_is_no_unknown_word(
    special: dict[str, str], single: str
) -> None:
    model = model_of(words(single, **special))
    front = ids(single.split()[0])
    assert model.tokenize("a b").tokens.tolist() == [[*front, *ids("a b")]]
    assert len(model.fit(Task.from_texts(["a b", "c d"])).task) == 2


def test_a_text_that_names_the_unknown_token_or_brings_bos_is_taken_at_its_word() -> None:
    model = model_of(words())
    assert model.tokenize("a <unk> b").tokens.tolist() == [ids("<s> a <unk> b")]
    assert model.tokenize("<s> a b").tokens.tolist() == [ids("<s> a b")]
    with pytest.raises(TaskError, match=r"does not know every word of 1 prompt .*; not 'zebra'"):
        model.tokenize("a <unk> zebra")


@pytest.mark.parametrize("pad", [None, len(WORDS) + 5, -1, 0, 2])
def test_prompts_are_padded_with_a_token_that_the_model_has(pad: int | None) -> None:
    tokenizer = words()
    if pad == len(WORDS) + 5:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        assert tokenizer.pad_token_id >= len(WORDS)
    model = model_of(tokenizer)
    if pad == -1:
        assert padding(type("T", (), {"pad_token_id": -1, "eos_token_id": 99})(), 5) == 0
    batch = model.tokenize(["a", "a b c"])
    assert 0 <= int(batch.tokens.min()) <= int(batch.tokens.max()) < len(WORDS)
    alone = model.logits(model.tokenize("a"))
    assert torch.allclose(model.logits(batch)[0, : alone.shape[1]], alone[0], atol=1e-5)
    assert model.generate(batch, max_new_tokens=3).tokens.shape[0] == 2


def test_ids_beyond_the_embedding_are_named_and_left_out() -> None:
    model = model_of(words(), d_vocab=12)  # a b c d e f g, not h
    with pytest.raises(
        TaskError, match="prompt '0' has token 12; the model's vocabulary is 0 to 11"
    ):
        model.tokenize("a h")
    task = Task("t", (Prompt("1", "a h"), Prompt("2", "a b"), Prompt("3", "a b", answer="h")))
    fitted = model.fit(task)
    assert [p.id for p in fitted.task.prompts] == ["2", "3"]
    assert "with token ids that the model does not have" in fitted.left_out
    assert "has token 12" in model.tokenize(fitted.task.prompts[1:]).why["answer"]


def test_one_bad_prompt_is_left_out_and_counted() -> None:
    tokenizer = words()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("~", "")
    model = model_of(tokenizer)
    bad = [Prompt("z", "a zebra"), Prompt("l", "a " * 20), Prompt("e", "~~")]
    good = [Prompt("1", "a b", answer="c"), Prompt("2", "c d")]
    fitted = model.fit(Task("t", (*bad, *good)))
    assert [p.id for p in fitted.task.prompts] == ["1", "2"]
    assert fitted.left_out == {
        "with words that the tokenizer does not know": 1,
        "longer than the model reads (16 tokens)": 1,
        "without a token": 1,
    }
    with pytest.raises(
        TaskError, match="task 't' does not fit this tokenizer: 1 prompt with words"
    ):
        model.fit(Task("t", tuple(bad)))
    with pytest.warns(
        UserWarning,
        match=(
            "left out: 1 prompt with words .*, 1 prompt longer than .*, 1 prompt without a token"
        ),
    ):
        LogitLens(top_k=2).run(model, Task("t", (*bad, *good)))


def test_prompts_of_a_shard_can_be_asked_the_same() -> None:
    model = model_of(words())
    prompts = (
        Prompt("plain", "a b"),
        Prompt("answered", "a b", answer="c"),
        Prompt("strange", "a b", answer="zebra"),
        Prompt("wrong", "a b", answer="c", wrong="d"),
        Prompt("strange wrong", "a b", answer="c", wrong="zebra"),
        Prompt("subject", "a b", subject="b"),
        Prompt("twice", "b b", subject="b"),
        Prompt("nowhere", "a b", subject="h"),
        Prompt("twin", "a b", corrupted="a c"),
        Prompt("longer", "a b", corrupted="a b c"),
        Prompt("strange twin", "a b", corrupted="a zebra"),
        Prompt("bridge", "a b", bridge="c"),
        Prompt("strange bridge", "a b", bridge="zebra"),
        Prompt("long", "a b c", answer="c"),
    )
    shards = model.shards(Task("t", prompts))
    assert sorted(p.id for shard in shards for p in shard) == sorted(p.id for p in prompts)
    for shard in shards:
        alone = [model.tokenize([prompt]) for prompt in shard]
        together = model.tokenize(shard)
        for name in ("answer", "wrong", "subject", "bridge", "corrupted"):
            assert {getattr(each, name) is None for each in alone} == {
                getattr(together, name) is None
            }
    why = {p.id: model.tokenize([p]).why for p in prompts}
    assert why["twice"] == {"subject": "prompt 'twice': subject 'b' found 2 times; once is needed"}
    assert why["longer"] == {
        "corrupted": "prompt 'longer' has 3 tokens, its corrupted twin 4; as many are needed"
    }
    assert why["strange bridge"] == {
        "bridge": "prompt 'strange bridge': the tokenizer does not know its bridge, 'zebra'"
    }
    assert [key for key, value in why.items() if value] == [
        "strange",
        "strange wrong",
        "twice",
        "nowhere",
        "longer",
        "strange twin",
        "strange bridge",
    ]


# Chats

WHO = "{{ 'User:' if m.role == 'user' else 'Bot:' }} "
ASKED = "{% if add_generation_prompt %}Bot: {% endif %}"
ENDED = "{% if m.role == 'assistant' %}{{ eos_token }}\n{% endif %}"
TEMPLATES = {
    "with BOS": (
        "{{ bos_token }}{% for m in messages %}"
        + WHO
        + "{{ m.content }} "
        + ENDED
        + "{% endfor %}"
        + ASKED
    ),
    "without BOS": (
        "{% for m in messages %}" + WHO + "{{ m.content | trim }} " + ENDED + "{% endfor %}" + ASKED
    ),
    "parts": (
        "{% for m in messages %}"
        + WHO
        + "{% for p in m.content %}{{ p.text }} {% endfor %}{% endfor %}"
        + ASKED
    ),
    "system": (
        "{% if messages[0].role != 'system' %}a a {% endif %}{% for m in messages %}"
        + WHO
        + "{{ m.content }} {% endfor %}"
        + ASKED
    ),
}


def said(tokenizer: Any, text: str) -> list[int]:
    """Return what the template makes of a text, whatever it wants a text to be."""
    content: Any = (
        text if "p.text" not in tokenizer.chat_template else [{"type": "text", "text": text}]
    )
    message = [{"role": "user", "content": content}]
    return tokenizer.apply_chat_template(message, tokenize=True, add_generation_prompt=True)[
        "input_ids"
    ]


@pytest.mark.parametrize("single", ["<s> $A", "$A", "<s> $A </s>"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_is_the_templates_tokens(name: str, single: str, tmp_path: Path) -> None:
    tokenizer = words(single)
    tokenizer.chat_template = TEMPLATES[name]
    model = model_of(tokenizer)
    prompt = Prompt(
        "1",
        "a b",
        answer="Yes",
        wrong="No",
        corrupted="a c",
        subject="b",
        bridge="d",
        choices=("Yes", "No one"),
    )
    related = {"1": {"first_hop": Prompt("1:f", "b c", answer="d")}}
    fitted = model.fit(Task("t", (prompt,), related=related, chat=True)).task
    batch = model.tokenize(fitted.prompts)
    assert batch.tokens.tolist() == [said(tokenizer, "a b")]
    assert batch.corrupted.tolist() == [said(tokenizer, "a c")]
    assert [batch.answer.item(), batch.wrong.item(), batch.bridge.item()] == ids("Yes No d")
    assert WORDS[batch.tokens[0, batch.subject.item()].item()] == "b"
    assert model.tokenize(fitted.prompts, answers=True).tokens.tolist() == [
        [*said(tokenizer, "a b"), *ids("Yes")]
    ]
    assert model.tokenize(fitted.prompts, corrupted=True).tokens.tolist() == [
        said(tokenizer, "a c")
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text(fitted.to_lines())
    assert Task.from_jsonl(path).prompts == fitted.prompts
    (first_hop,) = fitted.related["1"].values()
    assert model.tokenize([first_hop]).tokens.tolist() == [said(tokenizer, "b c")]
    assert model.options(fitted.prompts[0], prompt.choices) == [
        tuple(ids("Yes")),
        tuple(ids("No one")),
    ]
    frame = score_choices(model, Task("t", (prompt,), chat=True))
    logits = (
        model.module(torch.tensor([[*said(tokenizer, "a b"), *ids("No one")]]))
        .logits[0]
        .log_softmax(-1)
    )
    n = len(said(tokenizer, "a b"))
    naive = logits[n - 1, ids("No")[0]] + logits[n, ids("one")[0]]
    assert frame["log_likelihood"][1] == pytest.approx(naive.item(), abs=1e-4)
    assert LogitLens(top_k=2).run(model, Task("t", (prompt,), chat=True)).summary()


def test_a_chat_whose_answer_merges_with_the_template_is_read_again(tmp_path: Path) -> None:
    prompt = Prompt("1", "a b", answer="Yes", tokens=(3, 4), spelling={"Yes": ()})
    path = tmp_path / "prompts.jsonl"
    path.write_text(Task("t", (prompt,)).to_lines())
    assert Task.from_jsonl(path).prompts == (prompt,)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (
            "{% for m in messages %}User: {{ m.content }}\n{% endfor %}" + ASKED,
            "task 't': the chat template does not put what the assistant says, 'Yes', after the"
            " prompt",
        ),
        (
            "{% for m in messages %}{{ 'User:' if m.role == 'user' else 'Bot: <think>' }}"
            " {{ m.content }} {% endfor %}" + ASKED,
            "does not put what the assistant says, 'Yes'.*there is '<think> Yes '",
        ),
        (
            "{% for m in messages %}{{ m.content | upper }} {% endfor %}",
            "leaves out what the user says, 'a b'",
        ),
        ("{{ raise_exception('only tools') }}", "the chat template cannot be filled in"),
        ("{% for m in messages %}{{ m.content }", "the chat template cannot be filled in"),
    ],
)
def test_a_template_that_cannot_be_followed_is_refused(template: str, says: str) -> None:
    tokenizer = words()
    tokenizer.chat_template = template
    with pytest.raises(TaskError, match=says) as refused:
        model_of(tokenizer).fit(Task("t", (Prompt("1", "a b", answer="Yes"),), chat=True))
    assert "\n" not in str(refused.value)


def test_a_chat_without_answers_needs_no_turn_of_the_assistant() -> None:
    tokenizer = words()
    tokenizer.chat_template = "{% for m in messages %}User: {{ m.content }} {% endfor %}Bot:"
    model = model_of(tokenizer)
    assert model.tokenize(
        model.fit(Task.from_texts(["a b"], chat=True)).task.prompts
    ).tokens.tolist() == [ids("User: a b Bot:")]
