"""Stages are joined from what the analyses find alone; prompts that cannot be used are named."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import interp
from interp.analyses.attention_knockout import AttentionKnockout
from interp.analyses.entity_description import EntityDescription
from interp.analyses.hop_stages import HopStages
from interp.analyses.hop_stages.inversion import Inversion
from interp.analyses.hop_stages.result import MEASURES, STAGES
from interp.analyses.sublayer_projection import TOKENS, SublayerProjection
from interp.errors import AnalysisError, TaskError
from interp.result import faults_of
from interp.runs.registry import make_analysis
from interp.sweeps.two_hop import first_layer

pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_bridge_of_a_first_fact_held_out_is_there_and_its_answer_is_not() -> None:
    """Where the first fact was never composed, the bridge is resolved, later, and the second hop is
    not.
    """
    model, task = (
        interp.load_model("zoo/hops-4l"),
        interp.load_task("two-hop").tagged(set="first-held-out").take(96),
    )
    result = HopStages().run(model, task)
    right, wrong = (
        result.layers(group, MEASURES[6]) for group in ("right answers", "wrong answers")
    )
    assert len(right) > 10
    assert np.isfinite(wrong).all()
    trained = HopStages().run(model, interp.load_task("two-hop").tagged(set="unseen").take(96))
    assert wrong.mean() > trained.layers("right answers", MEASURES[6]).mean() + 0.3
    assert np.isfinite(trained.layers("right answers", "3 second hop resolved")).mean() > 0.95
    assert np.isfinite(result.layers("wrong answers", "3 second hop resolved")).mean() < 0.3
    frame = result.to_frame()
    stages = frame[(frame.kind == "stage") & (frame.group == "wrong answers")].set_index("name")
    assert (
        stages.loc["1 first hop resolved", "low"]
        > stages.loc["1 first hop resolved", "control_high"]
    )
    assert list(stages.index) == list(STAGES)
    *resolved, later = result.findings()
    assert faults_of(result.findings()) == []
    for group, finding in zip(("right answers", "wrong answers"), resolved, strict=True):
        own, other = (
            np.isfinite(result.layers(group, "1 first hop resolved", kind=kind)).mean()
            for kind in ("own", "control")
        )
        assert finding.estimate.value == pytest.approx(own - other)
        assert finding.estimate.low > 0.5
    assert later.estimate.value == pytest.approx(wrong.mean() - right.mean())
    assert later.control.estimate.value == pytest.approx(right.mean())
    assert later.estimate.n_groups < later.estimate.n == len(right) + len(wrong)


def test_the_stages_are_joined_from_what_the_analyses_find() -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=24)
    stages = HopStages().run(model, task)
    written, cut = SublayerProjection().run(model, task), AttentionKnockout().run(model, task)
    said_by = EntityDescription().run(model, task)

    any_target = {
        where: (said_by.arrays[f"{where}.rank"] == 0).any(2) for where in ("subject", "last")
    }

    def firsts(there: np.ndarray) -> np.ndarray:
        return first_layer(torch.from_numpy(there)).numpy()

    of = dict(zip(MEASURES, stages.arrays["own"].T, strict=True))
    np.testing.assert_equal(
        of["bridge said from the first hop"], firsts(any_target["subject"][..., 0])
    )
    np.testing.assert_equal(
        of["answer said from the last token"], firsts(any_target["last"][..., 1])
    )
    np.testing.assert_equal(
        of["hiding the first hop changes the guess"], firsts(cut.arrays["key.changed"])
    )
    ranks = written.arrays["rank"]
    np.testing.assert_equal(
        of["attention writes the bridge"], firsts(ranks[:, 0, :, TOKENS.index("bridge")] == 0)
    )
    np.testing.assert_equal(
        of["MLP writes the prediction"], firsts(ranks[:, 1, :, TOKENS.index("prediction")] == 0)
    )
    np.testing.assert_equal(
        of["answer in the lens at the last token"],
        firsts(ranks[:, 2, :, TOKENS.index("answer")] == 0),
    )


def test_answers_before_their_bridge_are_counted_against_permuted_prompts() -> None:
    answer, bridge = np.array([1.0, 1.0, 3.0, 5.0]), np.array([2.0, 0.0, 4.0, 1.0])
    inversion = Inversion(answer, bridge, None, 0)
    assert inversion.share.value == 2 / 4
    pairs = [answer[i] < bridge[j] for i in range(4) for j in range(4) if i != j]
    assert inversion.chance == pytest.approx(np.mean(pairs))
    assert inversion.above_chance.value == pytest.approx(0.5 - np.mean(pairs))
    assert np.isnan(Inversion(answer[:1], bridge[:1], None, 0).chance)


def test_the_chance_level_of_independent_layers_is_covered() -> None:
    rng, n_covered = np.random.default_rng(0), 0
    for seed in range(100):
        layers = rng.integers(0, 8, (2, 40)).astype(float)
        n_covered += not Inversion(*layers, None, seed).above_chance.excludes()
    assert n_covered >= 88
    answer = layers[0]
    assert Inversion(answer, answer + 1, None, 0).above_chance.low > 0
    assert Inversion(answer, answer - 1, None, 0).above_chance.high < 0


def test_bad_input_is_named() -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=4)
    one = task.prompts[0]

    def having(**fields: object):
        return task.of([replace(one, **fields)])

    for analysis in (EntityDescription(), HopStages(), SublayerProjection()):
        with pytest.raises(TaskError, match=f"prompt {one.id!r} has no bridge"):
            analysis.run(model, having(bridge=None))
    for analysis in (EntityDescription(), HopStages(), SublayerProjection(), AttentionKnockout()):
        with pytest.raises(
            TaskError, match=f"prompt {one.id!r}: subject 'nobody' found 0 times; once is needed"
        ):
            analysis.run(model, having(subject="nobody"))
        with pytest.raises(TaskError, match=f"prompt {one.id!r}: subject 'Ada' found 2 times"):
            analysis.run(
                model,
                having(
                    subject="Ada",
                    text=f"Ada friend Max . {one.text.split(' . ')[0]} . Ada friend boss",
                ),
            )
        with pytest.raises(TaskError, match=f"prompt {one.id!r} has no subject"):
            analysis.run(model, having(subject=None))
        with pytest.raises(TaskError, match="an answer is needed"):
            analysis.run(model, having(answer=None))
    for analysis in (EntityDescription(), HopStages(), SublayerProjection()):
        with pytest.raises(AnalysisError, match="1 prompt given"):
            analysis.run(model, task.take(1))
    with pytest.raises(AnalysisError, match="unknown value 'rich'"):
        make_analysis("hop_stages", {"variant": "rich"})
    with pytest.raises(AnalysisError, match="half_width=-2"):
        HopStages(half_width=-2)
    with pytest.raises(AnalysisError, match="prompt and placeholder are needed together"):
        HopStages(placeholder="Ada")


def test_a_model_that_knows_no_hop_is_told_so() -> None:
    model, task = interp.load_model("zoo/hops-8l@step-0000"), interp.load_task("two-hop", n=6)
    for name in ("hop_stages", "entity_description", "sublayer_projection", "attention_knockout"):
        result = make_analysis(name, {}).run(model, task)
        assert result.summary().startswith("Nothing to compare: each of 6 prompts has a single hop")
        assert result.to_frame()["n_prompts"].tolist() == [0]
        assert result.plot().layout.title.text


def test_a_single_right_answer_is_not_spoken_of() -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=4)
    for name in ("hop_stages", "entity_description", "attention_knockout"):
        result = make_analysis(name, {}).run(model, task)
        assert result.summary().startswith("Too few to compare: ")
