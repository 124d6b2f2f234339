"""Parameters are what their types say, from Python, from files and from the command line, and come
back from a report.
"""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import numpy as np
import pytest
from typer.testing import CliRunner

from interp import cli
from interp.analyses.block_influence import BlockInfluence
from interp.analyses.depth_map import DepthMap
from interp.analyses.integrated_gradients import IntegratedGradients
from interp.analyses.layer_skip import LayerSkip
from interp.analyses.logit_lens import LogitLens
from interp.analyses.oracle_exit import OracleExit
from interp.analysis import Analysis
from interp.errors import AnalysisError, RunError
from interp.parameters import Formerly, coerce, hints_of, parse
from interp.runs import Study
from interp.runs.commands import command_of
from interp.runs.registry import find_analyses, make_analysis, parse_parameter

ANALYSES = find_analyses()
PARAMETERS = [(name, key) for name, analysis in ANALYSES.items() for key in hints_of(analysis)]
_OF_EACH = 4
HOSTILE = [
    "Syria: a country, x",
    "2",
    "a = b",
    "'it's' \"quoted\"",
    "two\nlines",
    "[not json",
    "true",
    " padded ",
    "é,…",
]


def values_of(hint: Any) -> list[Any]:
    """Return values that a parameter of this type can have, the awkward ones first."""
    origin, inside = get_origin(hint), get_args(hint)
    if hint is str:
        return [*HOSTILE, "", "none"]
    if origin is Annotated:
        values = values_of(inside[0])
        ranges = [each for each in inside[1:] if not isinstance(each, Formerly)]
        values += [type(value)(each.least) for value in values[-1:] for each in ranges]
        refused = [any(each.refusal(v) for each in ranges if v is not None) for v in values]
        return [value for value, is_refused in zip(values, refused, strict=True) if not is_refused]
    if origin is Literal:
        return list(inside)
    if origin is tuple:
        every = values_of(inside[0])
        return [tuple(every), (), *((value,) for value in every)]
    if NoneType in inside:
        some = [value for hint in inside if hint is not NoneType for value in values_of(hint)]
        return [None, *(value for value in some if value not in ("", "none"))]
    return {int: [0, 7, -3], float: [0.1, 1e-12, 3.0, float("inf")], bool: [True, False]}[hint]


def asked_by(*words: str, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Return the study that a command line asks for."""
    asked: list[Study] = []
    planning = sys.modules["interp.cli.run"]
    monkeypatch.setattr(planning, "plan", lambda study, *_, **__: asked.append(study))
    done = CliRunner().invoke(cli.app, ["run", "--dry-run", "--model", "m", "--task", "t", *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return asked[0]


@pytest.mark.parametrize("name", ANALYSES)
def test_the_command_of_a_report_gives_back_values(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {key: values_of(hint) for key, hint in hints_of(ANALYSES[name]).items()}
    first = len(name)  # so that all values are met by some analysis
    for i in range(first, first + _OF_EACH):
        given = {key: of_key[i % len(of_key)] for key, of_key in values.items()}
        config = {"models": ["m"], "tasks": ["t"], "analyses": {name: given}, "seed": 0}
        words = shlex.split(command_of(config, out="runs/again"))
        study = asked_by(*words[words.index("--analysis") :], monkeypatch=monkeypatch)
        for key, value in given.items():
            got = study.analyses[name][key]
            assert (key, got) == (key, value)
            assert type(got) is type(value)


@pytest.mark.parametrize(
    ("item", "value"),
    [
        ("entity_description.prompt=Syria: a country, x", "Syria: a country, x"),
        ("hop_stages.placeholder=true", "true"),
        ("depth_score.tag=2", "2"),
        ("back_patching.by=[1, 2]", "[1, 2]"),
        ("back_patching.max_new_tokens=none", None),
        ("attention_knockout.half_width=", None),
        ("depth_map.target=zoo/hops-8l", "zoo/hops-8l"),
        ("layer_skip.percentile=90", 90.0),
        ("layer_skip.scopes=all, direct", ("all", "direct")),
        ("void_skip.alphas=0.2,1", (0.2, 1.0)),
        ("void_skip.alphas=[0.2, 1]", (0.2, 1.0)),
        ("oracle_exit.stable_for=4", (4,)),
        ("parallel_window.output_windows=", ()),
        ("logit_lens.first_position=False", "excluded"),
        ("logit_lens.first_position=true", "included"),
        ("logit_lens.first_position=excluded", "excluded"),
        ("void_skip.skipped_positions=all but the first", "all but the first"),
    ],
)
def test_a_value_is_read_by_its_declared_type(
    item: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = item.partition("=")[0]
    name, _, key = target.partition(".")
    got = asked_by("--analysis", name, "--set", item, monkeypatch=monkeypatch).analyses[name][key]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ("logit_lens.top_k=5.5", "logit_lens.top_k is '5.5'; int is needed"),
        ("logit_lens.top_k=none", "logit_lens.top_k is 'none'; int is needed"),
        (
            "logit_lens.first_position=1",
            "logit_lens.first_position: unknown value '1'; there is excluded, included",
        ),
        ("logit_lens.kl_share=nan", "logit_lens.kl_share is nan; a number is needed"),
        ("oracle_exit.stable_for=2,x", "oracle_exit.stable_for is 'x'; int is needed"),
        (
            "back_patching.max_new_tokens=x",
            "back_patching.max_new_tokens is 'x'; int or none is needed",
        ),
        (
            "back_patching.position=sub",
            "back_patching.position: unknown value 'sub'; did you mean 'subject'",
        ),
    ],
)
def test_a_value_of_another_type_is_refused(
    item: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AnalysisError, match=says):
        asked_by("--analysis", item.partition(".")[0], "--set", item, monkeypatch=monkeypatch)


@pytest.mark.parametrize("item", ["logit_lens.top_k=3", "layer_skip@mlp.part=mlp"])
def test_a_parameter_of_an_analysis_that_is_not_in_the_run_is_refused(
    item: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match=r"given; the analyses of this run are layer_skip$"):
        asked_by("--analysis", "layer_skip", "--set", item, monkeypatch=monkeypatch)


def test_a_labelled_analysis_has_parameters_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "--analysis",
        "layer_skip",
        "--analysis",
        "layer_skip@of.mlp",
        "--set",
        "layer_skip@of.mlp.part=mlp",
    ]
    assert asked_by(*words, monkeypatch=monkeypatch).analyses == {
        "layer_skip": {},
        "layer_skip@of.mlp": {"part": "mlp"},
    }


def made(analysis: type[Analysis], **parameters: Any) -> Analysis:
    """Return an analysis made as in a process where the tests' type checker does not come first."""
    one = object.__new__(analysis)
    for field in fields(analysis):
        object.__setattr__(one, field.name, parameters.get(field.name, field.default))
    one.__post_init__()
    return one


def test_from_python_values_are_checked_as_from_files() -> None:
    for analysis, parameters, says in (
        (
            LogitLens,
            {"weighting": "tokens"},
            "logit_lens.weighting: unknown value 'tokens'; did you mean 'token'",
        ),
        (LogitLens, {"top_k": "5"}, "logit_lens.top_k is '5'; int is needed"),
        (
            LogitLens,
            {"first_position": 1},
            "logit_lens.first_position: unknown value '1'; there is excluded, included",
        ),
        (BlockInfluence, {"seed": True}, "block_influence.seed is True; int is needed"),
        (IntegratedGradients, {"tolerance": float("nan")}, "integrated_gradients.tolerance is nan"),
        (DepthMap, {"target": 3}, "depth_map.target is 3; str or none is needed"),
        (OracleExit, {"stable_for": (2, "3")}, "oracle_exit.stable_for is '3'; int is needed"),
    ):
        with pytest.raises(AnalysisError, match=says):
            made(analysis, **parameters)


@pytest.mark.parametrize(("name", "key"), PARAMETERS)
def test_every_analysis_checks_every_parameter(name: str, key: str) -> None:
    with pytest.raises(AnalysisError, match=rf"{name}\.{key}\b"):
        made(ANALYSES[name], **{key: object()})


@pytest.mark.parametrize("name", sorted(
    name for name, of in ANALYSES.items() if "first_position" in hints_of(of)
))  # fmt: skip
def test_a_first_position_of_an_earlier_version_is_translated(name: str) -> None:
    for former, now in ((True, "included"), (False, "excluded"), ("true", "included")):
        assert make_analysis(name, {"first_position": former}).first_position == now
    assert parse_parameter(name, "first_position", "False") == "excluded"


def test_a_value_of_an_earlier_version_is_translated() -> None:
    former = make_analysis("logit_lens", {"kl_from": "behind the first layer"})
    assert former == make_analysis("logit_lens", {})


def test_what_void_skip_called_the_first_position_is_where_it_skips() -> None:
    for former, now in ((True, "all"), (False, "all but the first")):
        assert make_analysis("void_skip", {"first_position": former}).skipped_positions == now
    with pytest.raises(AnalysisError, match="unknown value 'excluded'; there is all, all but the"):
        make_analysis("void_skip", {"first_position": "excluded"})


def test_equal_values_are_one_value() -> None:
    same = made(LayerSkip, scopes=["all"], percentile=90, n_splits=np.int64(2))
    assert same == LayerSkip(scopes=("all",), percentile=90.0, n_splits=2)
    assert asdict(same)["scopes"] == ("all",)
    assert type(same.percentile) is float
    assert type(same.n_splits) is int


def test_tables_and_unions_are_read_too() -> None:
    assert parse(Mapping[str, float], '{"a": 1}', "x") == {"a": 1.0}
    assert parse(int | str, "12", "x") == 12
    assert parse(int | str, "a,b", "x") == "a,b"
    with pytest.raises(AnalysisError, match="x is 'a'; a table is needed"):
        coerce(Mapping[str, int], "a", "x")
