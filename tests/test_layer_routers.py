"""Routes by the prompt equal naive chains; losses and gates are as written down."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import interp
from interp.analyses.layer_routers import LayerRouters, gated, supervised
from interp.analyses.layer_routers.labels import shortest_routes
from interp.analyses.layer_routers.rates import at_rate, macro_f1
from interp.analyses.layer_routers.routes import (
    TEST,
    along,
    parts_of,
    random_orders,
    routed,
    scores,
    set_sizes,
    without_first,
)
from interp.analyses.layer_routers.testing import layers_multiply_adds
from interp.errors import AnalysisError, TaskError, UnsuitedError
from interp.models import Model
from interp.tasks import Prompt, Task
from tests.families import tokens

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def hops() -> Model:
    return interp.load_model("zoo/hops-4l")


@pytest.fixture(scope="module")
def shard(hops: Model):
    task = interp.load_task("two-hop", n=60)
    return hops.tokenize(max(hops.shards(task), key=len))


def all_rows(shard) -> torch.Tensor:
    return torch.arange(len(shard.prompts))


# Routes


@torch.no_grad()
def test_running_every_layer_once_is_the_clean_pass(model: Model) -> None:
    batch = tokens()
    recording, rows = model.record(batch), all_rows(batch)
    once = torch.ones(len(rows), model.n_layers, dtype=torch.int64)
    resid, visits = routed(recording, rows, lambda layer, _: once[:, layer])
    assert torch.equal(visits, once)
    assert_close(recording.logits(resid), model.logits(batch), rtol=1e-4, atol=1e-4)
    assert torch.equal(along(recording, rows, once), recording.resid(model.n_layers))


@torch.no_grad()
def test_each_prompt_has_its_own_chain(model: Model) -> None:
    batch = tokens()
    recording, rows = model.record(batch), all_rows(batch)
    visits = torch.randint(0, 3, (len(rows), model.n_layers), generator=torch.manual_seed(1))
    resid, ran = routed(recording, rows, lambda layer, _: visits[:, layer])
    assert torch.equal(ran, visits)
    assert_close(along(recording, rows, visits), resid)
    for row in rows.tolist():
        path = [layer for layer, n in enumerate(visits[row].tolist()) for _ in range(n)]
        naive = recording.chain(path, recording.resid(0))
        assert_close(resid[row], naive[row], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_routes_do_not_depend_on_who_else_is_there(hops: Model, shard) -> None:
    recording, rows = hops.record(shard), all_rows(shard)
    routers = supervised.Routers.drawn(hops.n_layers, hops.d_model, seed=3)
    together, visits = routed(recording, rows, routers.decide)
    assert len(visits.unique()) > 1
    for row in (0, len(rows) - 1):
        alone, own = routed(recording, rows[row : row + 1], routers.decide)
        assert torch.equal(own[0], visits[row])
        assert_close(alone[0], together[row], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_shortest_routes_are_right_and_score_as_they_ran(hops: Model, shard) -> None:
    recording, rows = hops.record(shard), all_rows(shard)[:6]
    visits, is_right = shortest_routes(recording, shard, rows, n_simulations=20, seed=0)
    assert visits.max() <= 2
    scored = scores(recording, shard, rows, along(recording, rows, visits))
    assert torch.equal(scored[:, 0].bool(), is_right)
    clean = scores(recording, shard, rows, recording.resid(hops.n_layers)[rows])[:, 0].bool()
    assert (is_right | ~clean).all()
    assert (visits.sum(1)[clean] <= hops.n_layers).all()
    alone, _ = shortest_routes(recording, shard, rows[2:3], n_simulations=20, seed=0)
    assert torch.equal(alone[0], visits[2])


def test_sets_are_nested_and_reach_from_none_to_all() -> None:
    assert set_sizes(8) == list(range(9))
    assert set_sizes(80)[:2] == [0, 5]
    assert set_sizes(80)[-1] == 80
    prompts = interp.load_task("two-hop", n=5).prompts
    order = random_orders(prompts, 6, seed=0)
    assert torch.equal(random_orders(prompts[3:], 6, seed=0), order[3:])
    for size in range(7):
        visits = without_first(order, size)
        assert torch.equal(visits.sum(1), torch.full((5,), 6 - size))
        assert (visits.gather(1, order[:, :size]) == 0).all()


def test_what_a_set_gives_at_a_rate_lies_between_two_sizes() -> None:
    by_size = np.array([[1.0, 0.5, 0.25, 0.0, 0.0]])  # 4, 3, 2, 1 and 0 layers run
    for runs, value, slope in (
        (4.0, 1.0, 0.0),
        (2.5, 0.375, 0.25),
        (0.0, 0.0, 0.0),
        (5.0, 1.0, 0.0),
    ):
        at, per_run = at_rate(by_size, runs, 4)
        assert (at[0], per_run[0]) == pytest.approx((value, slope))


def test_no_group_is_in_two_thirds() -> None:
    prompts = interp.load_task("facts").prompts
    parts = parts_of(prompts, seed=0)
    by_group: dict[str, set[int]] = {}
    for prompt, part in zip(prompts, parts.tolist(), strict=True):
        by_group.setdefault(prompt.drawn, set()).add(part)
    assert all(len(of) == 1 for of in by_group.values())
    sizes = np.bincount([*map(min, by_group.values())])
    assert sizes.max() - sizes.min() <= 1
    assert torch.equal(parts_of(prompts[::-1], seed=0), parts.flip(0))
    assert not torch.equal(parts_of(prompts, seed=1), parts)


# Routers that imitate


def test_windows_are_means_that_end_at_the_last_token() -> None:
    resid = torch.arange(1.0, 20.0)[None, :, None].expand(1, 19, 3)
    resid = torch.cat([resid, torch.ones(1, 19, 1)], dim=-1)
    windows = supervised.windows_of(resid)
    assert windows.shape == (1, 8, 4)
    ratio = windows[0, :, 0] / windows[0, :, 3]
    assert_close(ratio, torch.arange(4.5, 20, 2))  # tokens 4 and 5, ..., 18 and 19
    assert_close(windows.square().mean(-1), torch.ones(1, 8))
    assert supervised.windows_of(resid[:, :5]).shape == (1, 5, 4)


def test_the_focal_loss_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]).log()
    weights = torch.tensor([2.0, 0.5, 0.5])
    expected = -(2.0 * 0.5**2 * math.log(0.5) + 0.5 * 0.2**2 * math.log(0.8)) / 2
    assert float(supervised.focal_loss(logits, torch.tensor([0, 1]), weights)) == pytest.approx(
        expected
    )


def test_rare_classes_weigh_more_and_absent_ones_nothing() -> None:
    labels = torch.tensor([[1] * 98 + [0] * 2])
    weights = supervised.class_weights(labels).tolist()
    of = [(1 - 0.999) / (1 - 0.999**n) for n in (2, 98)]
    assert weights == pytest.approx([3 * of[0] / sum(of), 3 * of[1] / sum(of), 0.0])


def test_routers_learn_what_the_stream_says_and_are_drawn_by_the_seed() -> None:
    generator = torch.Generator().manual_seed(0)
    windows = torch.randn(40, 2, 3, 16, generator=generator)
    labels = torch.stack([(windows[:, 0].mean(1)[:, 0] > 0).long(), torch.ones(40).long()], dim=1)
    labels[:, 0] *= 2  # skip or repeat
    examples = supervised.Examples(windows, labels)
    start = supervised.Routers.drawn(2, 16, seed=0)
    routers = supervised.trained(start, [examples], [], steps=150)
    assert (routers.logits(windows).argmax(-1) == labels).float().mean() > 0.95
    again = supervised.trained(start, [examples], [], steps=150)
    assert torch.equal(again.inner, routers.inner)


def test_always_running_names_at_most_a_third() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(3, p=[0.05, 0.94, 0.01], size=(200, 8))
    assert (labels == 1).mean() > 0.9
    assert macro_f1(labels, np.ones_like(labels)) <= 1 / 3
    assert macro_f1(np.ones_like(labels), np.ones_like(labels)) == pytest.approx(1 / 3)
    assert macro_f1(labels, labels) == 1.0


# Gates


def test_a_gate_has_a_gradient_and_the_printed_one_has_none(hops: Model, shard) -> None:
    recording = hops.record(shard)
    with torch.enable_grad(), hops.running:
        start = gated.Gates.opened(hops.n_layers, hops.d_model, shard.tokens.device)
        bias = start.bias.clone().requires_grad_(True)
        loss = gated.loss_of(recording, shard, gated.Gates(start.weight, bias, sharpness=1.0), 0.0)
        (gradient,) = torch.autograd.grad(loss, bias)
        assert (gradient.abs() > 1e-6).all()

        rho = torch.sigmoid(bias)
        resid = recording.resid(0)
        for layer in range(hops.n_layers):
            write = recording.block(layer, resid) - resid
            resid = resid + rho[layer] * write + (1 - rho[layer]) * write
        printed = scores(recording, shard, all_rows(shard), resid)[:, 1].sum()
        (nothing,) = torch.autograd.grad(printed, bias)
        assert (nothing.abs() < 1e-3 * gradient.abs().max()).all()


def test_open_gates_are_the_clean_pass_and_closed_ones_the_embedding(hops: Model, shard) -> None:
    recording, nothing = hops.record(shard), torch.zeros(hops.n_layers, hops.d_model)
    with torch.no_grad():
        for bias, tap in ((40.0, hops.n_layers), (-40.0, 0)):
            gates = gated.Gates(nothing, torch.full((hops.n_layers,), bias))
            resid, opened = gated.softly(recording, gates)
            assert_close(resid, recording.resid(tap), rtol=1e-4, atol=1e-4)
            assert_close(opened, torch.full_like(opened, float(tap > 0)))


def test_a_penalty_closes_gates_and_weights_stay_frozen(hops: Model, shard) -> None:
    recording, before = hops.record(shard), hops.fingerprint
    start = gated.Gates.opened(hops.n_layers, hops.d_model, shard.tokens.device)
    with torch.no_grad(), hops.running:
        gates = gated.trained(start, [(recording, shard)], penalty=300.0, epochs=60)
        _, opened = gated.softly(recording, gates)
    assert opened.mean() < 0.5
    assert hops.fingerprint == before


# The whole


@pytest.fixture(scope="module")
def analysis() -> LayerRouters:
    return LayerRouters(n_simulations=12, steps=40, epochs=4, penalties=(1.0,), draws=1)


@pytest.fixture(scope="module")
def task() -> Task:
    return interp.load_task("two-hop", n=48)


def test_test_prompts_were_met_by_no_rule(hops: Model, task: Task, analysis: LayerRouters) -> None:
    before = hops.work.block_tokens
    result = analysis.run(hops, task)
    ran = hops.work.block_tokens - before
    batches = [hops.tokenize(shard) for shard in hops.shards(task)]
    stated = sum(
        (1 + analysis.cost(hops, batch).forwards) * batch.tokens.numel() * hops.n_layers
        for batch in batches
    )
    assert ran <= stated
    prompts = [prompt for batch in batches for prompt in batch.prompts]
    is_test = torch.eq(parts_of(prompts, seed=0), TEST).numpy()
    assert np.array_equal(result.arrays["is_test"], is_test)
    assert len(result.scores("supervised")) == is_test.sum()
    shuffled = task.of(task.prompts[::-1])
    first, second = (each.to_frame()["mean"] for each in (result, analysis.run(hops, shuffled)))
    assert_close(torch.tensor(second), torch.tensor(first), rtol=1e-3, atol=1e-3, equal_nan=True)


def test_what_is_saved_is_net_of_the_routers(hops: Model, task: Task, analysis) -> None:
    result = dataclasses.replace(analysis, rules=("supervised",)).run(hops, task)
    batch = hops.tokenize(task.prompts[:1])
    n_pos, d = batch.tokens.shape[1], hops.d_model
    assert supervised.multiply_adds(4, d, n_pos) == 4 * (n_pos * d + 8 * 128 * (d + 3))
    whole = layers_multiply_adds(hops.record(batch), d)
    matrices = 3 * d * d + 3 * d * 336  # half as many K/V heads; a gated MLP
    assert whole == 4 * (matrices * n_pos + 2 * n_pos**2 * d)
    own = result.of_test("own.supervised")
    runs = result.runs("supervised") / 4
    assert_close(torch.tensor(result.saved("supervised")), torch.tensor(1 - runs - own))
    assert 0 < own.min() < own.max() < 0.2


def test_another_task_is_judged_by_the_same_routers(hops: Model, task: Task, analysis) -> None:
    result = dataclasses.replace(analysis, other_task="one-hop").run(hops, task)
    frame = result.to_frame()
    rows = frame[frame["statistic"] == "accuracy elsewhere"]
    assert len(rows) == 5
    assert rows["mean"].between(0, 1).all()


def test_a_rule_that_runs_more_layers_than_there_are_is_compared_with_the_full_model(
    hops: Model, task: Task, analysis: LayerRouters
) -> None:
    result = analysis.run(hops, task)
    visits = {"visits.supervised": np.full_like(result.arrays["visits.supervised"], 2)}
    more = dataclasses.replace(result, arrays=result.arrays | visits).findings()[0]
    assert more.control.name == "the full model"
    assert more.rival is None
    assert "the full model" in more.claim
    assert more.note.endswith("200 % of the layer runs, compared with the full model's 100 %")


def test_an_untrained_model_claims_nothing(analysis: LayerRouters, task: Task) -> None:
    untrained = interp.load_model("zoo/hops-4l@untrained-0")
    for finding in analysis.run(untrained, task).findings():
        assert finding.kind == "describes" or not finding.estimate.excludes()


def test_bad_input_is_refused_in_one_line(hops: Model, analysis: LayerRouters) -> None:
    with pytest.raises(AnalysisError, match="rules is empty"):
        LayerRouters(rules=())
    with pytest.raises(AnalysisError, match="penalties is empty"):
        LayerRouters(penalties=())
    with pytest.raises(AnalysisError, match="n_simulations=1; at least 2"):
        LayerRouters(n_simulations=1)
    with pytest.raises(AnalysisError, match=r"9 groups of prompts .* given; 15 are needed"):
        analysis.run(hops, interp.load_task("two-hop", n=9, seed=4))
    with pytest.raises(TaskError, match="an answer is needed"):
        analysis.run(hops, Task("none", tuple(Prompt(str(i), "Ada mother") for i in range(20))))
    with pytest.raises(TaskError, match="unknown task 'two-hops'; did you mean 'two-hop'"):
        dataclasses.replace(analysis, other_task="two-hops").run(
            hops, interp.load_task("two-hop", n=48)
        )


def test_gates_are_refused_for_large_models(hops: Model, analysis, monkeypatch) -> None:
    monkeypatch.setattr("interp.analyses.layer_routers.MOST_WEIGHTS", 1000)
    batch = hops.tokenize(interp.load_task("two-hop", n=1).prompts)
    with pytest.raises(UnsuitedError, match=r"weights; gates are trained through at most 1,000"):
        analysis.check(hops, batch)
    dataclasses.replace(analysis, rules=("supervised",)).check(hops, batch)
