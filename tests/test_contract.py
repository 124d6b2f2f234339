"""What every analysis keeps: `check_analysis`, and its numbers of the shipped models."""

import json
import re
from contextlib import nullcontext
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import pytest

import interp
from interp.analysis import Result
from interp.errors import TaskError
from interp.models import Model
from interp.runs.registry import find_analyses, make_analysis
from interp.tasks import Task
from interp.testing.contract import Trial, broken_in_fp32, broken_in_half
from tests.halves import QuickHalves

ANALYSES = sorted(find_analyses())
# less than by default, where that takes long
LESS: dict[str, dict[str, Any]] = {
    "activation_patching": {"nodes": ("resid_pre", "mlp_out")},
    "checkpoint_stitch": {
        "against": "zoo/hops-4l@untrained-1",
        "maps": ("none",),
        "every": 4,
        "draws": 2,
    },
    "circuit_discovery": {"draws": 2, "fractions": (0.01, 0.1)},
    "feature_patching": {
        "dictionaries": ("names-6l/resid_pre.3",),
        "draws": 1,
        "sizes": (1, 10),
        "steps": 3,
    },
    "integrated_gradients": {"every": 2},
    "layer_order": {"operations": ("swap", "reverse", "parallel_mean", "damped_loop")},
    "layer_removal": {"orders": ("skip loss", "ZD"), "n_random": 2, "steps": 2, "text_steps": 1},
    "layer_routers": {"n_simulations": 6, "epochs": 4, "penalties": (0.5,), "draws": 1},
    "patching_agreement": {"nodes": ("mlp_out",), "steps": 3},
    "path_search": {"n_simulations": 6},
    "quantization_order": {"orders": ("LIM", "skip loss"), "points": 2},
    "recursion": {"shared": (2,), "inits": ("average",), "ranks": (8,), "grid": 3, "draws": 2},
    "residual_erasure": {"every": 2},
    "unit_importance": {"most": 10},
    "unit_map": {"most_layers": 2},
}
# fp16 is slow on a CPU: less of what takes long
FEWER = {
    "activation_patching": {"nodes": ("mlp_out",)},
    "affine_lens": {"control": "none"},
    "checkpoint_stitch": {"control": "none", "draws": 0},
    "circuit_discovery": {"draws": 1, "fractions": (0.05, 0.1)},
    "feature_patching": {
        "methods": ("relevance",),
        "sizes": (1,),
        "steps": 2,
        "draws": 1,
        "top_k": 3,
    },
    "integrated_gradients": {"max_nodes": 17},
    "layer_routers": {"epochs": 1, "n_simulations": 3, "steps": 10},
    "patching_agreement": {"methods": ("relevance", "average")},
    "path_search": {"n_simulations": 2},
    "quantization_order": {"orders": ("LIM",), "points": 2, "control": "none"},
    "recursion": {"inits": ("average",), "ranks": (), "grid": 2, "control": "none", "draws": 0},
    "relevance_patching": {"methods": ("relevance",), "nodes": ("z", "mlp_out")},
    "residual_erasure": {"scopes": ("prefix",), "every": 2},
    "unit_map": {"most_layers": 1, "barrier": "none"},
}
# whose products take most of the time then
QUICK_IN_HALF = {
    "activation_patching",
    "circuit_discovery",
    "feature_patching",
    "patching_agreement",
    "unit_map",
    "void_skip",
}
GOLDEN = Path(__file__).parent / "golden.json"


loaded, read = cache(interp.load_model), cache(interp.load_task)


def model(name: str, dtype: str = "auto") -> Model:
    return loaded("zoo/names-6l" if needs_twins(name) else "zoo/hops-4l", dtype=dtype)


def task(name: str) -> Task:
    if name == "probe":  # groups have to repeat
        return read("one-hop", n=60)
    if name == "layer_routers":  # three thirds of groups
        return read("two-hop", n=48)
    if name == "unit_map":  # as many tokens as neurons
        return read("two-hop", n=100)
    return read("ioi" if needs_twins(name) else "two-hop", n=12)


@cache
def needs_twins(name: str) -> bool:
    """Tell whether an analysis needs corrupted twins, which two-hop prompts do not have."""
    hops, prompts = loaded("zoo/hops-4l", dtype="auto"), read("two-hop", n=1).prompts
    try:
        make_analysis(name, LESS.get(name, {})).check(hops, hops.tokenize(prompts))
    except TaskError as error:
        return "twin" in str(error)
    return False


@cache
def trial(name: str) -> Trial:
    return Trial(make_analysis(name, LESS.get(name, {})), model(name), task(name))


def result_of(name: str) -> Result:
    return trial(name).result


@pytest.fixture(params=ANALYSES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_the_contract_is_kept(name: str) -> None:
    in_half = make_analysis(name, LESS.get(name, {}) | FEWER.get(name, {}))
    broken = broken_in_fp32(trial(name))
    with QuickHalves() if name in QUICK_IN_HALF else nullcontext():
        broken += broken_in_half(in_half, model(name), task(name))
    assert broken == []


def test_notebooks_show_a_sentence_and_a_picture_without_scripts(name: str) -> None:
    shown = result_of(name)._repr_html_()
    assert "<svg" in shown
    assert escape(result_of(name).summary()) in shown
    assert "<script" not in shown
    assert len(shown) < 50_000
    assert repr(result_of(name)).count("\n") == 0


def test_the_first_finding_is_the_summary_and_has_a_number_with_a_unit(name: str) -> None:
    first = result_of(name).findings()[0]
    assert first.claim == result_of(name).summary()
    assert first.measure
    assert first.estimate is not None
    assert first.estimate.n
    # too few prompts of each level, or held out
    assert first.estimate.has_interval or name in ("depth_map", "depth_score")


def test_percentages_are_written_in_one_way(name: str) -> None:
    said = " ".join(f"{each.claim} {each.note}" for each in result_of(name).findings())
    assert not re.search(r"\d%", said)


def test_the_numbers_of_the_shipped_model_stay(name: str) -> None:
    numbers = result_of(name).to_frame().select_dtypes("float").sum().round(3).to_dict()
    assert numbers == pytest.approx(json.loads(GOLDEN.read_text())[name], rel=2e-3)
