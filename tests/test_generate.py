"""Generation equals Hugging Face's, one by one or padded; plans reach the prefill, the decoding, or
both.
"""

from collections.abc import Iterator

import pytest
import torch
from torch.testing import assert_close
from transformers import GenerationConfig

import interp
from interp.errors import ModelError, SiteError, TaskError
from interp.interventions import Ablate, Patch, Skip, Steer
from interp.models import Model
from interp.models.decoding import Chooser
from interp.replay import first
from interp.sites import Site
from interp.sweeps import texts
from interp.sweeps.texts import sampled_texts
from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch
from tests.families import tiny, tokens

pytestmark = pytest.mark.filterwarnings("ignore")


def ragged(lengths: list[int], *, seed: int = 0) -> TokenBatch:
    ids = torch.randint(
        3, 97, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed)
    )
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    prompts = tuple(Prompt(str(i), "x") for i in range(len(lengths)))
    return TokenBatch(prompts, ids * mask, mask, torch.tensor(lengths) - 1)


def alone(batch: TokenBatch, i: int) -> TokenBatch:
    n = int(batch.mask[i].sum())
    ids = batch.tokens[i : i + 1, :n]
    return TokenBatch(
        (batch.prompts[i],), ids, torch.ones_like(ids, dtype=torch.bool), torch.tensor([n - 1])
    )


def test_greedy_equals_hugging_face(model: Model) -> None:
    batch = ragged([5, 12, 8])
    ours = model.generate(batch, max_new_tokens=6)
    for i, n in enumerate([5, 12, 8]):
        theirs = model.module.generate(
            batch.tokens[i : i + 1, :n], max_new_tokens=6, do_sample=False
        )[0, n:]
        assert ours.tokens[i, ours.response][: len(theirs)].tolist() == theirs.tolist()
        assert int(ours.mask[i, ours.response].sum()) == len(theirs)


def test_sixty_four_prompts_of_different_lengths_equal_one_by_one() -> None:
    model = tiny("gpt2")
    batch = ragged([3 + i % 17 for i in range(64)])
    site = Site("resid_post", 2)
    together = model.generate(batch, max_new_tokens=5, capture=[site])
    for i in range(64):
        single = model.generate(alone(batch, i), max_new_tokens=5, capture=[site])
        n, new = int(batch.mask[i].sum()), single.response.stop - single.response.start
        assert (
            together.tokens[i, together.response][:new].tolist()
            == single.tokens[0, single.response].tolist()
        )
        assert_close(together.logits[i, :new], single.logits[0], rtol=0, atol=1e-5)
        theirs, ours = single.activations[site][0], together.activations[site][i]
        assert_close(ours[:n], theirs[single.prompt], rtol=0, atol=1e-5)
        assert_close(ours[together.response][: new - 1], theirs[single.response], rtol=0, atol=1e-5)


def by_hand(
    model: Model,
    batch: TokenBatch,
    n_new: int,
    edit,
    *,
    in_prefill: bool,
    in_decode: bool,
    layer: int = 1,
):
    """Decode greedily with a hand-written hook on a block's output, one prompt without padding."""
    block = model.blocks[layer].module
    tokens, cache, new = batch.tokens, None, []
    while len(new) < n_new:
        on = in_prefill if not new else in_decode

        def hook(_module, _args, output):
            return (edit(first(output)), *output[1:]) if isinstance(output, tuple) else edit(output)

        handle = block.register_forward_hook(hook) if on else None
        output = model.module(input_ids=tokens, past_key_values=cache, use_cache=True)
        if handle:
            handle.remove()
        cache, tokens = output.past_key_values, output.logits[:, -1:].argmax(-1)
        new.append(tokens)
    return torch.cat(new, 1)


@torch.no_grad()
@pytest.mark.parametrize("phase", ["prefill", "decode", "both"])
def test_a_plan_acts_in_its_phase_and_later_tokens_are_ordinary(model: Model, phase: str) -> None:
    batch = ragged([4, 9])
    direction = 3 * torch.randn(32, generator=torch.Generator().manual_seed(1))
    plan = [Steer(Site("resid_post", 1), direction)]
    ours = model.generate(batch, max_new_tokens=5, plan=plan, phase=phase)
    clean = model.generate(batch, max_new_tokens=5)
    for i in range(2):
        wanted = by_hand(
            model, alone(batch, i), 5, lambda out: out + direction,
            in_prefill=phase != "decode", in_decode=phase != "prefill",
        )[0]  # fmt: skip
        got = ours.tokens[i, ours.response][: int(ours.mask[i, ours.response].sum())]
        assert got.tolist() == wanted[: len(got)].tolist()
    assert not torch.equal(ours.logits[:, :1], clean.logits[:, :1]) or phase == "decode"


@torch.no_grad()
def test_a_patch_at_a_position_of_each_prompt(model: Model) -> None:
    batch = ragged([4, 9])
    value = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(1))
    ours = model.generate(
        batch, max_new_tokens=4, plan=[Patch(Site("resid_post", 1), value, torch.tensor([2, 6]))]
    )
    for i, pos in enumerate((2, 6)):

        def edit(out, i=i, pos=pos):
            out = out.clone()
            out[:, pos] = value[i, 0]
            return out

        wanted = by_hand(model, alone(batch, i), 4, edit, in_prefill=True, in_decode=False)[0]
        got = ours.tokens[i, ours.response][: int(ours.mask[i, ours.response].sum())]
        assert got.tolist() == wanted[: len(got)].tolist()


@torch.no_grad()
def test_inner_sites_are_edited_in_the_layout_of_the_batch() -> None:
    model, batch = tiny("llama"), ragged([4, 9])
    site, plan = Site("z", 1), [Ablate(Site("z", 2), positions=[1])]
    ours = model.generate(batch, max_new_tokens=3, capture=[site], plan=plan)
    for i, n in enumerate([4, 9]):
        single = model.forward(alone(batch, i), capture=[site], plan=plan)
        assert_close(ours.logits[i, 0], single.logits[0, -1], rtol=0, atol=1e-5)
        assert_close(ours.activations[site][i, :n], single.activations[site][0], rtol=0, atol=1e-5)


ASKED = {
    "repetition": {"repetition_penalty": 3.0},
    "weak repetition": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    "n-grams": {"no_repeat_ngram_size": 2},
    "n-grams of the prompt": {"encoder_no_repeat_ngram_size": 1, "encoder_repetition_penalty": 1.5},
    "suppressed": {"suppress_tokens": [11, 40], "begin_suppress_tokens": [5, 6, 7]},
    "bad words": {"bad_words_ids": [[12], [13, 14]]},
    "bias": {"sequence_bias": [[[20], 5.0], [[21], -5.0]]},
    "several ends": {"eos_token_id": list(range(30, 60))},
    "one end, no padding token": {"eos_token_id": 40, "pad_token_id": None},
    "no end": {"eos_token_id": None},
    "not too early": {"eos_token_id": list(range(3, 90)), "min_new_tokens": 4},
    "a least length": {"eos_token_id": list(range(3, 90)), "min_length": 14},
    "a forced end": {"forced_eos_token_id": 2},
    "a pull to the end": {"exponential_decay_length_penalty": (2, 1.5), "repetition_penalty": 1.2},
    "what only sampling reads": {"do_sample": True, "temperature": 0.5, "top_k": 3, "top_p": 0.5},
}


@pytest.fixture
def asking(request: pytest.FixtureRequest) -> Iterator[Model]:
    """Return a model whose checkpoint asks for something when it generates."""
    model = tiny("llama")
    before, model.module.generation_config = (
        model.module.generation_config,
        GenerationConfig(**({"eos_token_id": 2, "pad_token_id": 0} | request.param)),
    )
    yield model
    model.module.generation_config = before


@pytest.mark.parametrize("asking", ASKED.values(), ids=ASKED.keys(), indirect=True)
def test_what_a_checkpoint_asks_for_is_done_as_hugging_face_does_it(asking: Model) -> None:
    batch, differs = ragged([5, 12, 8]), False
    ours = asking.generate(batch, max_new_tokens=8)
    for i, n in enumerate([5, 12, 8]):
        theirs = asking.module.generate(
            batch.tokens[i : i + 1, :n], max_new_tokens=8, do_sample=False
        )[0, n:]
        got = ours.tokens[i, ours.response][ours.mask[i, ours.response]]
        assert got.tolist() == theirs.tolist()
        single = asking.generate(alone(batch, i), max_new_tokens=8)
        assert single.tokens[0, single.response].tolist() == theirs.tolist()
        assert_close(
            single.logits[0, 0], asking.logits(alone(batch, i))[0, -1], rtol=0, atol=1e-5
        )  # the model's own
        differs |= len(theirs) < 8
    assert differs or asking.module.generation_config.eos_token_id in (2, 40, None)


@pytest.mark.parametrize(
    "name", ["repetition", "n-grams", "bad words", "not too early", "one end, no padding token"]
)
def test_padded_batches_equal_hugging_face_padded_on_the_left(name: str) -> None:
    model, batch = tiny("llama"), ragged([5, 12, 8])
    before = model.module.generation_config
    model.module.generation_config = GenerationConfig(
        **({"eos_token_id": 2, "pad_token_id": 0} | ASKED[name])
    )
    rows = [
        torch.cat([torch.zeros(12 - n, dtype=torch.long), batch.tokens[i, :n]])
        for i, n in enumerate([5, 12, 8])
    ]
    mask = torch.stack([torch.arange(12) >= 12 - n for n in (5, 12, 8)])
    theirs = model.module.generate(
        torch.stack(rows), attention_mask=mask.long(), max_new_tokens=8, do_sample=False
    )
    ours = model.generate(batch, max_new_tokens=8)
    model.module.generation_config = before
    assert ours.tokens[:, ours.response].tolist() == theirs[:, 12:].tolist()


@pytest.mark.parametrize(
    ("asked", "value"),
    [
        ("num_beams", 4),
        ("penalty_alpha", 0.6),
        ("guidance_scale", 1.5),
        ("stop_strings", ["x"]),
        ("max_time", 1.0),
    ],
)
def test_decoding_of_another_kind_is_refused_by_name(asked: str, value: object) -> None:
    model = tiny("llama")
    before = getattr(model.module.generation_config, asked)
    setattr(model.module.generation_config, asked, value)
    try:
        with pytest.raises(ModelError, match=f"generation_config asks for {asked}="):
            model.generate(tokens(), max_new_tokens=2)
    finally:
        setattr(model.module.generation_config, asked, before)


@pytest.mark.parametrize("asking", [{"top_k": 2}], indirect=True)
def test_samples_stay_within_what_a_checkpoint_allows(asking: Model) -> None:
    done = asking.generate(tokens(), max_new_tokens=8, temperature=3.0)
    best = done.logits.topk(2, dim=-1).indices
    is_among = (best == done.tokens[:, done.response][..., None]).any(-1)
    assert bool(is_among[done.mask[:, done.response]].all())


def test_samples_of_a_prompt_depend_on_its_tokens_and_seed_alone() -> None:
    model, batch = tiny("llama"), ragged([5, 12, 8, 5])
    together = model.generate(batch, max_new_tokens=6, temperature=1.5, seed=3)
    for i in range(4):
        single = model.generate(alone(batch, i), max_new_tokens=6, temperature=1.5, seed=3)
        n = single.response.stop - single.response.start
        assert (
            together.tokens[i, together.response][:n].tolist()
            == single.tokens[0, single.response].tolist()
        )
    twice = TokenBatch(batch.prompts[:1] * 6, *(t[:1].repeat(6, *[1] * (t.ndim - 1)) for t in (
        batch.tokens, batch.mask, batch.last)))  # fmt: skip
    drawn = model.generate(twice, max_new_tokens=6, temperature=1.5).tokens.tolist()
    assert len({tuple(text) for text in drawn}) > 1


def test_drawn_tokens_are_as_frequent_as_their_probabilities() -> None:
    model = tiny("llama")
    choose = Chooser(model.module, [[5]] * 4000, max_new_tokens=1, temperature=1.0)
    logits = torch.full((4000, 97), -torch.inf)
    logits[:, [0, 3, 96]] = torch.tensor([0.2, 0.5, 0.3]).log()
    drawn = choose(torch.zeros(4000, 0, dtype=torch.long), logits)
    shares = torch.bincount(drawn, minlength=97) / 4000
    assert_close(shares[[0, 3, 96]], torch.tensor([0.2, 0.5, 0.3]), rtol=0, atol=0.03)
    assert shares[[0, 3, 96]].sum() == 1.0


def test_sampled_texts_do_not_depend_on_how_many_prompts_are_sampled_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=3)
    shards = [model.tokenize([prompt]) for prompt in task.prompts]
    apart = [sampled_texts(model, shard, n=5, max_new_tokens=3) for shard in shards]
    together = sampled_texts(model, model.tokenize(task.prompts), n=5, max_new_tokens=3)
    monkeypatch.setattr(texts, "_CHUNK_TOKENS", 100)
    in_chunks = sampled_texts(model, model.tokenize(task.prompts), n=5, max_new_tokens=3)
    assert together == in_chunks == [tuple(each[i][0] for each in apart) for i in range(5)]


def test_sampling_is_seeded_and_a_cold_one_is_greedy() -> None:
    model, batch = tiny("llama"), tokens()
    one, same, other = (
        model.generate(batch, max_new_tokens=8, temperature=2.0, seed=seed).tokens
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    cold = model.generate(batch, max_new_tokens=8, temperature=1e-4).tokens
    assert torch.equal(cold, model.generate(batch, max_new_tokens=8).tokens)


def test_a_shipped_model_answers() -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("one-hop", n=8)
    said = model.generate(model.tokenize(task.prompts), max_new_tokens=2).texts
    assert [text.split()[0] for text in said] == [prompt.answer for prompt in task.prompts]


def test_bad_input_is_named() -> None:
    model, batch = tiny("gpt2"), ragged([4, 9])
    with pytest.raises(TaskError, match="max_new_tokens=0; at least 1"):
        model.generate(batch, max_new_tokens=0)
    with pytest.raises(TaskError, match=r"74 tokens with the response .*; the model reads 64"):
        model.generate(batch, max_new_tokens=66)
    with pytest.raises(TaskError, match="temperature=-1"):
        model.generate(batch, max_new_tokens=1, temperature=-1.0)
    with pytest.raises(SiteError, match="the last token of prompt '0' is at 3"):
        model.generate(batch, max_new_tokens=1, plan=[Skip(0, positions=[5])])
    with pytest.raises(SiteError, match="given for decoding"):
        model.generate(batch, max_new_tokens=2, plan=[Skip(0, positions=[1])], phase="decode")
