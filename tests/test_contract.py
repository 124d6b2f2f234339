"""What every analysis keeps, whichever there are: frozen parameters, tidy frames, titled figures,
the same numbers twice.
"""

import dataclasses
import json
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import interp
from interp.analyses.circuit_discovery import is_for_discovery
from interp.analysis import Analysis, Result
from interp.errors import TaskError
from interp.models import Model
from interp.runs.registry import find_analyses, make_analysis
from interp.shapes import Tensors
from interp.tasks import Task

ANALYSES = sorted(find_analyses())
# fp16 is slow on a CPU: less of what takes long
FEWER = {
    "activation_patching": {"nodes": ("mlp_out",)},
    "circuit_discovery": {"fractions": (0.1, 1.0)},
    "integrated_gradients": {"max_nodes": 17},
    "patching_agreement": {"nodes": ("mlp_out",), "methods": ("relevance", "average")},
    "relevance_patching": {"methods": ("relevance",), "nodes": ("z", "mlp_out")},
    "residual_erasure": {"scopes": ("prefix",)},
}
GOLDEN = Path(__file__).parent / "golden.json"


loaded, read = cache(interp.load_model), cache(interp.load_task)


def model(name: str, dtype: str = "auto") -> Model:
    return loaded("zoo/names-6l" if needs_twins(name) else "zoo/hops-4l", dtype=dtype)


def task(name: str) -> Task:
    return read("ioi" if needs_twins(name) else "two-hop", n=12)


@cache
def needs_twins(name: str) -> bool:
    """Tell whether an analysis compares prompts with corrupted twins, which two-hop prompts do not
    have.
    """
    hops, prompts = loaded("zoo/hops-4l", dtype="auto"), read("two-hop", n=1).prompts
    try:
        make_analysis(name, {}).check(hops, hops.tokenize(prompts))
    except TaskError as error:
        return "twin" in str(error)
    return False


@cache
def result_of(name: str) -> Result:
    return make_analysis(name, {}).run(model(name), task(name))


@pytest.fixture(params=ANALYSES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_parameters_are_frozen_and_have_defaults_and_a_seed(name: str) -> None:
    analysis = make_analysis(name, {})
    assert analysis.__dataclass_params__.frozen
    assert "seed" in {f.name for f in dataclasses.fields(analysis)}
    assert type(analysis).question.endswith("?")
    assert type(analysis).how.endswith(".")
    assert type(analysis).caveat.endswith(".")
    assert len(type(analysis).how) < 4 * 90
    assert (type(analysis).__doc__ or "").strip()


def test_frames_are_tidy_and_survive_parquet(name: str, tmp_path: Path) -> None:
    frame = result_of(name).to_frame()
    assert len(frame) > 0
    assert frame.columns.is_unique
    assert all(isinstance(column, str) for column in frame.columns)
    frame.to_parquet(tmp_path / "frame.parquet", index=False)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "frame.parquet"), frame)


def test_figures_are_titled_and_summaries_have_numbers(name: str) -> None:
    result = result_of(name)
    assert result.plot().layout.title.text
    assert any(character.isdigit() for character in result.summary())


@torch.no_grad()
def test_notebooks_show_it_small_and_without_scripts(name: str) -> None:
    shown = result_of(name)._repr_html_()
    assert ("<svg" in shown) == (name != "hop_stages")  # boxes are not drawn
    assert "<table" in shown
    assert "<script" not in shown
    assert len(shown) < 50_000
    assert repr(result_of(name)).count("\n") == 0


def test_findings_have_numbers_with_a_unit_and_an_ordered_interval(name: str) -> None:
    findings = result_of(name).findings()
    assert findings[0].claim == result_of(name).summary()
    for finding in findings:
        assert finding.claim
        assert finding.measure
        assert finding.estimate is not None
        assert finding.estimate.n
        # too few prompts of each level here
        assert finding.estimate.has_interval or name == "depth_score"


def test_a_second_run_gives_equal_tensors_whose_first_axis_is_the_prompt(name: str) -> None:
    analysis = make_analysis(name, {})
    shard = model(name).tokenize(max(model(name).shards(task(name)), key=len))
    prepared = analysis.prepare(model(name), task(name))
    one, two = (analysis.measure(model(name).record(shard), shard, prepared) for _ in range(2))
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        assert torch.equal(tensor, two[key])
        assert len(tensor) == len(shard.prompts)


@torch.no_grad()
def test_the_batch_size_does_not_matter(name: str) -> None:
    analysis: Analysis = make_analysis(name, {})
    prompts = max(model(name).shards(task(name)), key=len)[:4]
    prepared = analysis.prepare(model(name), task(name))

    def measured(*groups: tuple) -> pd.DataFrame:
        shards = [model(name).tokenize(group) for group in groups]
        parts = [analysis.measure(model(name).record(shard), shard, prepared) for shard in shards]
        return analysis.combine(parts).to_frame()

    together, apart = measured(prompts), measured(*[(prompt,) for prompt in prompts])
    where = [
        column for column in ("prompt", "position") if column in together
    ]  # ties may go to either
    pd.testing.assert_frame_equal(
        together.drop(columns=where), apart.drop(columns=where), rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_the_cost_that_is_stated_is_the_cost(name: str) -> None:
    analysis = make_analysis(name, {})
    shard = model(name).tokenize(max(model(name).shards(task(name)), key=len))
    recording = model(name).record(shard)
    recording.resid(0)
    clean = recording.work.block_tokens
    analysis.measure(recording, shard, analysis.prepare(model(name), task(name)))
    forwards = (recording.work.block_tokens - clean) / clean
    cost = analysis.cost(model(name), shard)
    assert forwards == pytest.approx(cost.forwards, rel=1e-6) or (
        cost.is_bound and 0 < forwards <= cost.forwards
    )


def test_the_numbers_of_the_shipped_model_stay(name: str) -> None:
    numbers = result_of(name).to_frame().select_dtypes("float").sum().round(3).to_dict()
    assert numbers == pytest.approx(json.loads(GOLDEN.read_text())[name], rel=2e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@torch.no_grad()
def test_half_precision_keeps_the_contract(name: str, dtype: str) -> None:
    low, analysis = model(name, dtype), make_analysis(name, FEWER.get(name, {}))
    group = max(low.shards(task(name)), key=len)
    prompts = tuple(
        next(p for p in group if is_for_discovery(p.id) == found) for found in (True, False)
    )
    is_pooled = name in ("depth_map", "depth_score")  # these need more than two prompts
    prepared = analysis.prepare(low, task(name) if is_pooled else task(name).of(list(prompts)))

    def measured(*groups: tuple) -> list[Tensors]:
        shards = [low.tokenize(group) for group in groups]
        return [analysis.measure(low.record(shard), shard, prepared) for shard in shards]

    (one,), (two,) = measured(prompts), measured(prompts)
    assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())
    together, apart = (
        analysis.combine(parts).to_frame() for parts in ([one], measured(prompts[:1], prompts[1:]))
    )
    assert not np.isinf(together.select_dtypes("float").to_numpy()).any()
    assert together.isna().equals(apart.isna())
    for column in together.select_dtypes("float"):
        here, there = (np.nan_to_num(frame[column].to_numpy()) for frame in (together, apart))
        assert (
            np.linalg.norm(here - there)
            <= 4 * torch.finfo(low.dtype).eps * np.linalg.norm(here) + 1e-6
        ), column
