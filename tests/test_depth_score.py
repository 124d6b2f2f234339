"""The depth score is that of whole forwards with hand-written hooks, level by level."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import interp
from interp.analyses.depth_score import DepthScore, DepthScoreResult, depth_score, layer_effects
from interp.analyses.depth_score.levels import DepthScores
from interp.errors import AnalysisError, TaskError
from interp.figures.words import PICKED
from interp.models import Model
from interp.stats.groups import Grouping
from interp.sweeps.tags import bytes_of
from interp.tasks import Prompt, Task
from interp.tasks.batch import TokenBatch
from tests.families import tiny, tokens
from tests.test_integrated_gradients import answering
from tests.test_layer_skip import change, skipping

pytestmark = pytest.mark.filterwarnings("ignore")


def tagged(lengths: tuple[int, ...], levels: tuple[str, ...] = ("2", "10", "2")):
    batch = answering(tokens(), lengths=lengths)
    prompts = tuple(
        dataclasses.replace(p, tags={"set": level})
        for p, level in zip(batch.prompts, levels, strict=True)
    )
    return dataclasses.replace(batch, prompts=prompts)


@torch.no_grad()
@pytest.mark.parametrize(
    ("splits", "lengths"),
    [("prediction", (1, 3, 1)), ("answer", (1, 3, 1)), ("within_answer", (9, 14, 9))],
)
def test_effects_equal_whole_forwards(model: Model, splits: str, lengths: tuple[int, ...]) -> None:
    batch = tagged(lengths)
    analysis = DepthScore(splits=splits, n_splits=2)
    arrays = analysis.measure(model.record(batch), batch, {})
    row, n = 1, lengths[1]
    answer = batch.answer_tokens[row : row + 1, : n - (1 if splits == "prediction" else 0)]
    ids = torch.cat([batch.tokens[row : row + 1], answer], 1)
    alone = TokenBatch(
        batch.prompts[row : row + 1],
        ids,
        torch.ones_like(ids, dtype=torch.bool),
        batch.last[row : row + 1],
    )
    at = {"prediction": [11], "answer": [12], "within_answer": analysis._splits(11, n)}[splits]
    if splits == "within_answer":
        assert len(at) == 2
        assert set(at) <= {12, 16, 20}
    clean = skipping(model, alone, 0, "layer", before=1)
    for skipped in range(model.n_layers):
        runs = [skipping(model, alone, skipped, "layer", before=t) for t in at]
        for layer in range(skipped + 1, model.n_layers):
            changes = [change(clean, run, layer)[0, t:] for run, t in zip(runs, at, strict=True)]
            assert_close(
                arrays["layer.max"][row, skipped, layer],
                torch.cat(changes).max(),
                rtol=1e-5,
                atol=1e-5,
            )
            mean = torch.stack([c.mean() for c in changes]).mean()
            assert_close(arrays["layer.mean"][row, skipped, layer], mean, rtol=1e-5, atol=1e-5)
        probs = [model.unembed(resids[-1]).softmax(-1)[0] for resids in (clean, *runs)]
        outputs = [(probs[0] - p).norm(dim=-1)[t:] for p, t in zip(probs[1:], at, strict=True)]
        assert_close(
            arrays["output.max"][row, skipped], torch.cat(outputs).max(), rtol=0, atol=1e-5
        )
        assert_close(
            arrays["output.mean"][row, skipped],
            torch.stack([o.mean() for o in outputs]).mean(),
            rtol=0,
            atol=1e-5,
        )


@torch.no_grad()
@pytest.mark.parametrize("splits", ["prediction", "answer", "within_answer"])
def test_what_must_hold(splits: str) -> None:
    model, batch = tiny("llama"), tagged((9, 14, 9))
    analysis = DepthScore(splits=splits)
    recording = model.record(batch)
    recording.resid(0)
    clean = recording.work.block_tokens
    arrays = analysis.measure(recording, batch, {})
    assert bool((arrays["layer.max"].tril() == 0).all())
    assert arrays["output.max"].max() <= 2**0.5
    assert bool((arrays["layer.mean"] <= arrays["layer.max"] + 1e-6).all())
    forwards = (recording.work.block_tokens - clean) / clean
    assert forwards == pytest.approx(analysis.cost(model, batch).forwards)


def test_scores_by_hand() -> None:
    assert depth_score(np.ones(8)) == 3.5  # uniform: (L - 1) / 2
    assert depth_score(np.array([0.0, 1.0, 3.0])) == 7 / 4
    assert np.isnan(depth_score(np.zeros(3)))
    changes = np.array([[0.0, 1.0, 3.0], [0.0, 0.0, 5.0], [0.0, 0.0, 0.0]])
    assert layer_effects(changes).tolist() == [2.0, 5.0, 0.0]


def test_levels_are_kept_apart_and_scores_named_in_both_conventions() -> None:
    effects = torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]])
    changes = torch.zeros(3, 3, 3)
    changes[:, 0, 2] = torch.tensor([2.0, 4.0, 6.0])
    both = {
        f"{key}.{s}": value
        for key, value in (("layer", changes), ("output", effects))
        for s in ("max", "mean")
    }
    parts = [
        both | {"level": torch.tensor([[50, 0], [49, 48], [50, 0]], dtype=torch.uint8)}
    ]  # "2", "10", "2"
    result = DepthScore(tag="hops").combine(parts)
    assert result.levels == ["2", "10"]
    assert result.effects("2", "output", "mean").tolist() == [0.5, 0.5, 0]
    assert result.effects("2", "output", "max").tolist() == [
        1,
        0,
        0,
    ]  # over one prompt: level "10" has no more
    assert result.effects("2", "layer", "mean").tolist() == [2, 0, 0]
    frame = result.to_frame().set_index(["level", "effect", "statistic", "measure"])["value"]
    assert frame["2", "output", "mean", "score, layers from 0"].item() == 0.5
    assert frame["2", "output", "mean", "score, layers from 1"].item() == 1.5
    assert frame["10", "output", "mean", "score, layers from 1"].item() == 3.0
    assert result.summary() == (
        "By the effect on the output, '10' scores 1.50 layers deeper than '2'"
        " (too few prompts of equal lengths)."
    )


def result_of(effects: torch.Tensor, levels: list[str], lengths: list[int]) -> DepthScoreResult:
    """Return a result with these effects on the output [prompt skipped]; all on layers are 1."""
    n, layers = effects.shape
    both = {"layer": torch.ones(n, layers, layers), "output": effects}
    part = {f"{key}.{of}": value for key, value in both.items() for of in ("max", "mean")}
    part |= {"level": bytes_of(levels), "n_pos": torch.tensor(lengths)}
    return DepthScore(tag="hops").combine([part])


def test_the_distance_of_levels_has_an_interval() -> None:
    shallow, deep = (
        torch.tensor([[3.0, 1.0], [1.0, 1.0], [2.0, 1.0]]).repeat(2, 1),
        torch.tensor([[0.0, 1.0]]).repeat(6, 1),
    )
    result = result_of(torch.cat([shallow, deep]), ["2"] * 6 + ["3"] * 6, [9] * 12)
    finding, _ = result.findings()
    assert finding.estimate.value == pytest.approx(1 - 1 / 3)
    assert 0.5 < finding.estimate.low < 2 / 3 < finding.estimate.high < 0.85
    assert (finding.kind, finding.control.name) == ("compares", "'2'")
    assert finding.control.estimate.value == pytest.approx(1 / 3)


def test_levels_are_compared_at_equal_lengths() -> None:
    """By hand: length decides the score, and the deeper level is only longer."""
    lengths = [8] * 6 + [9] * 18 + [8] * 18 + [9] * 6 + [30] * 5
    scores = {8: [3.0, 1.0], 9: [1.0, 3.0], 30: [0.0, 1.0]}
    effects = torch.tensor([scores[length] for length in lengths])
    result = result_of(effects, ["2"] * 24 + ["1"] * 29, lengths)
    finding, _ = result.findings()
    plain = [float(depth_score(result.effects(level, "output", "mean"))) for level in "21"]
    assert plain[0] - plain[1] > 0.1
    assert finding.estimate.value == pytest.approx(0)
    assert finding.estimate.n == 48
    assert "'2' scores no deeper than '1'" in finding.claim
    longer = [length + 100 for length in lengths[:24]] + lengths[24:]
    finding, _ = result_of(effects, ["2"] * 24 + ["1"] * 29, longer).findings()
    assert "too few prompts of equal lengths" in finding.claim
    assert finding.kind == "describes"


def test_matched_scores_are_weighted_means() -> None:
    rng = np.random.default_rng(3)
    above, below = rng.exponential(size=(2, 40))
    lengths, is_first = rng.integers(0, 3, 40).astype(float), rng.integers(0, 2, 40) > 0
    scored = DepthScores(above, below, lengths, Grouping.of(40, None), seed=0)
    sums = np.zeros((2, 2))
    for length in range(3):
        rows = [side & (lengths == length) for side in (is_first, ~is_first)]
        shared = 1 / (1 / rows[0].sum() + 1 / rows[1].sum())
        for sum_, chosen in zip(sums, rows, strict=True):
            sum_ += shared * above[chosen].mean(), shared * below[chosen].mean()
    found = scored.difference([(is_first, ~is_first)])
    assert found.value == pytest.approx(sums[0, 0] / sums[0, 1] - sums[1, 0] / sums[1, 1])
    assert found.low < found.value < found.high


def test_levels_without_an_order_are_picked_on_halves() -> None:
    rng = np.random.default_rng(1)
    level_of = np.array(["a", "b", "c", "d"] * 40)
    found = []
    for _ in range(40):
        noise = torch.tensor(rng.exponential(size=(160, 3)))
        finding, _ = result_of(noise, level_of.tolist(), [9] * 160).findings()
        assert finding.kind == "compares"
        found.append(finding.estimate.value)
    assert abs(np.mean(found)) < 0.05  # extremes of the same prompts are 0.17 apart
    deep = torch.ones(160, 3)
    deep[level_of == "c", 2] += 3
    finding, _ = result_of(deep, level_of.tolist(), [9] * 160).findings()
    assert "'c' scores 0.50" in finding.claim
    assert PICKED in finding.note


def test_parts_of_interp_0_1_have_no_lengths() -> None:
    effects = {f"{key}.{of}": torch.ones(12, 2) for key in ("output",) for of in ("max", "mean")}
    effects |= {f"layer.{of}": torch.ones(12, 2, 2) for of in ("max", "mean")}
    part = effects | {"level": bytes_of(["2"] * 6 + ["3"] * 6)}
    finding, _ = DepthScore(tag="hops").combine([part]).findings()
    assert finding.estimate.value == 0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_level_is_deeper_in_untrained_models(seed: int) -> None:
    prompts = [
        dataclasses.replace(prompt, id=f"{hops} {prompt.id}", tags={"hops": hops})
        for hops, name in (("1", "one-hop"), ("2", "two-hop"))
        for prompt in interp.load_task(name, n=16, seed=seed).prompts
    ]
    model = interp.load_model(f"zoo/hops-4l@untrained-{seed}")
    finding, _ = DepthScore(tag="hops").run(model, Task("hops", tuple(prompts))).findings()
    assert not finding.estimate.excludes()


def test_bad_input_is_one_line() -> None:
    model = interp.load_model("zoo/hops-4l")
    prompts = tuple(Prompt(i, "Ada mother mother", answer="Emil", tags={"hops": "2"}) for i in "ab")
    with pytest.raises(
        AnalysisError, match="tag 'hops' has one level, '2'; at least 2 are needed to compare"
    ):
        DepthScore(tag="hops").run(model, Task("t", prompts))
    with pytest.raises(AnalysisError, match="prompt 'a': unknown tag 'hop'; did you mean 'hops'"):
        DepthScore(tag="hop").run(model, Task("t", prompts))
    with pytest.raises(
        AnalysisError, match="prompt 'a' has an answer of 1 tokens; splits='within_answer' needs 5"
    ):
        DepthScore(tag="hops", splits="within_answer").run(model, Task("t", prompts))
    with pytest.raises(TaskError, match="an answer is needed for every prompt; 1 prompt"):
        DepthScore(tag="hops").run(
            model, Task("t", (Prompt("a", "Ada mother", tags={"hops": "1"}),))
        )
    short = Task("t", (Prompt("a", "Ada", answer="Emil", tags={"hops": "1"}),))
    with pytest.raises(AnalysisError, match="prompt 'a' has 2 tokens; at least 3 are needed"):
        DepthScore(tag="hops").run(model, short)
    with pytest.raises(AnalysisError, match=r"depth_score\.n_splits=0; at least 1 is needed"):
        DepthScore(n_splits=0)
