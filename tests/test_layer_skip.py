"""The staircase equals one full forward per variant, with hand-written hooks."""

import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import interp
from interp.analyses.layer_skip import LayerSkip, LayerSkipResult
from interp.models import Model, load_model
from interp.replay import first, rows
from interp.sites import Site
from interp.stats.groups import Grouping
from interp.sweeps import lens
from tests.families import stock_logits, tiny, tokens
from tests.test_replay import naive

pytestmark = pytest.mark.filterwarnings("ignore")


def skipping(
    model: Model, batch, skipped: int, part: str, before: int, begin: int = 1
) -> list[torch.Tensor]:
    """Run the stock model with a part of one layer skipped at positions begin .. before - 1; return
    resid_pre of every layer.
    """
    blocks = [block.module for block in model.blocks]
    seen: list[torch.Tensor] = []
    block = model.blocks[skipped]
    module = {"layer": block.module, "attention": block.attn_write, "mlp": block.mlp_write}[part]

    def see(_module, args, kwargs):
        seen.append(args[0] if args else kwargs["hidden_states"])

    def edit(_module, args, kwargs, output):
        resid = args[0] if args else kwargs.get("hidden_states")
        new = first(output).clone()
        new[:, begin:before] = resid[:, begin:before] if part == "layer" else 0
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handles = [b.register_forward_pre_hook(see, with_kwargs=True) for b in blocks]
    handles.append(blocks[-1].register_forward_hook(lambda _m, _a, out: seen.append(first(out))))
    if skipped == model.n_layers - 1 and part == "layer":
        handles.pop().remove()
        handles.append(module.register_forward_hook(edit, with_kwargs=True))
        handles.append(
            blocks[-1].register_forward_hook(lambda _m, _a, out: seen.append(first(out)))
        )
    else:
        handles.append(module.register_forward_hook(edit, with_kwargs=True))
    try:
        stock_logits(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def change(clean: list[torch.Tensor], changed: list[torch.Tensor], layer: int) -> torch.Tensor:
    c, d = clean[layer + 1] - clean[layer], changed[layer + 1] - changed[layer]
    return (c - d).norm(dim=-1) / c.norm(dim=-1).clamp_min(1e-6)


@torch.no_grad()
@pytest.mark.parametrize("part", ["layer", "attention", "mlp"])
def test_all_and_future_equal_the_naive_loop(model: Model, part: str) -> None:
    batch, layers = tokens(), model.n_layers
    analysis = LayerSkip(part=part)
    arrays = analysis.measure(model.record(batch), batch, {})
    clean = skipping(model, batch, 0, part, before=1)
    clean_probs = model.unembed(clean[-1]).softmax(-1)
    splits = analysis._splits(batch.tokens.shape[1])
    for skipped in range(layers):
        runs = {1: skipping(model, batch, skipped, part, before=batch.tokens.shape[1])}
        runs |= {t: skipping(model, batch, skipped, part, before=t) for t in splits}
        for layer in range(skipped, layers):
            whole = change(clean, runs[1], layer)[:, 1:].amax(-1)
            assert_close(arrays["all.max"][:, skipped, layer], whole, rtol=1e-5, atol=1e-5)
            future = torch.stack(
                [change(clean, runs[t], layer)[:, t:].amax(-1) for t in splits]
            ).amax(0)
            assert_close(arrays["future.max"][:, skipped, layer], future, rtol=1e-5, atol=1e-5)
        probs = model.unembed(runs[1][-1]).softmax(-1)
        assert_close(
            arrays["all.output_max"][:, skipped],
            (clean_probs - probs).norm(dim=-1)[:, 1:].amax(-1),
            rtol=0,
            atol=1e-5,
        )


@torch.no_grad()
@pytest.mark.parametrize("first_position", ["included", "excluded"])
def test_position_0_may_be_skipped_too_and_is_measured_if_asked(first_position: str) -> None:
    model, batch = tiny("llama"), tokens()
    analysis = LayerSkip(skipped_positions="all", first_position=first_position)
    arrays = analysis.measure(model.record(batch), batch, {})
    begin, n_pos = int(first_position == "excluded"), batch.tokens.shape[1]
    clean = skipping(model, batch, 0, "layer", before=0, begin=0)
    splits = analysis._splits(n_pos)
    for skipped in range(model.n_layers):
        changed = skipping(model, batch, skipped, "layer", before=n_pos, begin=0)
        future = [skipping(model, batch, skipped, "layer", before=t, begin=0) for t in splits]
        probs = [model.unembed(run[-1]).softmax(-1) for run in (clean, changed)]
        output = (probs[0] - probs[1]).norm(dim=-1)[:, begin:].mean(-1)
        assert_close(arrays["all.output_mean"][:, skipped], output, rtol=0, atol=1e-5)
        for layer in range(skipped, model.n_layers):
            at, whole = (slice(None), skipped, layer), change(clean, changed, layer)[:, begin:]
            assert_close(arrays["all.mean"][at], whole.mean(-1), rtol=1e-5, atol=1e-5)
            behind = [
                change(clean, run, layer)[:, t:].amax(-1)
                for run, t in zip(future, splits, strict=True)
            ]
            largest = torch.stack(behind).amax(0)
            assert_close(arrays["future.max"][at], largest, rtol=1e-5, atol=1e-5)
    same = LayerSkip(first_position=first_position).measure(model.record(batch), batch, {})
    assert not torch.equal(arrays["direct.mean"], same["direct.mean"])


def test_figures_say_whether_the_first_position_is_left_out() -> None:
    model, task = load_model("zoo/hops-4l"), interp.load_task("two-hop", n=2)
    for skipped, shown in (
        ("all", "all positions"),
        ("all but the first", "all positions but the first"),
    ):
        figure = LayerSkip(skipped_positions=skipped, scopes=("all",)).run(model, task).plot()
        titles = [each.text for each in figure.layout.annotations]
        assert shown in titles


@torch.no_grad()
@pytest.mark.parametrize("part", ["layer", "attention", "mlp"])
def test_direct_effects_equal_the_naive_loop(model: Model, part: str) -> None:
    batch = tokens()
    recording = model.record(batch)
    analysis = LayerSkip(part=part)
    arrays = analysis.measure(recording, batch, {})
    kinds = {"layer": ("attn_out", "mlp_out"), "attention": ("attn_out",), "mlp": ("mlp_out",)}[
        part
    ]
    splits = analysis._splits(batch.tokens.shape[1])
    for skipped in range(model.n_layers):
        write = sum(recording.clean(Site(kind, skipped)) for kind in kinds)
        for layer in range(skipped + 1, model.n_layers):
            pre, post = recording.resid(layer), recording.resid(layer + 1)

            def effect(
                start: int, end: int, write=write, pre=pre, post=post, layer=layer
            ) -> torch.Tensor:
                given = pre.clone()
                given[:, 1:end] -= write[:, 1:end]
                new = recording.block(layer, given) - given
                return ((post - pre - new).norm(dim=-1) / (post - pre).norm(dim=-1))[
                    :, start:
                ].amax(-1)

            assert_close(
                arrays["direct.max"][:, skipped, layer], effect(1, 99), rtol=1e-5, atol=1e-5
            )
            future = torch.stack([effect(t, t) for t in splits]).amax(0)
            assert_close(
                arrays["direct_future.max"][:, skipped, layer], future, rtol=1e-5, atol=1e-5
            )


@torch.no_grad()
def test_what_must_hold(model: Model) -> None:
    batch = tokens()
    arrays = LayerSkip().measure(model.record(batch), batch, {})
    diagonal = torch.arange(model.n_layers)
    assert_close(arrays["all.max"][:, diagonal, diagonal], torch.ones(3, model.n_layers))
    for scope in ("future", "direct", "direct_future"):
        assert bool((arrays[f"{scope}.max"][:, diagonal, diagonal] == 0).all())
    for scope in ("all", "future", "direct", "direct_future"):
        assert bool((arrays[f"{scope}.max"].tril(-1) == 0).all())
    assert arrays["all.output_max"].max() <= math.sqrt(2)


@torch.no_grad()
def test_outcomes_and_kl_equal_a_hook() -> None:
    model = tiny("llama")
    batch = dataclasses.replace(tokens(), wrong=torch.tensor([5, 6, 7]))
    arrays = LayerSkip(scopes=("all",)).measure(model.record(batch), batch, {})
    rows, clean = torch.arange(3), model.logits(batch).double().log_softmax(-1)
    assert_close(
        arrays["clean.log_prob"].double(), clean[rows, -1, batch.answer], rtol=0, atol=1e-5
    )
    for skipped in range(model.n_layers):
        keep_first = lambda resid, out: torch.cat([out[:, :1], resid[:, 1:]], 1)  # noqa: E731
        after = naive(model, batch, {skipped: keep_first}).double().log_softmax(-1)
        kl = (clean.exp() * (clean - after)).sum(-1)[:, 1:]
        log_prob = after[rows, -1, batch.answer]
        expected = {
            "log_prob": log_prob,
            "logit_diff": log_prob - after[rows, -1, batch.wrong],
            "accuracy": (after[:, -1].argmax(-1) == batch.answer).double(),
            "kl_max": kl.amax(-1),
            "kl_mean": kl.mean(-1),
        }
        for key, value in expected.items():
            assert_close(
                arrays[f"all.{key}"][:, skipped].double(), value, rtol=1e-4, atol=1e-5, msg=key
            )


def made(log_prob: np.ndarray, accuracy: np.ndarray, *, n_groups: int = 0) -> LayerSkipResult:
    """Return a result with these outcomes [prompt skipped]; all are right, and sure, unskipped."""
    n, layers = log_prob.shape
    arrays = {"all.max": np.zeros((n, layers, layers)), "all.mean": np.zeros((n, layers, layers))}
    arrays["all.position"] = np.zeros((n, layers, layers), int)
    arrays |= {"all.log_prob": log_prob, "all.accuracy": accuracy}
    arrays |= {"clean.log_prob": np.zeros(n), "clean.accuracy": np.ones(n)}
    result = LayerSkipResult(LayerSkip(scopes=("all",), seed=2), arrays, ("all",))
    return result.of_groups(np.arange(n) % n_groups) if n_groups else result


def test_the_costliest_layer_is_picked_on_one_half_and_measured_on_the_other() -> None:
    """By hand: a mean over prompts of the layer with the largest mean of the other half."""
    rng = np.random.default_rng(0)
    log_prob, right = -rng.exponential(size=(60, 4)), rng.integers(0, 2, (60, 4)).astype(float)
    result = made(log_prob, right, n_groups=30)
    cost, accuracy = result.findings()
    half = Grouping.of(60, np.arange(60) % 30).half(seed=2)
    total, fewer, others = 0.0, 0.0, 0.0
    for measured in (half, ~half):
        layer = (-log_prob[~measured]).mean(0).argmax()
        total += -log_prob[measured, layer].sum()
        rest = np.delete(right[measured], layer, axis=1).mean(1)
        others += rest.sum()
        fewer += (rest - right[measured, layer]).sum()
    assert cost.estimate.value == pytest.approx(total / 60)
    assert cost.kind == "describes"
    assert (cost.estimate.n, cost.estimate.n_groups) == (60, 30)
    assert accuracy.estimate.value == pytest.approx(fewer / 60)
    assert accuracy.control.estimate.value == pytest.approx(others / 60)
    assert accuracy.rival.estimate.value == 1.0
    assert accuracy.kind == "compares"
    assert "the accuracy is no lower than without another layer" in accuracy.claim


def test_what_a_clear_layer_costs() -> None:
    log_prob, right = np.full((20, 3), -0.5), np.ones((20, 3))
    log_prob[:, 1], right[:, 1] = -8.0, 0.0
    log_prob[:, 2] = -1.0
    cost, accuracy = made(log_prob, right).findings()
    assert cost.claim.startswith("Skipping layer 1 costs most: 8.00")
    assert (cost.control.estimate.value, cost.rival.estimate.value) == (0.75, 1.0)
    assert cost.rival.name == "layer 2, the next"
    assert accuracy.estimate.value == 1.0
    assert accuracy.estimate.low > 0.7
    assert accuracy.claim.startswith("Without layer 1, the accuracy is 100 points [")
    frame = made(log_prob, right).to_frame().set_index(["effect", "skipped"])
    assert frame.loc[("accuracy", 1), ["mean", "low", "clean"]].tolist() == [0.0, 0.0, 1.0]
    assert frame.loc[("log_prob", 1), "mean"] == 8.0


def test_a_layer_that_may_cost_nothing_is_not_called_needed() -> None:
    log_prob = np.random.default_rng(0).normal(size=(20, 3))
    cost = made(log_prob, np.zeros((20, 3))).findings()[0]
    assert not cost.estimate.excludes()
    assert cost.claim.startswith("No layer is clearly needed: skipping the costliest, layer ")


def test_what_later_tokens_need_of_the_halves() -> None:
    """By hand: layer 0 changes what two later layers write by 0.6, layer 1 what the last by 0.2."""
    arrays = made(np.zeros((9, 3)), np.zeros((9, 3))).arrays
    changes = np.full((9, 3, 3), np.nan)
    changes[:, 0, 1:], changes[:, 1, 2] = (0.4, 0.8), 0.2
    asked = LayerSkip(scopes=("all", "future"))
    result = LayerSkipResult(asked, arrays | {"future.mean": changes}, ("all", "future"))
    less = result.findings()[-1]
    assert less.estimate.value == pytest.approx(0.2 / 0.6)
    assert less.claim == (
        "Skipping a layer of the second half changes later tokens 0.33 [0.33, 0.33] times as much"
        " as one of the first."
    )
    assert (
        less.note == "a skipped layer changes them by 0.40 [0.40, 0.40] of their size, on average"
    )


@torch.no_grad()
def test_parts_of_interp_0_1_open_without_outcomes() -> None:
    model, batch = tiny("llama"), tokens()
    part = LayerSkip().measure(model.record(batch), batch, {})
    newer = ("clean.", "log_prob", "accuracy", "kl_max", "kl_mean", "prompt.group")
    old = {key: value for key, value in part.items() if not key.endswith(newer)}
    old = {key: value for key, value in old.items() if not key.startswith("clean.")}
    result = LayerSkip().combine([old | {"all.answer_fall": torch.ones(3, model.n_layers)}])
    assert set(result.to_frame()["effect"]) == {"layer", "output"}
    assert "changes the probabilities most" in result.summary()
    assert result.plot().layout.title.text


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_untrained_models_lose_no_answers(seed: int) -> None:
    model = interp.load_model(f"zoo/hops-4l@untrained-{seed}")
    result = LayerSkip(scopes=("all",)).run(model, interp.load_task("two-hop", n=24, seed=seed))
    (comparison,) = (finding for finding in result.findings() if finding.kind == "compares")
    assert not comparison.estimate.excludes()


def test_the_trained_model_loses_answers_without_its_first_layer() -> None:
    result = LayerSkip(scopes=("all",)).run(
        interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=24)
    )
    cost, accuracy = result.findings()
    assert cost.claim.startswith("Skipping layer 0 costs most")
    assert cost.estimate.excludes()
    assert accuracy.estimate.low > 0.2


@torch.no_grad()
def test_work_stays_at_the_bound() -> None:
    model, batch = tiny("llama"), tokens()
    recording = model.record(batch)
    LayerSkip(scopes=("all",)).measure(recording, batch, {})
    layers = model.n_layers
    assert recording.work.block_tokens == batch.tokens.numel() * (
        layers + layers * (layers - 1) / 2
    )


@torch.no_grad()
def test_the_last_position_alone_needs_no_other_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny("llama"), tokens()
    recording, rows = model.record(batch), []
    unembed = recording.runner.unembed
    monkeypatch.setattr(
        recording.runner,
        "unembed",
        lambda resid: rows.append(resid[..., 0].numel()) or unembed(resid),
    )
    last = LayerSkip(scopes=("all", "future"), output_positions="last")
    arrays = last.measure(recording, batch, {})
    n_scopes = 1 + len(last._splits(batch.tokens.shape[1]))
    assert sum(rows) <= len(batch.tokens) * (2 * model.n_layers + 3) * n_scopes + 3
    clean = model.logits(batch).softmax(-1)[:, -1]
    every = LayerSkip(scopes=("all", "future")).measure(model.record(batch), batch, {})
    for skipped in range(model.n_layers):
        keep_first = lambda resid, out: torch.cat([out[:, :1], resid[:, 1:]], 1)  # noqa: E731
        after = naive(model, batch, {skipped: keep_first}).softmax(-1)[:, -1]
        change = (clean - after).norm(dim=-1)
        for key in ("all.output_max", "all.output_mean"):
            assert_close(arrays[key][:, skipped], change, rtol=1e-4, atol=1e-5)
    for key in ("all.max", "future.max", "all.log_prob", "future.log_prob"):
        assert_close(arrays[key], every[key])
    assert bool((arrays["future.kl_max"] <= every["future.kl_max"] + 1e-6).all())


@torch.no_grad()
def test_logits_in_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny("llama"), tokens()
    whole = LayerSkip().measure(model.record(batch), batch, {})
    monkeypatch.setattr(lens, "LOGITS_HELD", 2 * model.d_vocab)
    recording, sizes = model.record(batch), []
    unembed = recording.runner.unembed

    def counted(resid: torch.Tensor) -> torch.Tensor:
        sizes.append(resid[..., 0].numel())
        return unembed(resid)

    monkeypatch.setattr(recording.runner, "unembed", counted)
    pieces = LayerSkip().measure(recording, batch, {})
    assert max(sizes) == max(2, len(batch.tokens))  # of outcomes, one variant at least
    for key, value in whole.items():
        if not key.endswith("position"):
            assert_close(pieces[key], value, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_chunks_change_nothing(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = tokens()
    whole = LayerSkip().measure(model.record(batch), batch, {})
    monkeypatch.setattr(rows, "CPU_TOKENS", 1)
    chunked = LayerSkip().measure(model.record(batch), batch, {})
    for key, value in whole.items():
        if not key.endswith("position"):  # of equal changes, either may come first
            assert_close(chunked[key], value, rtol=1e-4, atol=1e-5)


def test_a_gpu_runs_what_its_free_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (3 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 2 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 2**30)
    budget = partial(rows.tokens_at_once, torch.device("cuda"), dtype=torch.float32)
    assert budget(d_model=2**10) == 2**30 // 2**17  # a quarter of 4 GB
    assert budget(d_model=2**10 + 1) == 2**12  # the power of two below
    assert budget(d_model=2**23) == tiny("llama").tokens_at_once() == 1024
