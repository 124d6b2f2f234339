"""Erasing over clean keys and values equals whole forwards with hand-written hooks."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

import interp
from interp.analyses.residual_erasure import ResidualErasure
from interp.errors import AnalysisError, TaskError
from interp.models import Model
from interp.runs.registry import make_analysis
from interp.tasks import Prompt, Task
from tests.families import tiny, tokens
from tests.test_integrated_gradients import answering

pytestmark = pytest.mark.filterwarnings("ignore")


def naive(
    model: Model, ids: torch.Tensor, mean: torch.Tensor | None, *, tap: int, erased: slice
) -> torch.Tensor:
    """Return the probabilities [pos d_vocab] of a forward, positions erased at a tap."""

    def erase(resid: torch.Tensor) -> torch.Tensor:
        changed = resid.clone()
        if mean is not None:
            changed[:, erased] = mean
        return changed

    def before(_module, args, kwargs):
        return (erase(args[0]), *args[1:]), kwargs

    layer = min(tap, model.n_layers - 1)
    if tap < model.n_layers:
        handle = model.blocks[layer].module.register_forward_pre_hook(before, with_kwargs=True)
    else:

        def behind(_module, _args, output):
            return (erase(output[0]), *output[1:]) if isinstance(output, tuple) else erase(output)

        handle = model.blocks[layer].module.register_forward_hook(behind)
    logits = model.module(input_ids=ids[None], use_cache=False).logits[0].float()
    handle.remove()
    return logits.softmax(-1)


@torch.no_grad()
def test_every_tap_and_position_equals_a_whole_forward(model: Model) -> None:
    batch = answering(tokens(n_pos=8), lengths=(1, 3, 1))
    mean = 0.3 * torch.randn(
        model.n_layers + 1, model.d_model, generator=torch.Generator().manual_seed(2)
    )
    arrays = ResidualErasure().measure(model.record(batch), batch, {"mean": mean})
    for row, n in ((0, 1), (1, 3)):
        answer = batch.answer_tokens[row, :n]
        ids = torch.cat([batch.tokens[row], answer[:-1]])
        clean = naive(model, ids, None, tap=0, erased=slice(0, 0))[7:]
        for tap in range(model.n_layers + 1):
            for position in range(len(ids)):
                for scope, erased in (
                    ("position", slice(position, position + 1)),
                    ("prefix", slice(1, position + 1)),
                ):
                    if scope == "prefix" and position == 0:
                        continue
                    change = clean - naive(model, ids, mean[tap], tap=tap, erased=erased)[7:]
                    at = (row, tap, position)
                    assert_close(
                        arrays[f"{scope}.output"][at], change.norm(dim=-1).amax(), rtol=0, atol=1e-5
                    )
                    fall = change.gather(1, answer[:, None]).sum()
                    assert_close(arrays[f"{scope}.answer"][at], fall, rtol=0, atol=1e-5)


@torch.no_grad()
def test_what_must_hold(model: Model) -> None:
    batch = answering(tokens(n_pos=8), lengths=(1, 2, 1))
    mean = torch.zeros(model.n_layers + 1, model.d_model)
    arrays = ResidualErasure().measure(model.record(batch), batch, {"mean": mean})
    output = arrays["position.output"]
    assert bool(
        (output[:, -1, :7] == 0).all()
    )  # after the last layer only tokens that predict the answer matter
    assert bool((output[:, -1, 7] > 0).all())
    assert bool((arrays["prefix.output"][:, :, 0] == 0).all())
    assert output.max() <= 2**0.5


@torch.no_grad()
def test_erasing_with_the_clean_stream_changes_nothing() -> None:
    model = tiny("gemma2")
    batch = answering(
        dataclasses.replace(tokens(batch=1), tokens=torch.full((1, 12), 5)), lengths=(1,)
    )
    recording = model.record(batch)
    mean = torch.stack([recording.resid(tap)[0, 4] for tap in range(model.n_layers + 1)])
    arrays = ResidualErasure(scopes=("position",)).measure(recording, batch, {"mean": mean})
    assert bool((arrays["position.output"][:, :, 4] < 1e-6).all())


@torch.no_grad()
def test_the_mean_is_over_the_tokens_of_the_first_prompts() -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=5)
    for begin in (0, 1):
        first = ("included", "excluded")[begin]
        mean = ResidualErasure(n_mean=3, first_position=first).prepare(model, task)["mean"]
        for tap in (0, 2, 4):
            resids = [
                model.record(model.tokenize([p])).resid(tap)[0, begin:] for p in task.prompts[:3]
            ]
            assert_close(mean[tap], torch.cat(resids).mean(0), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("scope", ["position", "prefix"])
def test_work_is_stated_and_stays_at_the_bound(scope: str) -> None:
    model = tiny("llama")
    batch = answering(tokens(), lengths=(1, 3, 1))
    analysis = ResidualErasure(scopes=(scope,))
    recording = model.record(batch)
    recording.resid(0)
    clean = recording.work.block_tokens
    analysis.measure(recording, batch, {"mean": torch.zeros(model.n_layers + 1, model.d_model)})
    forwards = (recording.work.block_tokens - clean) / clean
    assert forwards == pytest.approx(analysis.cost(model, batch).forwards)
    single = analysis.cost(model, answering(tokens()))
    assert single.forwards <= 0.35 * (model.n_layers + 1) * 12


def test_bad_input_is_one_line() -> None:
    model = interp.load_model("zoo/hops-4l")
    with pytest.raises(TaskError, match="an answer is needed for every prompt; 1 prompt"):
        ResidualErasure().run(model, Task.from_texts(["Ada mother mother"]))
    with pytest.raises(AnalysisError, match="prompt 'a' has 2 tokens; at least 3 are needed"):
        ResidualErasure().run(model, Task("short", (Prompt("a", "Ada", answer="Emil"),)))
    with pytest.raises(AnalysisError, match="scopes: unknown value 'suffix'; there is position"):
        make_analysis("residual_erasure", {"scopes": ("suffix",)})
    with pytest.raises(AnalysisError, match=r"residual_erasure\.n_mean=0; at least 1 is needed"):
        ResidualErasure(n_mean=0)


def test_positions_are_counted_from_the_prompts_end() -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=8)
    frame = ResidualErasure().run(model, task).to_frame()
    rows = frame[(frame["scope"] == "position") & (frame["effect"] == "output")].set_index(
        ["layer", "position"]
    )["mean"]
    assert rows[4, "-1"] > 0
    assert rows[4, "-2"] == 0
    assert rows[0, "-3"] > 0.5  # the entity that is asked about


def test_findings_are_computed_another_way() -> None:
    effects = torch.zeros(8, 5, 6)  # [prompt tap pos]
    effects[:, :, 5] = 1.0  # the last token, which is left out
    effects[:, 3, 0] = 1.0  # so is the first, which stands beside the finding
    for row in range(8):
        effects[row, 2, 1 + row % 4] = 0.3  # every prompt has its own token that counts
    effects[0, 3, 1] = 0.7  # of eight prompts one: less than 0.1 in the mean
    part = {
        "position.output": effects,
        "position.answer": effects,
        "n_pos": torch.full((8,), 6),
        "last": torch.full((8,), 5),
    }
    (finding,) = ResidualErasure(scopes=("position",)).combine([part]).findings()
    assert finding.estimate.value == 2 / 4
    assert finding.estimate.n == 8
    assert finding.rival.estimate.value == 3 / 4
    assert (finding.estimate.low, finding.estimate.high) == (
        2 / 4,
        3 / 4,
    )  # one prompt in resamples
