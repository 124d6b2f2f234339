"""A second model is named once for all analyses of two, and reads the same tokens."""

import pytest

import interp
from interp.cli.study import StudyFlags, parse_on, study_of
from interp.errors import InterpError
from interp.runs import Study
from interp.runs.commands import command_of

HOPS = "zoo/hops-4l"


def test_against_is_the_other_model_of_every_analysis_of_two() -> None:
    flags = StudyFlags((HOPS,), ("two-hop",), against="zoo/hops-8l")
    study = study_of(None, flags, analyses=["depth_map", "unit_map", "layer_skip"], settings=[])
    *of_two, of_one = (planned.analysis for planned in study.planned(HOPS, "two-hop"))
    assert [getattr(each, "target", "") for each in of_two] == ["zoo/hops-8l"] * 2
    assert not hasattr(of_one, "target")
    own = Study(
        (HOPS,), ("two-hop",), {"depth_map": {"target": HOPS}}, against="zoo/hops-8l"
    ).planned(HOPS, "two-hop")
    assert getattr(own[0].analysis, "target", "") == HOPS  # what is said of one analysis wins
    assert "--against zoo/hops-8l" in command_of(vars(study), out="again")


def test_against_what_is_no_model_or_with_nothing_to_compare_is_one_line() -> None:
    asked = ((HOPS,), ("two-hop",))
    with pytest.raises(InterpError, match="unknown model 'zoo/hops-9l'"):
        Study(*asked, {"depth_map": {}}, against="zoo/hops-9l").check()
    with pytest.raises(
        InterpError, match=r"none compares two models \(.*depth_map and unit_map do\)"
    ):
        Study(*asked, {"layer_skip": {}}, against="zoo/hops-8l").check()


def test_tasks_given_in_several_flags_add_up() -> None:
    assert parse_on(["x=t1", "y=t1", "x=t2,t1"]) == {"x": ("t1", "t2"), "y": ("t1",)}


def test_work_of_a_second_model_counts_as_that_of_the_recording() -> None:
    model, other = (interp.load_model(name) for name in (HOPS, "zoo/hops-8l"))
    batch = model.tokenize(["Ada mother boss"])
    recording = model.record(batch)
    other.record(batch, work=recording.work).resid(8)
    assert recording.work.block_tokens == model.work.block_tokens == 8 * batch.tokens.numel()
