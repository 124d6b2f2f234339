"""Patching a late output back equals one full forward per pair, with hand-written hooks; controls have equal tries."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

import interp
from interp.analyses.back_patching import CONTROLS, BackPatching, back_patched_texts, says
from interp.errors import AnalysisError, TaskError
from interp.models import Model
from interp.sweeps.patching import ends_of_patched, known_hops, outputs_at
from tests.families import tiny, tokens
from tests.test_replay import naive

pytestmark = pytest.mark.filterwarnings("ignore")


def asked(*, subjects: tuple[int, ...] = (5, 5, 7)):
    """Return three prompts with subjects, answers and bridges, all random."""
    batch = tokens()
    return replace(batch, subject=torch.tensor(subjects), answer=batch.tokens[:, 1], bridge=batch.tokens[:, 2],
                   answer_tokens=batch.tokens[:, 1:2])  # fmt: skip


def put(value: torch.Tensor, at: torch.Tensor):
    def edit(_resid, out):
        out = out.clone()
        out[torch.arange(len(out))[:, None], at] = value
        return out

    return edit


@torch.no_grad()
@pytest.mark.parametrize(("position", "span"), [("subject", 1), ("last", 1), ("subject", 2)])
def test_the_grid_equals_the_naive_double_loop(model: Model, position: str, span: int) -> None:
    batch = asked()
    analysis = BackPatching(position=position, span=span, controls=("forward", "rescaled", "position"), known_only=False)
    arrays = analysis.measure(model.record(batch), batch, {})
    recording, clean = model.record(batch), model.logits(batch)[:, -1]
    places = {"own": analysis._positions(batch), "position": analysis._other_positions(batch)}
    places["rescaled"] = places["own"]
    rows = torch.arange(3)[:, None]
    for source in range(model.n_layers):
        for target in range(model.n_layers):
            for kind, at in places.items():
                if kind != "own" and source <= target:
                    assert bool((arrays[f"{kind}.rank"][:, source, target] == -1).all())
                    continue
                value, there = recording.resid(source + 1)[rows, at], recording.resid(target + 1)[rows, at]
                if kind == "rescaled":
                    value = value / value.norm(dim=-1, keepdim=True) * there.norm(dim=-1, keepdim=True)
                logits = naive(model, batch, {target: put(value, at)})[:, -1]
                answer = logits.gather(1, batch.answer[:, None])[:, 0]
                change = answer - clean.gather(1, batch.answer[:, None])[:, 0]
                bridge = (logits - clean).gather(1, batch.bridge[:, None])[:, 0]
                assert_close(arrays[f"{kind}.answer"][:, source, target], change, rtol=0, atol=1e-5)
                assert_close(arrays[f"{kind}.difference"][:, source, target], change - bridge, rtol=0, atol=2e-5)
                rank = (logits > answer[:, None] + 1e-5).sum(-1)
                assert bool((arrays[f"{kind}.rank"][:, source, target] - rank).abs().max() <= 1)


@torch.no_grad()
def test_at_the_last_token_it_is_a_second_visit_of_the_layers(model: Model) -> None:
    batch = asked()
    recording = model.record(batch)
    last = batch.last[:, None]
    own = outputs_at(recording, last)
    for target, source in ((0, 1), (0, 3), (1, 2)):
        ends = ends_of_patched(recording, {target: own[source][None]}, positions=last)[target][0]
        resid = own[source]
        for layer in range(target + 1, model.n_layers):
            resid = recording.tail(layer, resid, start=recording.n_pos - 1)
        assert_close(ends, resid[:, 0], rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_layers_own_output_changes_nothing(model: Model) -> None:
    batch = asked()
    recording = model.record(batch)
    for at in (batch.subject[:, None], torch.zeros(3, 1, dtype=torch.long)):
        own = outputs_at(recording, at)
        for layer in range(model.n_layers):
            ends = ends_of_patched(recording, {layer: own[layer][None]}, positions=at)[layer][0]
            assert_close(ends, recording.resid(model.n_layers)[:, -1], rtol=0, atol=2e-5)


@torch.no_grad()
def test_vectors_of_another_model_of_the_same_width_can_be_patched() -> None:
    source, target, batch = tiny("gpt2"), tiny("llama"), asked()
    at = batch.subject[:, None]
    values = outputs_at(source.record(batch), at)
    ends = ends_of_patched(target.record(batch), {1: values}, positions=at)[1]
    for layer in range(source.n_layers):
        wanted = naive(target, batch, {1: put(values[layer], at)})[:, -1]
        assert_close(target.unembed(ends[layer]), wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_work_stays_at_the_bound() -> None:
    model, batch = tiny("llama"), asked()
    recording, layers = model.record(batch), model.n_layers
    recording.kv(layers - 1)
    before = recording.work.block_tokens
    BackPatching(position="last", controls=(), known_only=False).measure(recording, batch, {})
    assert recording.work.block_tokens - before == 3 * (layers - 1) * layers * (2 * layers - 1) / 6


def test_a_first_fact_held_out_is_repaired_at_the_bridge_and_a_second_is_not() -> None:
    """The first hop of such a prompt is resolved after the layers that would use it; a second hop is nowhere to be found."""
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop")
    first = BackPatching().run(model, task.tagged(set="first-held-out").take(96))
    assert first.best_pair("back") == (3, 0)
    assert first.fixed("back").mean() > 0.6
    for statistic in ("oracle", "fixed pair"):
        gain = first._rate(first.gain(statistic)[0])
        assert gain["low"] > 0.35
    second = BackPatching().run(model, task.tagged(set="second-held-out").take(96))
    assert second.fixed("back").mean() < 0.1
    assert second._rate(second.gain("oracle")[0])["low"] <= 0
    for result in (first, second):
        assert result.identity_change() < 1e-4
        frame = result.to_frame()
        assert set(frame[frame.statistic == "oracle"].kind) == {"back", "sampled", *CONTROLS}
        assert (frame[frame.statistic == "pair"].groupby("kind").size() == result.n_tries).all()


def test_texts_say_what_the_grid_says() -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop").tagged(set="first-held-out").take(12)
    analysis = BackPatching(controls=("forward",), known_only=False)
    result, shards = analysis.run(model, task), model.shards(task)
    for pair in ((3, 0), (1, 1)):
        texts = [t for s in shards for t in back_patched_texts(model, s, source=pair[0], target=pair[1], analysis=analysis,
                                                               max_new_tokens=1)]  # fmt: skip
        said = [says(text, prompt) for text, prompt in zip(texts, [p for s in shards for p in s], strict=True)]
        assert said == (result.arrays["own.rank"][:, pair[0], pair[1]] == 0).tolist()


def test_known_hops_are_those_that_the_model_answers() -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=12)
    assert len(known_hops(model, task)) == 12
    assert len(known_hops(interp.load_model("zoo/hops-8l@step-0000"), task)) < 12


def test_bad_input_is_named() -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=4)
    with pytest.raises(AnalysisError, match="unknown control 'rescale'; did you mean 'rescaled'"):
        BackPatching(controls=("rescale",))
    with pytest.raises(AnalysisError, match="span=0; at least 1"):
        BackPatching(span=0)
    with pytest.raises(AnalysisError, match="a span of 40 tokens begins before its first token"):
        BackPatching(span=40).run(model, task)
    with pytest.raises(TaskError, match=f"prompt {task.prompts[0].id!r} has no subject"):
        BackPatching().run(model, task.of([replace(task.prompts[0], subject=None)]))
    with pytest.raises(TaskError, match="found 0 times; once is needed"):
        BackPatching().run(model, task.of([replace(task.prompts[0], subject="nobody")]))
    with pytest.raises(AnalysisError, match="1 prompt given; the control 'example' needs at least 2"):
        BackPatching().run(model, task.take(1))
    with pytest.raises(AnalysisError, match="source=4; the model's last layer is 3"):
        back_patched_texts(model, task.prompts[:1], source=4, target=0, analysis=BackPatching())
