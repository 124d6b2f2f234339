"""Layers left out one after another: scores, orders and texts against the naive way."""

from functools import cache
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

import interp
from interp.analyses.layer_removal import LayerRemoval, LayerRemovalResult, orders
from interp.analyses.layer_removal.orders import (
    Measured,
    choose_orders,
    greedy_order,
    importances,
)
from interp.analyses.layer_removal.scores import (
    SCORES,
    answer_log_prob,
    chance_of,
    option_tensor,
)
from interp.errors import AnalysisError, ModelError, TaskError
from interp.interventions import Skip
from interp.models import Model
from interp.models.untrained import untrained
from interp.stats.groups import Grouping
from interp.sweeps import removal
from interp.sweeps.removal import Removed, ends_without
from interp.sweeps.tags import rows_of
from interp.tasks import Prompt, Task
from tests.families import tiny, tokens

SETS = [Removed(each) for n in range(5) for each in combinations(range(4), n)]


@cache
def zoo() -> Model:
    return interp.load_model("zoo/hops-4l")


@cache
def two_hop() -> Task:
    return interp.load_task("two-hop", n=14)


@cache
def measured() -> LayerRemovalResult:
    return LayerRemoval(max_new_tokens=3).run(zoo(), two_hop())


@torch.no_grad()
def test_streams_without_layers_equal_a_naive_chain(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording, prompts = model.record(tokens(batch=3)), torch.tensor([2, 0])
    with model.running:
        for at_once in (64, 3):
            monkeypatch.setattr(removal, "_AT_ONCE", at_once)
            ends = dict(ends_without(recording, SETS, prompts))
            assert {*ends} == {*SETS}
            for gone, end in ends.items():
                left = [layer for layer in range(4) if layer not in gone]
                naive = recording.chain(left, recording.resid(0))[prompts]
                assert_close(end, naive, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_shared_beginning_of_sets_runs_once() -> None:
    model = tiny("llama")
    recording = model.record(tokens(batch=2))
    recording.resid(0)
    before, n = recording.work.block_tokens, recording.tokens.numel()
    sets = [Removed({1}), Removed({1, 2}), Removed({2, 3}), Removed({3}), Removed()]
    dict(ends_without(recording, sets, torch.arange(2)))
    assert recording.work.block_tokens - before == 3 * n  # 2 and 3 behind 1, 3 behind 1 and 2


def test_scores_are_those_of_passes_in_which_the_layers_are_skipped() -> None:
    model, result = zoo(), measured()
    task = model.fit(two_hop()).task
    shards = [model.tokenize(prompts) for prompts in model.shards(task)]
    begin = 0
    for shard in shards:
        for row, prompt in enumerate(shard.prompts):
            for order, step in ((0, 0), (1, 1), (4, 1), (6, 0), (8, 1)):
                gone = result.arrays["removed"][begin, order][: result.counts[step]]
                plan = [Skip(int(layer)) for layer in gone]
                logits = model.forward([prompt], plan=plan).logits[0].log_softmax(-1)
                scores = dict(zip(SCORES, result.arrays["scores"][begin, order, step], strict=True))
                assert shard.answer is not None
                log_p = float(logits[-1, shard.answer[row]])
                assert scores["log_prob"] == pytest.approx(log_p, abs=1e-4)
                assert scores["accuracy"] == (log_p >= float(logits[-1].max()))
                own = logits[:-1].gather(1, shard.tokens[row, 1:, None])
                assert scores["nats per token"] == pytest.approx(float(-own.mean()), abs=1e-4)
                clean = model.forward([prompt]).logits[0, -1].log_softmax(-1)
                kl = float((clean.exp() * (clean - logits[-1])).sum())
                assert scores["KL from clean"] == pytest.approx(kl, abs=1e-4)
            begin += 1


def test_texts_are_those_of_generation_with_the_layers_skipped() -> None:
    model, result = zoo(), measured()
    prompts = [p for shard in model.shards(model.fit(two_hop()).task) for p in shard]
    for row in (0, 5, 9):
        for order, step in ((0, 1), (4, 0), (7, 1)):
            count = result.counts_of("generated")[step]
            gone = result.arrays["removed"][row, order][:count]
            batch = model.tokenize([prompts[row]])
            plan = [Skip(int(layer)) for layer in gone]
            (text,) = model.generate(batch, max_new_tokens=3, plan=plan).texts
            holds = (prompts[row].answer or "").lower() in text.lower()
            assert bool(result.arrays["texts"][row, order, step]) == holds


def test_nothing_left_out_is_the_whole_model() -> None:
    result, frame = measured(), measured().to_frame()
    whole = frame[frame["order"] == "whole model"].set_index("score")
    assert (whole["removed"] == 0).all()
    assert whole.loc["KL from clean", "mean"] == pytest.approx(0, abs=1e-6)
    assert whole.loc["accuracy", "mean"] == pytest.approx(result.clean("accuracy").mean())
    assert whole.loc["generated", "mean"] >= whole.loc["accuracy", "mean"]


def test_orders_by_place_are_what_they_say() -> None:
    removed = measured().arrays["removed"]
    assert (removed[:, measured().names.index("last first")] == [3, 2]).all()
    assert (removed[:, measured().names.index("first first")] == [0, 1]).all()


def test_one_layer_left_out_by_skip_loss_costs_the_half_that_chose_it_least() -> None:
    model = zoo()
    chosen = choose_orders(model, two_hop(), ["skip loss"], n_random=2, most=4, seed=0)
    shards = Measured(model, two_hop()).shards
    is_first = chosen["is_first"].numpy()
    assert 0 < is_first.sum() < len(is_first)
    for row, makers in enumerate((is_first, ~is_first)):
        losses = np.zeros(4)
        for shard in shards:
            own = [i for i, r in enumerate(rows_of(chosen["key"], shard.prompts)) if makers[r]]
            for layer in range(4) if own else ():
                logits = model.forward(shard.only(own), plan=[Skip(layer)]).logits[:, -1]
                answer = shard.answer[own][:, None]
                losses[layer] -= float(logits.log_softmax(-1).gather(1, answer).sum())
        assert chosen["removed"][row, 0].tolist() == losses.argsort().tolist()


def test_no_half_is_scored_on_orders_that_it_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one half of the prompts measures changes the other half's orders alone."""
    task, names = two_hop(), ["block influence", "skip loss"]
    how = {"n_random": 2, "most": 4, "seed": 0}
    before = choose_orders(zoo(), task, names, **how)
    first = [p for p in task.prompts if before["is_first"][rows_of(before["key"], [p])[0]]]
    ids = {prompt.id for prompt in first}

    def other(recording, shard, names):  # type: ignore[no-untyped-def]
        known = importances(recording, shard, names)
        own = torch.tensor([prompt.id in ids for prompt in shard.prompts])
        return {name: torch.where(own[:, None], -value, value) for name, value in known.items()}

    monkeypatch.setattr(orders, "importances", other)
    after = choose_orders(zoo(), task, names, **how)
    assert torch.equal(after["removed"][1], before["removed"][1])  # made on the second half
    assert not torch.equal(after["removed"][0], before["removed"][0])


def test_greedy_equals_trying_everything() -> None:
    model, task = zoo(), two_hop()
    shards = Measured(model, task)
    half = np.ones(14, bool)
    half[::3] = False
    order = greedy_order(shards, half, most=3)

    def loss(gone: list[int]) -> float:
        total, begin = 0.0, 0
        for shard in shards.shards:
            own = np.flatnonzero(half[begin : begin + len(shard.prompts)]).tolist()
            begin += len(shard.prompts)
            if own:
                some = shard.only(own)
                plan = [Skip(layer) for layer in gone]
                last = model.forward(some, plan=plan).logits[:, -1].log_softmax(-1)
                assert some.answer is not None
                total -= float(last.gather(1, some.answer[:, None]).sum())
        return total

    gone: list[int] = []
    for layer in order:
        left = [x for x in range(4) if x not in gone]
        assert layer == min(left, key=lambda x: loss([*gone, x]))
        gone.append(layer)


def test_greedy_is_an_order_like_the_others() -> None:
    names = ("last first", "greedy")
    result = LayerRemoval(orders=names, max_new_tokens=None).run(zoo(), two_hop())
    assert result.names == names
    assert "generated" not in result.scores
    log_p = result.curves("log_prob").mean(0)
    assert log_p[1, 0] > log_p[0, 0] - 1.0


def test_nothing_depends_on_order_or_batch_size() -> None:
    analysis = LayerRemoval(max_new_tokens=2, orders=("skip loss", "last first"))
    task = two_hop()
    turned = analysis.run(zoo(), task.of([*reversed(task.prompts)]))
    frames = [
        r.to_frame().drop(columns=["low", "high"]) for r in (analysis.run(zoo(), task), turned)
    ]
    pd.testing.assert_frame_equal(*frames, rtol=1e-4, atol=1e-5)


def test_a_choice_is_the_answer_against_other_first_tokens() -> None:
    model = zoo()
    names = sorted({prompt.answer or "" for prompt in two_hop().prompts})[:3]
    asked = {"text": two_hop().prompts[0].text, "answer": names[0]}
    prompts = [
        Prompt("choices", choices=tuple(names), **asked),
        Prompt("wrong", wrong=names[1], **asked),
        Prompt("none", **asked),
    ]
    options = option_tensor(model, prompts)
    assert (options >= 0).sum(1).tolist() == [3, 2, 0]
    assert options[0, 0] == options[1, 0]
    chance = chance_of(options)
    assert_close(chance, torch.tensor([1 / 3, 1 / 2, torch.nan]), equal_nan=True)


def test_an_untrained_model_shows_no_best_order() -> None:
    result = LayerRemoval(max_new_tokens=2).run(untrained(zoo(), seed=0), two_hop())
    (only,) = result.findings()
    assert only.kind == "compares"
    assert not only.estimate.excludes()


def made_up(curves: np.ndarray, clean: np.ndarray) -> LayerRemovalResult:
    """Return a result of two orders and two random ones with accuracies [prompt order step]."""
    n, n_steps = len(clean), curves.shape[2]
    scores = np.zeros((n, 4, n_steps, len(SCORES)))
    scores[..., SCORES.index("choice")] = np.nan
    scores[..., SCORES.index("accuracy")] = curves
    whole = np.full((n, len(SCORES)), np.nan)
    whole[:, SCORES.index("accuracy")] = clean
    arrays = {"scores": scores, "clean": whole, "n_layers": np.full(n, 2 * n_steps)}
    analysis = LayerRemoval(orders=("ZD", "last first"), n_random=2, max_new_tokens=None)
    return LayerRemovalResult(analysis, arrays).of_groups(np.arange(n))


def test_findings_say_what_was_put_in() -> None:
    """Half of the prompts are lost at the second layer by ZD, all at once at random."""
    n = 40
    curves = np.zeros((n, 4, 3))
    curves[:, 0, 0] = 1
    curves[: n // 2, 0, 1:] = 1
    saved, removable = made_up(curves, np.ones(n)).findings()
    assert saved.estimate.value == pytest.approx(2 / 3)
    assert saved.estimate.excludes()
    assert "(ZD)" in saved.claim
    assert saved.control.estimate.value == 0
    assert saved.rival.name == "last first"
    assert removable.estimate.value == pytest.approx(1.2)  # from 1 to .5 between 1 and 2 layers


def test_an_order_that_is_good_only_where_it_was_picked_saves_nothing() -> None:
    n = 40
    half = Grouping.of(n, np.arange(n)).half(seed=0)
    curves = np.zeros((n, 4, 3))
    curves[half, 0], curves[~half, 1] = 1, 1  # each half has a best order of its own
    saved, *_ = made_up(curves, np.ones(n)).findings()
    assert saved.estimate.value == 0
    assert not saved.estimate.excludes()
    assert saved.claim.startswith("No order of removal is shown to keep more accuracy")


@pytest.mark.parametrize(
    ("parameters", "counts", "text_counts"),
    [
        ({}, [1, 3, 5, 7, 9, 11, 13, 15], [1, 9, 15]),
        ({"most": 0.1}, [1, 2, 3], [1, 2, 3]),
        ({"steps": 1, "text_steps": 2}, [15], [15]),
        ({"steps": 2, "max_new_tokens": None}, [1, 15], []),
    ],
)
def test_steps_are_evenly_spaced(
    parameters: dict[str, object], counts: list[int], text_counts: list[int]
) -> None:
    analysis = LayerRemoval(**parameters)
    assert analysis.counts(30) == counts
    assert analysis.text_counts(30) == text_counts


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(AnalysisError, match="each of them once"):
        LayerRemoval(orders=("ZD", "ZD"))
    text = two_hop().prompts[0].text
    with pytest.raises(TaskError, match="answer"):
        LayerRemoval().run(zoo(), Task.from_texts([text]))
    ids = Task("ids", (Prompt("1", "", tokens=(3, 4, 5), answer="x", spelling={"x": (7,)}),))
    with pytest.raises(ModelError, match="max_new_tokens"):
        LayerRemoval().run(Model("without a tokenizer", zoo().module), ids)


def test_it_can_be_made_coarser() -> None:
    coarser = LayerRemoval().coarser()
    assert coarser is not None
    assert (coarser.steps, coarser.max_new_tokens) == (4, None)
    assert LayerRemoval(steps=2).coarser() is None


def test_answer_log_prob_is_of_the_first_token() -> None:
    model = zoo()
    shard = model.tokenize(model.shards(two_hop())[0])
    recording = model.record(shard)
    found = answer_log_prob(recording, recording.resid(model.n_layers), shard)
    last = model.logits(shard)[:, -1].log_softmax(-1)
    assert_close(found, last.gather(1, shard.answer[:, None])[:, 0], rtol=1e-4, atol=1e-4)
