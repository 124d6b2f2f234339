"""Generation equals Hugging Face's, one by one or padded; plans reach the prefill, the decoding, or both."""

import pytest
import torch
from torch.testing import assert_close

import interp
from interp.errors import SiteError, TaskError
from interp.interventions import Ablate, Patch, Skip, Steer
from interp.models import Model
from interp.replay import first
from interp.sites import Site
from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch
from tests.families import tiny, tokens

pytestmark = pytest.mark.filterwarnings("ignore")


def ragged(lengths: list[int], *, seed: int = 0) -> TokenBatch:
    ids = torch.randint(3, 97, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    prompts = tuple(Prompt(str(i), "x") for i in range(len(lengths)))
    return TokenBatch(prompts, ids * mask, mask, torch.tensor(lengths) - 1)


def alone(batch: TokenBatch, i: int) -> TokenBatch:
    n = int(batch.mask[i].sum())
    ids = batch.tokens[i : i + 1, :n]
    return TokenBatch((batch.prompts[i],), ids, torch.ones_like(ids, dtype=torch.bool), torch.tensor([n - 1]))


def test_greedy_equals_hugging_face(model: Model) -> None:
    batch = ragged([5, 12, 8])
    ours = model.generate(batch, max_new_tokens=6)
    for i, n in enumerate([5, 12, 8]):
        theirs = model.module.generate(batch.tokens[i : i + 1, :n], max_new_tokens=6, do_sample=False)[0, n:]
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
        assert together.tokens[i, together.response][:new].tolist() == single.tokens[0, single.response].tolist()
        assert_close(together.logits[i, :new], single.logits[0], rtol=0, atol=1e-5)
        theirs, ours = single.activations[site][0], together.activations[site][i]
        assert_close(ours[:n], theirs[single.prompt], rtol=0, atol=1e-5)
        assert_close(ours[together.response][: new - 1], theirs[single.response], rtol=0, atol=1e-5)


def by_hand(model: Model, batch: TokenBatch, n_new: int, edit, *, in_prefill: bool, in_decode: bool, layer: int = 1):
    """Decode greedily with a hand-written hook on a block's output, one prompt without padding."""
    block = model._blocks[layer].module
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
    ours = model.generate(batch, max_new_tokens=4, plan=[Patch(Site("resid_post", 1), value, torch.tensor([2, 6]))])
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


def test_sampling_is_seeded_and_a_cold_one_is_greedy() -> None:
    model, batch = tiny("llama"), tokens()
    one, same, other = (model.generate(batch, max_new_tokens=8, temperature=2.0, seed=seed).tokens for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    cold = model.generate(batch, max_new_tokens=8, temperature=1e-4).tokens
    assert torch.equal(cold, model.generate(batch, max_new_tokens=8).tokens)


def test_a_shipped_model_answers() -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("one-hop", n=8)
    texts = model.generate(model.tokenize(task.prompts), max_new_tokens=2).texts
    assert [text.split()[0] for text in texts] == [prompt.answer for prompt in task.prompts]


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
