"""Voids by hand and from hooks, skipping against naive forwards, controls that skip as much."""

import pytest
import torch
from torch.testing import assert_close

import interp
from interp.analyses.void_detection import VoidDetection
from interp.analyses.void_detection.responses import respond
from interp.analyses.void_skip.evaluations import bypass, last_active, masked_stream, read_out
from interp.analyses.void_skip.masks import drawn, lowest, n_drawn, over_draws, with_controls
from interp.analyses.void_skip.scores import log_likelihood
from interp.errors import AnalysisError, TaskError
from interp.models import Model, load_model
from interp.replay import first
from interp.sweeps import lens
from interp.sweeps.punctuation import punctuation_of
from interp.sweeps.surprise import nats_per_token
from interp.sweeps.tags import draw_seed
from interp.sweeps.voids import (
    active_layers,
    changes_of,
    norms_of,
    range_over_batch,
)
from interp.tasks import Prompt, Task
from tests.families import tiny, tokens
from tests.test_generate import alone, ragged
from tests.test_replay import naive

pytestmark = pytest.mark.filterwarnings("ignore")
ALPHAS = (0.0, 0.4, 0.8)


def stacked(model: Model, batch) -> torch.Tensor:
    """Return the norms [batch tap pos] that plain hooks see in one stock forward."""
    blocks = [block.module for block in model.blocks]
    seen: list[torch.Tensor] = []
    handles = [
        blocks[0].register_forward_pre_hook(
            lambda _m, a, k: seen.append(a[0] if a else k["hidden_states"]), with_kwargs=True
        )
    ]
    handles += [
        block.register_forward_hook(lambda _m, _a, out: seen.append(first(out))) for block in blocks
    ]
    model.logits(batch)
    for handle in handles:
        handle.remove()
    return torch.stack([resid.norm(dim=-1) for resid in seen], dim=1)


# The rule


def test_the_rule_by_hand() -> None:
    norms = torch.tensor([1.0, 5.0, 6.0, 8.0, 7.0, 9.0])[None, :, None]  # changes 4, 1, 2, -1, 2
    # ranges before: -, 0 (4..4), 3 (1..4), 3, 5 (-1..4)
    active = active_layers(norms, (0.0, 0.4, 0.5, 0.8))[:, 0, :, 0]
    assert active.int().tolist() == [
        [1, 1, 1, 0, 1],
        [1, 1, 1, 0, 1],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 0, 0],
    ]


def test_alpha_zero_asks_for_any_growth_and_a_huge_one_for_what_has_no_range() -> None:
    norms = torch.rand(5, 9, 7, generator=torch.Generator().manual_seed(0))
    change = norms[:, 1:] - norms[:, :-1]
    zero, huge = active_layers(norms, (0.0, 1e9))
    assert torch.equal(zero, change >= 0)
    expected = torch.zeros_like(huge)
    expected[:, :2] = change[:, :2] >= 0
    assert torch.equal(huge, expected)
    steady = torch.arange(1.0, 6.0)[None, :, None]  # every layer adds 1: no range, never void
    assert bool(active_layers(steady, (1e9,)).all())


@pytest.mark.parametrize("factor", [0.5, 7.0, 1000.0])
def test_scaling_the_stream_changes_no_usage(factor: float) -> None:
    norms = torch.rand(5, 9, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(active_layers(norms, ALPHAS), active_layers(factor * norms, ALPHAS))


def test_the_published_threshold_of_the_first_layer_is_the_range_over_the_batch() -> None:
    norms = torch.tensor([[[1.0], [2.0]], [[1.0], [5.0]]])  # the first layer adds 1 and 4
    spread = range_over_batch(changes_of(norms))
    assert spread.tolist() == [[3.0], [3.0]]
    assert active_layers(norms, (0.5,), first_range=spread)[0, :, 0, 0].tolist() == [False, True]
    assert active_layers(norms, (0.5,))[0, :, 0, 0].tolist() == [True, True]


# Norms, in both phases


@torch.no_grad()
def test_norms_are_those_of_hooks_and_batches_of_any_length_agree(model: Model) -> None:
    batch = ragged([5, 12, 8])
    norms = norms_of(model.record(batch))
    for i, n in enumerate((5, 12, 8)):
        assert_close(norms[i : i + 1, :, :n], stacked(model, alone(batch, i)), rtol=1e-5, atol=1e-5)
    together = VoidDetection(max_new_tokens=0).measure(model.record(batch), batch, {})
    for i, n in enumerate((5, 12, 8)):
        single = VoidDetection(max_new_tokens=0).measure(
            model.record(alone(batch, i)), alone(batch, i), {}
        )
        assert_close(
            together["prompt.norms"][i, :, :n], single["prompt.norms"][0], rtol=1e-5, atol=1e-5
        )
        assert together["prompt.class"][i, :n].tolist() == single["prompt.class"][0].tolist()
        assert bool((together["prompt.class"][i, n:] == 3).all())


@torch.no_grad()
def test_norms_of_a_response_are_those_of_one_forward_over_prompt_and_response(
    model: Model,
) -> None:
    batch = ragged([5, 12, 8])
    response = respond(model, batch, max_new_tokens=6)
    for i, n in enumerate((5, 12, 8)):
        n_read = int(response.is_read[i].sum())
        new = response.tokens[i, 12 : 12 + n_read]
        whole = torch.cat([batch.tokens[i, :n], new])[None]
        text = tokens(batch=1, n_pos=whole.shape[1])
        expected = stacked(
            model,
            type(text)(text.prompts, whole, torch.ones_like(whole, dtype=torch.bool), text.last),
        )
        assert_close(response.norms[i, :, :n_read], expected[0, :, n:], rtol=1e-5, atol=1e-5)


def test_what_ends_a_response_is_not_read() -> None:
    model = load_model("zoo/names-6l")
    batch = model.tokenize(interp.load_task("ioi", n=4).prompts)
    second = model.generate(batch, max_new_tokens=3).tokens[:, -2]
    assert len(second.unique()) == 1  # all go on with a full stop
    model.module.generation_config.eos_token_id = int(second[0])
    assert respond(model, batch, max_new_tokens=4).is_read.sum(1).tolist() == [1, 1, 1, 1]


@torch.no_grad()
def test_twenty_alphas_cost_what_one_costs() -> None:
    model, batch = tiny("llama"), tokens()
    work = []
    for alphas in ((0.8,), tuple(i / 20 for i in range(20))):
        recording = model.record(batch)
        analysis = VoidDetection(alpha=alphas[0], alphas=alphas, max_new_tokens=0)
        result = analysis.combine([analysis.measure(recording, batch, {})])
        assert result.to_frame()["alpha"].nunique() == len(alphas)
        work.append(recording.work.block_tokens)
    assert work[0] == work[1] == batch.tokens.numel() * model.n_layers


def test_usage_of_sets_of_tokens_by_hand() -> None:
    analysis = VoidDetection(alpha=0.0, alphas=(), max_new_tokens=0)
    norms = torch.tensor(
        [[[1.0, 1.0, 1.0], [2.0, 0.5, 2.0], [1.0, 1.0, 3.0]]]
    )  # token 0: up, down; 1: down, up; 2: up, up
    part = {
        "prompt.norms": norms,
        "prompt.massive": torch.tensor([[False, False, True]]),
        "prompt.class": torch.tensor([[0, 1, 2]], dtype=torch.uint8),
    }
    result = analysis.combine([part])
    assert [share.tolist() for share in result.usage()] == [[[0.5, 0.5, 1.0]]]
    frame = result.to_frame()
    found = frame[frame["layer"].isna()].set_index("tokens")["usage"].to_dict()
    assert found == pytest.approx(
        {
            "all": 2 / 3,
            "first": 0.5,
            "punctuation": 0.5,
            "other": 1.0,
            "without first": 0.75,
            "massive": 1.0,
            "without massive": 0.5,
        }
    )
    at = frame[frame["position"].notna()].set_index(["layer", "position"])["usage"]
    assert at[0].tolist() == [1.0, 0.0, 1.0]
    assert at[0].index.tolist() == [-3, -2, -1]


def test_punctuation_is_what_has_no_letters() -> None:
    tokenizer = load_model("zoo/names-6l").tokenizer
    ids = tokenizer("When Ada went to the park, Ben gave a cup.")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(punctuation_of(tokenizer, ids).tolist()) == [".", ","]


# Ways of skipping


def masks(model: Model, batch, *, seed: int = 0, variants: int = 3) -> torch.Tensor:
    shape = (variants, len(batch.prompts), model.n_layers, batch.tokens.shape[1])
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.4


@torch.no_grad()
def test_reading_out_behind_the_last_layer_is_the_full_model(model: Model) -> None:
    batch = tokens()
    recording, active = model.record(batch), masks(model, batch)
    active[:, :, -1] = True
    for stream in read_out(recording, active):
        assert torch.equal(
            recording.logits(stream), recording.logits(recording.resid(model.n_layers))
        )


@torch.no_grad()
def test_reading_out_takes_the_stream_behind_the_last_active_layer() -> None:
    model, batch = tiny("gpt2"), tokens()
    recording, active = model.record(batch), masks(model, batch)
    active[0, 0, :, 3] = False
    streams = read_out(recording, active)
    for v, b, t in ((0, 0, 3), (0, 1, 5), (2, 2, 11)):
        layers = [layer for layer in range(model.n_layers) if active[v, b, layer, t]]
        tap = layers[-1] + 1 if layers else 0
        assert int(last_active(active)[v, b, t]) == tap
        assert torch.equal(streams[v, b, t], recording.resid(tap)[b, t])


@torch.no_grad()
@pytest.mark.parametrize("keys_kept", [True, False])
def test_nothing_skipped_is_the_full_model(model: Model, keys_kept: bool) -> None:
    batch = tokens()
    recording, active = model.record(batch), torch.ones_like(masks(model, batch))
    active[0, 0, 1, -1] = False  # one skip at a last token, which nothing reads
    streams = bypass(recording, active, keys_kept=keys_kept)
    full = recording.resid(model.n_layers)
    assert_close(streams[1:], full.expand(2, -1, -1, -1), rtol=1e-5, atol=1e-5)
    assert_close(streams[0, :, :-1], full[:, :-1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_bypass_with_keys_kept_equals_hooks_on_the_stock_model(model: Model) -> None:
    batch = tokens()
    active = masks(model, batch)
    recording = model.record(batch)
    streams = bypass(recording, active, keys_kept=True)
    for variant, stream in zip(active, streams, strict=True):
        edits = {
            layer: lambda resid, out, layer=layer, variant=variant: torch.where(
                variant[:, layer, :, None], out, resid
            )
            for layer in range(model.n_layers)
        }
        assert_close(recording.logits(stream), naive(model, batch, edits), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "mixtral"])
def test_a_bypass_without_keys_equals_blocks_that_get_the_other_tokens_alone(name: str) -> None:
    model, batch = tiny(name), tokens()
    recording = model.record(batch)
    active = masks(model, batch)
    streams = bypass(recording, active, keys_kept=False)
    for v in range(len(active)):
        for b in range(len(batch.prompts)):
            resid = recording.resid(0)[b : b + 1]
            for layer in range(model.n_layers):
                at = active[v, b, layer].nonzero()[:, 0]
                arguments = dict(recording._arguments[0][layer])
                for key in ("position_embeddings", "position_ids", "cache_position"):
                    if arguments.get(key) is not None:
                        value = arguments[key]
                        cut = (
                            tuple(t[:, at] for t in value)
                            if isinstance(value, tuple)
                            else value[..., at]
                        )
                        arguments[key] = cut
                assert arguments.get("attention_mask") is None
                out = resid.clone()
                if len(at):
                    out[:, at] = first(recording.blocks[layer].module(resid[:, at], **arguments))
                resid = out
            assert_close(streams[v, b], resid[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_masked_stream_judges_what_it_has_masked(model: Model) -> None:
    batch = tokens()
    recording = model.record(batch)
    found = masked_stream(recording, ALPHAS)
    for alpha, active in zip(ALPHAS, found, strict=True):
        changes: list[torch.Tensor] = []
        verdicts: list[torch.Tensor] = []

        def edit(resid, out, alpha=alpha, changes=changes, verdicts=verdicts):
            change = out.norm(dim=-1) - resid.norm(dim=-1)
            earlier = torch.stack(changes) if changes else torch.zeros(1, *change.shape)
            verdicts.append(change >= alpha * (earlier.amax(0) - earlier.amin(0)))
            changes.append(change)
            return torch.where(verdicts[-1][..., None], out, resid)

        logits = naive(model, batch, dict.fromkeys(range(model.n_layers), edit))
        assert torch.equal(active, torch.stack(verdicts, dim=1))
        stream = bypass(recording, active[None], keys_kept=True)[0]
        assert_close(recording.logits(stream), logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_first_token_may_be_left_alone() -> None:
    model, batch = tiny("llama"), tokens()
    assert bool(masked_stream(model.record(batch), ALPHAS, begin=1)[..., 0].all())


@torch.no_grad()
def test_few_variants_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny("llama"), tokens()
    whole = masked_stream(model.record(batch), ALPHAS)
    few = model.record(batch)
    monkeypatch.setattr("interp.replay.rows.CPU_TOKENS", 1)
    assert torch.equal(masked_stream(few, ALPHAS), whole)


# Controls


def test_controls_skip_as_much_of_every_token_or_layer() -> None:
    model, batch = tiny("llama"), tokens()
    active = masks(model, batch, variants=2)
    uniform = drawn(batch.prompts, n=6, n_layers=4, n_pos=12, seed=0)
    rates = torch.tensor([[0.0, 0.25, 0.5, 1.0], [1.0, 0.5, 0.25, 0.0]])
    influence = torch.tensor([0.3, 0.1, 0.9, 0.2])
    made = with_controls(active, uniform, rates=rates, influence=influence).unflatten(
        0, (2, n_drawn(3))
    )
    counts = (~made).sum(3)
    own = (~active).sum(2)
    for at in (0, 1, 2, 3, 7):
        assert torch.equal(counts[:, at], own)
    assert torch.equal(made[:, 0], active)
    assert not torch.equal(made[:, 1], made[:, 2])
    by_rate = (~made[:, 4:7]).float().mean((1, 2, 4))
    assert_close(by_rate, rates, rtol=0, atol=0.12)
    order = (1, 3, 0, 2)
    for skipped in (~made[:, 7]).permute(0, 1, 3, 2).reshape(-1, 4):
        assert bool(skipped[list(order[: int(skipped.sum())])].all())


def test_what_is_drawn_depends_on_the_prompt_alone_and_goes_on_with_a_longer_text() -> None:
    prompts = (Prompt("a", "x"), Prompt("b", "x"))
    two = drawn(prompts, n=2, n_layers=3, n_pos=5, seed=1)
    assert torch.equal(two[:, 1:], drawn(prompts[1:], n=2, n_layers=3, n_pos=5, seed=1))
    assert torch.equal(two, drawn(prompts, n=2, n_layers=3, n_pos=9, seed=1)[..., :5])
    assert not torch.equal(two, drawn(prompts, n=2, n_layers=3, n_pos=5, seed=2))
    assert draw_seed("a") != draw_seed("a", seed=1)


def test_ties_are_broken_by_layer() -> None:
    active = torch.tensor([True, False, True])[None, None, :, None]
    assert lowest(torch.zeros(1, 1, 3, 1), active)[0, 0, :, 0].tolist() == [False, True, True]


def test_draws_are_averaged_by_kind() -> None:
    values = torch.tensor([[1.0], [2.0], [4.0], [10.0], [20.0], [7.0]])
    assert over_draws(values, n_random=2).tolist() == [[[1.0, 3.0, 15.0, 7.0]]]


# What is read


@torch.no_grad()
def test_surprise_is_the_cross_entropy_of_the_stock_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny("llama"), tokens()
    recording = model.record(batch)
    stream = recording.resid(model.n_layers)[None]
    nats = nats_per_token(recording, stream, batch.tokens)[0]
    logits = model.logits(batch)[:, :-1]
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.tokens[:, 1:].flatten(), reduction="none"
    )
    assert_close(nats, expected.view(3, -1).mean(1), rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(lens, "LOGITS_HELD", 3 * 97 * 2)
    assert_close(nats_per_token(recording, stream, batch.tokens)[0], nats, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_likelihood_of_several_tokens_is_read_behind_each_other() -> None:
    model, batch = tiny("llama"), tokens()
    recording = model.record(batch)
    answer = torch.randint(3, 97, (3, 2), generator=torch.Generator().manual_seed(4))
    log_p = model.logits(batch).log_softmax(-1)
    rows = torch.arange(3)
    expected = log_p[rows, -2, answer[:, 0]] + log_p[rows, -1, answer[:, 1]]
    assert_close(
        log_likelihood(recording, recording.resid(model.n_layers)[None], answer)[0],
        expected,
        rtol=1e-5,
        atol=1e-5,
    )


# Bad input


@pytest.mark.parametrize(("parameters", "message"), [
    ({"alpha": -1.0}, "alpha=-1.0; 0 or more is needed"),
    ({"alphas": (0.2, float("nan"))}, "alphas is nan; a number is needed"),
    ({"max_new_tokens": 1}, "max_new_tokens=1; 2 or more are needed"),
    ({"massive_ratio": -1.0}, "massive_ratio=-1.0; at least 0 is needed"),
])  # fmt: skip
def test_bad_parameters_are_one_line(parameters: dict, message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        VoidDetection(**parameters)


def test_responses_that_all_end_at_once_are_an_error() -> None:
    model = load_model("zoo/names-6l")
    model.module.generation_config.eos_token_id = list(range(model.d_vocab))
    with pytest.raises(
        TaskError, match="task 'mine': every response ends at its first token; max_new_tokens=0"
    ):
        VoidDetection().prepare(model, Task("mine", interp.load_task("ioi", n=2).prompts))
