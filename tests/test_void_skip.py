"""Scores of skipping (answers, options, texts), and paired tests."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import interp
from interp.analyses.back_patching import BackPatching
from interp.analyses.void_detection import VoidDetection
from interp.analyses.void_skip import VoidSkip
from interp.analyses.void_skip.evaluations import EVALUATIONS
from interp.analyses.void_skip.masks import KINDS, Skipping
from interp.analyses.void_skip.result import VoidSkipResult
from interp.analyses.void_skip.texts import (
    ALIAS,
    EXACT,
    NO_ANSWER,
    WRONG,
    greedy_texts,
    known_names,
    verdict,
)
from interp.analysis import Analysis
from interp.errors import AnalysisError, TaskError
from interp.models import Model, load_model
from interp.replay import first
from interp.runs.registry import make_analysis
from interp.stats.groups import Grouping
from interp.stats.paired import paired_p
from interp.stats.shares import share, share_difference
from interp.sweeps.choices import score_choices, shuffled
from interp.tasks import Prompt, Task
from tests.families import tiny, tokens
from tests.test_logit_lens import hooked

pytestmark = pytest.mark.filterwarnings("ignore")


def prepared_for(model: Model, *, n_alphas: int) -> dict[str, torch.Tensor]:
    layers = model.n_layers
    return {
        "influence": torch.arange(float(layers)),
        "rates": torch.full((2, n_alphas, layers), 0.4),
        "key_share": torch.full((layers,), 0.25),
    }


# The whole analysis


@torch.no_grad()
def test_it_fits_every_family_and_costs_what_it_says(model: Model) -> None:
    batch = tokens()
    analysis = VoidSkip(alphas=(0.0,), n_random=1, scores=("answer", "text"))
    recording = model.record(batch)
    recording.resid(0)
    clean = recording.work.block_tokens
    part = analysis.measure(recording, batch, prepared_for(model, n_alphas=2))
    assert (
        (recording.work.block_tokens - clean) / clean
        == analysis.cost(model, batch).forwards
        == 2 + 3 * 2 * 4
    )
    assert part["accuracy"].shape == (3, len(EVALUATIONS), 2, len(KINDS))
    assert torch.equal(part["skipped"][..., 0], part["skipped"][..., 1])
    assert torch.equal(part["skipped.last"][..., 0], part["skipped.last"][..., 3])
    result = analysis.combine([part])
    assert result.scores == ("accuracy", "log_prob", "nats per token")
    two_pass = (
        result.to_frame()
        .query("evaluation == 'two-pass' and alpha == 0.8 and kind == 'voids'")
        .iloc[0]
    )
    skipped = part["skipped"][:, 2, 1, 0].mean().item()
    assert two_pass["saved"] == pytest.approx(skipped)
    assert two_pass["saved_in_all"] == pytest.approx(skipped - 1)
    assert result.saved("two-pass, keys kept") == pytest.approx(0.75 * skipped)
    assert result.saved("read-out") == result.saved("masked stream") == 0


def test_calibration_is_measured_on_the_first_prompts_alone() -> None:
    model, task = load_model("zoo/hops-4l"), interp.load_task("one-hop", n=6)
    few = VoidSkip(n_calibration=2).prepare(model, task)
    same = VoidSkip().prepare(model, task.of(task.prompts[:2]))
    assert all(torch.equal(few[key], same[key]) for key in few)
    assert bool((few["rates"] >= 0).all())
    spared = VoidSkip(skipped_positions="all but the first").prepare(model, task)
    assert spared["rates"].shape == (2, 3, 4)
    turned, n = torch.zeros(4), 0
    for prompt in task.prompts:
        batch = model.tokenize([prompt])
        resid = [r[0, 1:].double() for r in hooked(model, batch)[0]]
        for layer in range(4):
            cosines = torch.cosine_similarity(resid[layer], resid[layer + 1], dim=-1)
            turned[layer] += float((1 - cosines).sum())
        n += len(resid[0])
    assert_close(spared["influence"], turned / n, rtol=1e-4, atol=1e-5)


# Options


def mixed() -> Task:
    prompts = (
        Prompt("a", "Ada friend", answer="Ned", choices=("Ned", "Pia . Ada")),
        Prompt("b", "Ada friend boss", answer="Pia", choices=("Uma", "Pia", "Uma friend boss")),
        Prompt("c", "Ada boss", answer="Uma", choices=("Ned", "Uma")),
    )
    return Task("mine", prompts)


@torch.no_grad()
def test_the_full_models_choices_are_those_of_the_likelihoods() -> None:
    model, task = load_model("zoo/hops-4l"), mixed()
    analysis = VoidSkip(alpha=0.0, alphas=(), n_random=1)
    prepared = analysis.prepare(model, task)
    frame = score_choices(model, task).query("is_answer").set_index("prompt")["chosen"]
    for shard in map(model.tokenize, model.shards(task)):
        recording = model.record(shard)
        recording.resid(0)
        clean = recording.work.block_tokens
        part = analysis.measure(recording, shard, prepared)
        assert part["full.choice accuracy"].tolist() == [float(frame[p.id]) for p in shard.prompts]
        forwards = (recording.work.block_tokens - clean) / clean
        assert forwards == pytest.approx(analysis.cost(model, shard).forwards)


@torch.no_grad()
def test_options_are_skipped_as_if_they_were_the_text() -> None:
    model, task = load_model("zoo/hops-4l"), mixed()
    analysis = VoidSkip(alpha=0.8, alphas=(), n_random=1, scores=("choices",))
    prepared = analysis.prepare(model, task)
    shard = model.tokenize(task.prompts[1:2])
    part = analysis.measure(model.record(shard), shard, prepared)
    order = shuffled(task.prompts[1], seed=0)
    for i, evaluation in enumerate(EVALUATIONS):
        scores = []
        for option in order:
            text = model.tokenize(
                [dataclasses.replace(task.prompts[1], answer=option)], answers=True
            )
            recording = model.record(text)
            streams = analysis.skipping(prepared).streams(recording, text.prompts, evaluation)
            logits = recording.logits(next(streams)[0])[0].log_softmax(-1)
            n, ids = shard.tokens.shape[1], text.tokens[0]
            scores.append(sum(logits[k - 1, ids[k]].item() for k in range(n, len(ids))))
        assert part["choice accuracy"][0, i, 0, 0] == (order[int(np.argmax(scores))] == "Pia")


def test_options_are_shuffled_by_seed_and_id_alone() -> None:
    prompts = [Prompt(str(i), "x", answer="a", choices=("a", "b", "c", "d")) for i in range(40)]
    places = [shuffled(prompt, seed=1).index("a") for prompt in prompts]
    assert {*places} == {0, 1, 2, 3}
    assert places == [shuffled(prompt, seed=1).index("a") for prompt in prompts]
    assert places != [shuffled(prompt, seed=2).index("a") for prompt in prompts]


# Generated answers


@pytest.mark.parametrize(("text", "expected"), [
    (" Paris, of course", EXACT), ("paris", ALIAS), ("The City of Light.", ALIAS),
    ("Parisian", NO_ANSWER), ("Rome", WRONG), ("I think it is Paris", NO_ANSWER), ("", NO_ANSWER),
])  # fmt: skip
def test_verdicts_by_hand(text: str, expected: int) -> None:
    prompt = Prompt("a", "x", answer="Paris", aliases=("the City of Light",))
    assert verdict(text, prompt, ("Paris", "Rome")) == expected


def test_known_names_are_the_choices_or_all_answers() -> None:
    task = Task(
        "t",
        (
            Prompt("a", "x", answer="A", choices=("A", "B")),
            Prompt("b", "x", answer="C", aliases=("D",)),
        ),
    )
    assert known_names(task) == {"a": ("A", "B"), "b": ("A", "C", "D")}


@torch.no_grad()
def test_texts_of_a_way_that_skips_nothing_are_the_models_own() -> None:
    model, task = load_model("zoo/names-6l"), interp.load_task("ioi", n=3)
    nothing = Skipping((0.0,), 1, True, 0, rates=torch.zeros(2, 1, 6), influence=torch.zeros(6))
    for shard in map(model.tokenize, model.shards(task)):
        texts = greedy_texts(model, shard, nothing, "two-pass", 0, 3)
        assert (
            tuple(texts[KINDS.index("random tokens")])
            == model.generate(shard, max_new_tokens=3).texts
        )


@torch.no_grad()
def test_texts_are_decoded_as_the_checkpoint_asks() -> None:
    model, task = load_model("zoo/names-6l"), interp.load_task("ioi", n=2)
    nothing = Skipping((0.0,), 1, True, 0, rates=torch.zeros(2, 1, 6), influence=torch.zeros(6))
    shard = model.tokenize(model.shards(task)[0])
    plain = model.generate(shard, max_new_tokens=3).texts
    model.module.generation_config.no_repeat_ngram_size = 1
    texts = greedy_texts(model, shard, nothing, "two-pass", 0, 3)
    assert (
        tuple(texts[KINDS.index("random tokens")])
        == model.generate(shard, max_new_tokens=3).texts
        != plain
    )


@pytest.mark.parametrize(
    "analysis",
    [
        VoidSkip(max_new_tokens=5000),
        VoidDetection(max_new_tokens=5000),
        BackPatching(max_new_tokens=5000, position="last"),
    ],
    ids=lambda analysis: type(analysis).__name__,
)
def test_texts_longer_than_the_model_reads_are_refused_before_any_work(analysis: Analysis) -> None:
    model, task = load_model("zoo/names-6l"), interp.load_task("ioi", n=2)
    before = model.work.block_tokens
    with pytest.raises(TaskError, match="max_new_tokens=5000"):
        analysis.run(model, task)
    assert model.work.block_tokens == before


@torch.no_grad()
def test_reading_out_while_generating_is_what_hooks_on_a_cached_generation_do() -> None:
    model, task = load_model("zoo/names-6l"), interp.load_task("ioi", n=2)
    analysis = VoidSkip(alpha=0.8, alphas=(), n_random=1)
    skipping = analysis.skipping(analysis.prepare(model, task))
    seen: list[torch.Tensor] = []
    blocks = [block.module for block in model.blocks]
    handles = [blocks[0].register_forward_pre_hook(lambda _m, args: seen.append(args[0]))]
    handles += [
        block.register_forward_hook(lambda _m, _a, out: seen.append(first(out))) for block in blocks
    ]
    by_hand = {}
    for row in (model.tokenize([prompt]).tokens for prompt in task.prompts):
        ids, cache, new = row, None, []
        for _ in range(3):
            seen.clear()
            cache = model.module(ids, past_key_values=cache, use_cache=True).past_key_values
            kept, changes = seen[0][0, -1], []
            for before, after in pairwise([stream[0, -1] for stream in seen]):
                change = float(after.norm() - before.norm())
                if change >= 0.8 * (max(changes) - min(changes) if changes else 0.0):
                    kept = after
                changes.append(change)
            ids = model.unembed(kept[None, None])[0].argmax(-1)[None]
            new.append(int(ids))
        by_hand[tuple(row[0].tolist())] = model.tokenizer.decode(new)
    for handle in handles:
        handle.remove()
    for shard in map(model.tokenize, model.shards(task)):
        texts = greedy_texts(model, shard, skipping, "read-out", 0, 3)[0]
        assert texts == [by_hand[tuple(row)] for row in shard.tokens.tolist()]


def test_failures_of_format_are_counted_apart() -> None:
    model, task = load_model("zoo/names-6l"), interp.load_task("ioi", n=4)
    result = VoidSkip(alphas=(), n_random=1, max_new_tokens=1).run(model, task)
    frame = result.to_frame().query("evaluation == 'full model'").set_index("score")["mean"]
    assert frame["generated: exact"] == 1
    assert frame["generated: no answer"] == 0
    finding = result.findings()[-1]
    assert "texts that lack a known answer" in finding.measure
    assert "of the full model: 0 %" in finding.note
    texts = Task(
        "mine",
        tuple(
            dataclasses.replace(p, answer="Zoe", wrong=None, corrupted=None) for p in task.prompts
        ),
    )
    wrong = VoidSkip(alphas=(), n_random=1, max_new_tokens=1).run(model, texts)
    full = wrong.to_frame().query("evaluation == 'full model'").set_index("score")["mean"]
    assert full["generated: no answer"] == 1  # “Zoe” is the only name that this task knows


# Statistics


def test_p_of_right_and_wrong_is_mcnemars() -> None:
    assert paired_p(np.zeros(5)) == 1.0
    differences = np.array([1.0] * 6 + [-1.0] + [0.0] * 20)
    assert paired_p(differences) == pytest.approx(2 * (1 + 7) / 2**7, abs=0.02)


def made(*, voids: float, control: float, score: str = "accuracy", n: int = 40) -> VoidSkipResult:
    """Return a result in which a share of prompts is right with voids skipped, and another with any
    control.
    """
    analysis = VoidSkip(alphas=(), n_random=1)
    values = np.zeros((n, len(EVALUATIONS), 1, len(KINDS)))
    values[: int(control * n)] = 1.0
    values[..., 0] = (np.arange(n) < voids * n)[:, None, None]
    skipped = np.full(values.shape, 0.5)
    arrays = {
        score: values,
        f"full.{score}": np.ones(n),
        "skipped": skipped,
        "skipped.last": skipped,
        "key_share": np.ones((n, 2)),
        "n_tokens": np.ones(n),
    }
    return VoidSkipResult(analysis, arrays)


@pytest.mark.parametrize(("voids", "control", "claim"), [
    (0.8, 0.2, "60 points [41, 73] more answers are right"),
    (0.2, 0.8, "60 points [41, 73] fewer answers are right"),
    (0.5, 0.5, "are right than with equally many random layers skipped: 0 points [−5, 5]"),
])  # fmt: skip
def test_a_finding_tells_whether_voids_beat_random_layers(
    voids: float, control: float, claim: str
) -> None:
    result = made(voids=voids, control=control)
    for finding in result.findings():
        assert claim in finding.claim
        assert finding.kind == "compares"
        assert finding.estimate.value == pytest.approx(voids - control)
        assert finding.control.name == "random layers"
        assert finding.control.estimate == share(np.arange(40) < 40 * control)
        assert finding.rival.name == "random tokens"
        assert finding.rival.estimate.value == pytest.approx(control)
        assert f"with voids skipped: {voids:.0%}".replace("%", " %") in finding.note
        assert "of the full model: 100 %" in finding.note
    gain = result.gain("accuracy", "two-pass", over="random layers").estimate
    assert gain == result.findings()[1].estimate


def test_shares_over_draws_count_in_part() -> None:
    """By hand: half a draw right is half a case for, and the interval is Agresti and Min's."""
    one, other = np.array([1.0] * 8 + [0.0] * 12), np.array([0.5] * 10 + [0.0] * 10)
    found = share_difference(one, other)
    up, down = 8 * 0.5 + 0.5, 2 * 0.5 + 0.5
    middle = (up - down) / 22
    spread = 1.96 * np.sqrt((up + down) / 22 - middle**2) / np.sqrt(22)
    assert found.value == pytest.approx(0.15)
    assert (found.low, found.high) == pytest.approx((middle - spread, middle + spread), abs=1e-4)


def test_less_surprise_is_better() -> None:
    result = made(voids=0.2, control=0.8, score="nats per token")
    gain = result.gain("nats per token", "two-pass", over="random layers")
    assert gain.estimate.value == pytest.approx(0.6)
    first = result.findings()[0]
    assert "surprise is 0.20" in first.claim
    assert first.kind == "describes"
    assert first.control.estimate.value == pytest.approx(0.8)
    assert "perplexity" in result.plot().layout.yaxis.title.text


def test_the_rival_is_picked_on_one_half_and_measured_on_the_other() -> None:
    result = made(voids=0.5, control=0.5)
    values = result.arrays["accuracy"]
    values[..., 2:] = np.random.default_rng(0).integers(0, 2, values[..., 2:].shape)
    rival = result.findings()[0].rival
    half, shares = Grouping.of(40, None).half(), []
    for measured in (half, ~half):
        best = 2 + values[~measured][:, 0, 0, 2:].mean(0).argmax()
        shares += values[measured][:, 0, 0, best].tolist()
    assert rival.estimate.value == pytest.approx(np.mean(shares))


def test_groups_are_those_of_the_prompts_that_have_a_score() -> None:
    whole = made(voids=0.8, control=0.2)
    has = {name: np.arange(48) < 40 for name in ("accuracy", "full.accuracy")}
    result = VoidSkipResult(whole.analysis, whole.arrays, has).of_groups(np.arange(48) // 2)
    finding = result.findings()[0]
    assert (finding.estimate.n, finding.estimate.n_groups) == (40, 20)
    assert finding.estimate.high - finding.estimate.low > 0.35


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_untrained_models_answer_no_better_without_voids(seed: int) -> None:
    model = load_model(f"zoo/hops-4l@untrained-{seed}")
    result = VoidSkip(alphas=(), n_random=1).run(model, interp.load_task("two-hop", n=16))
    assert not any(finding.estimate.excludes() for finding in result.findings())


# Bad input


@pytest.mark.parametrize(("parameters", "message"), [
    ({"alpha": -0.1}, "alpha=-0.1; 0 or more is needed"),
    ({"scores": ("answers",)}, "unknown value 'answers'; did you mean 'answer'"),
    ({"n_random": 0}, "n_random=0; at least 1 is needed"),
    ({"max_new_tokens": -1}, "max_new_tokens=-1; at least 0 is needed"),
])  # fmt: skip
def test_bad_parameters_are_one_line(parameters: dict, message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        make_analysis("void_skip", parameters)


def test_tasks_that_lack_what_is_asked_are_named_before_any_work() -> None:
    model = load_model("zoo/names-6l")
    shard = model.tokenize(interp.load_task("ioi", n=1).prompts)
    with pytest.raises(TaskError, match=r"prompt 'ioi-\d+' has 0 choices"):
        VoidSkip(scores=("choices",)).check(model, shard)
    plain = model.tokenize(["When Ada"])
    with pytest.raises(TaskError, match="an answer is needed"):
        VoidSkip(scores=("answer",)).check(model, plain)
    with pytest.raises(TaskError, match="an answer is needed"):
        VoidSkip(max_new_tokens=2).check(model, plain)
    with pytest.raises(TaskError, match="perplexity needs at least 2"):
        VoidSkip(scores=("text",)).check(tiny("llama"), tokens(n_pos=1))
