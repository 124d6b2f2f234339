"""Depth maps of models equal least squares on hooked residuals; runs, controls and refusals."""

import itertools
import json
import shutil
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

import interp
from interp.analyses.depth_map import DepthMap, tap_maps
from interp.analyses.depth_map.split import roles_of
from interp.analyses.depth_map.tap_maps import TapMaps
from interp.analyses.depth_map.taps import n_taps, pooled
from interp.analyses.unit_map import UnitMap
from interp.analysis import Analysis
from interp.errors import AnalysisError
from interp.files.paths import shipped_models
from interp.models import Model
from interp.models.untrained import N_TWINS, twins_of, untrained
from interp.replay import first
from interp.runs import Study, execute, open_run
from interp.runs.registry import make_analysis
from interp.tasks import Prompt, Task
from tests.families import tiny, tokens
from tests.test_linear_maps import lstsq, predict

pytestmark = pytest.mark.filterwarnings("ignore")


def residuals(model: Model, batch) -> list[Tensor]:
    """Return every residual [batch pos d_model] by hand-written hooks on the stock model."""
    blocks = [block.module for block in model.blocks]
    seen: list[Tensor] = []
    see = lambda _m, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"])  # noqa: E731
    handles = [block.register_forward_pre_hook(see, with_kwargs=True) for block in blocks]
    handles.append(blocks[-1].register_forward_hook(lambda _m, _a, out: seen.append(first(out))))
    try:
        model.logits(batch)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def batches():
    """Return 160 fitted, 80 validation and 60 held-out tokens."""
    parts = {"fit": (8, 0), "validation": (4, 1), "test": (3, 2)}
    found = {}
    for role, (n, seed) in parts.items():
        batch = tokens(batch=n, n_pos=21, seed=seed)
        found[role] = [replace(batch, prompts=tuple(Prompt(f"{role} {i}", "x") for i in range(n)))]
    return found


@cache
def narrow() -> Model:
    """Return a Llama of two layers, half as wide as the others."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=97,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    return Model("narrow", AutoModelForCausalLM.from_config(config).float())


@torch.no_grad()
def test_a_model_with_itself_is_predicted(model: Model) -> None:
    prepared = TapMaps(model, model).fit_and_test(batches())
    missed = sum(value[0] for key, value in prepared.items() if key != "ridge") / 60
    diagonal = torch.arange(1, model.n_layers + 1)  # embeddings of unseen tokens cannot be known
    assert missed[diagonal, diagonal].max() <= 1e-4
    assert missed[-1].min() > 0.5


@torch.no_grad()
@pytest.mark.parametrize("is_relative", [False, True])
def test_maps_between_models_equal_least_squares(family: str, is_relative: bool) -> None:
    source, target, parts = narrow(), tiny(family), batches()
    prepared = TapMaps(source, target, is_relative=is_relative).fit_and_test(parts)

    def flat(model: Model, *roles: str) -> Tensor:
        sites = [
            torch.stack(residuals(model, parts[role][0]))[:, :, 1:].flatten(1, 2) for role in roles
        ]
        return torch.cat(sites, 1).double()

    x, y = flat(source, "fit", "validation"), flat(target, "fit", "validation")
    held_x, held_y = flat(source, "test"), flat(target, "test")
    for s, t in itertools.product(range(3), range(5)):
        weights = y[t].norm(dim=-1) ** -2 if is_relative else torch.ones(len(y[t])).double()
        beta = lstsq(x[s], y[t], weights, float(prepared["ridge"][s, t]))
        missed = held_y[t] - predict(beta, (weights @ x[s]) / weights.sum(), held_x[s])
        ratio = (missed.norm(dim=-1) / held_y[t].norm(dim=-1)).reshape(3, 20).sum(1)
        squared = missed.square().sum(-1).reshape(3, 20).sum(1)
        ours = torch.stack(
            [prepared[f"prompt test {i}"][:, s, t] for i in range(3)], dim=1
        ).double()
        assert_close(ours, torch.stack([ratio, squared]), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "kind", [{}, {"is_relative": True}, {"is_orthogonal": True}, {"what": "contribution"}]
)
def test_one_target_tap_at_a_time_gives_the_same(
    kind: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = narrow(), tiny("gpt2")
    whole = TapMaps(source, target, **kind).fit_and_test(batches())
    monkeypatch.setattr(tap_maps, "_AT_ONCE", 1)
    maps = TapMaps(source, target, **kind)
    assert len(maps.groups()) == n_taps(target, maps.what)
    for key, value in maps.fit_and_test(batches()).items():
        assert_close(value, whole[key])


@torch.no_grad()
def test_what_weighs_tokens_by_their_norm_minimises_the_square_of_what_is_judged() -> None:
    """Fitted and tested on the same tokens, and hardly shrunk, no other weighting has a lower mean
    squared ratio.
    """
    source, target = narrow(), tiny("gemma2")
    batch = tokens(batch=8, n_pos=21)
    parts = {role: [batch] for role in ("fit", "validation", "test")}
    x, y = (
        torch.stack(residuals(model, batch))[:, :, 1:].flatten(1, 2).double()
        for model in (source, target)
    )
    squared = {}
    for is_relative in (False, True):
        maps = TapMaps(source, target, is_relative=is_relative)
        fit, held = (
            maps.moments(parts[role], slice(0, 5), is_first=True) for role in ("fit", "validation")
        )
        solved, _ = maps.solve(fit, held, maps.shared_grams(fit, held))
        ratio = [(y[t] - solved[t][1](x[1])).norm(dim=-1) / y[t].norm(dim=-1) for t in range(5)]
        squared[is_relative] = torch.stack(ratio).square().mean(1)
    assert bool((squared[True] <= squared[False] + 1e-9).all())


# The analysis


def test_prompts_are_dealt_out_once_and_for_all() -> None:
    prompts = [Prompt(str(i), "x") for i in range(80)]
    roles = roles_of(prompts, seed=3)
    counts = pd.Series(roles).value_counts()
    assert counts.to_dict() == {"fit": 50, "test": 20, "validation": 10}
    assert roles == roles_of(prompts, seed=3) != roles_of(prompts, seed=4)
    assert set(roles_of(prompts[:4], seed=0).values()) == {"fit", "validation", "test"}


@pytest.fixture(scope="module")
def zoo() -> Model:
    return interp.load_model("zoo/hops-4l")


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write a shipped model with random weights to a folder."""
    folder = tmp_path_factory.mktemp("models") / "twin"
    shutil.copytree(shipped_models()["zoo/hops-4l"], folder)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def retokenized(twin: str) -> str:
    """Write a model whose tokenizer numbers two words the other way round."""
    folder = Path(twin).with_name("retokenized")
    shutil.copytree(twin, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["mother"], vocab["boss"] = vocab["boss"], vocab["mother"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return str(folder)


@pytest.mark.parametrize("method", ["linear", "orthogonal", "cka", "rsa"])
def test_a_run_with_a_store_finds_what_a_call_finds(
    method: str, twin: str, zoo: Model, tmp_path: Path
) -> None:
    # pooled taps of twins are quick; maps to them take a third of a minute
    asked: dict[str, Any] = {"target": twin, "method": method}
    asked |= {} if method in ("cka", "rsa") else {"control": "none"}
    study = Study(("zoo/hops-4l",), ("one-hop",), {"depth_map": asked}, n=48)
    done = execute(study, tmp_path / "run", store=tmp_path / "store")
    (cell,) = done["cells"].values()
    assert cell["status"] == "ok", cell
    found = open_run(tmp_path / "run")["zoo/hops-4l", "one-hop", "depth_map"]
    direct = DepthMap(**asked).run(zoo, interp.load_task("one-hop", n=48))
    pd.testing.assert_frame_equal(found.to_frame(), direct.to_frame(), rtol=1e-4, atol=1e-5)
    assert found.summary() == cell["summary"]
    frame = found.to_frame()
    pairs = frame[frame["measure"] == found.measure]
    assert len(pairs) == 25
    assert int(pairs["is_best"].sum()) == 4
    assert (pairs["low"] <= pairs["high"]).all()
    assert found.plot().layout.xaxis.title.text


def test_another_tokenizer_is_refused_for_tokens_and_allowed_for_prompts(
    retokenized: str, zoo: Model
) -> None:
    task = interp.load_task("one-hop", n=40)
    for method in ("linear", "orthogonal"):
        with pytest.raises(AnalysisError, match=r"have different tokenizers \(prompt '.*'\)"):
            DepthMap(target=retokenized, method=method).run(zoo, task)
    assert DepthMap(target=retokenized, method="cka").run(zoo, task).n_prompts == 40


@pytest.mark.parametrize("analysis", [DepthMap(), DepthMap(method="cka"), UnitMap()])
def test_ids_that_are_other_tokens_in_the_second_model_are_refused(
    analysis: Analysis, retokenized: str, twin: str, zoo: Model
) -> None:
    batch = zoo.tokenize(Task.from_tokens([[zoo.tokenizer.get_vocab()["mother"]] * 3]).prompts)
    with pytest.raises(AnalysisError, match=r"have different tokenizers \(prompt '0'\)"):
        replace(analysis, target=retokenized).check(zoo, batch)
    replace(analysis, target=twin).check(zoo, batch)


def test_bad_input_is_one_clear_line(zoo: Model) -> None:
    for parameters in ({"method": "lasso"}, {"what": "heads"}, {"weighting": "loud"}):
        with pytest.raises(AnalysisError, match="unknown value"):
            make_analysis("depth_map", parameters)
    task = interp.load_task("one-hop", n=8)
    with pytest.raises(
        AnalysisError, match="to fit maps from the 128 features of zoo/hops-4l; at least 129 are"
    ):
        DepthMap().run(zoo, task)
    with pytest.raises(AnalysisError, match="3 prompts given; at least 4"):
        DepthMap().run(zoo, task.take(3))
    with pytest.raises(AnalysisError, match="3 prompts given; method='rsa' needs at least 8"):
        DepthMap(method="rsa").run(zoo, task.take(3))
    with pytest.raises(AnalysisError, match="has 1 token"):
        DepthMap().run(zoo, Task.from_tokens([[5]]))


def test_a_rotation_into_a_narrower_model_is_refused(
    zoo: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DepthMap, "target_of", lambda *_: narrow())
    with pytest.raises(AnalysisError, match="from 128 features to 16"):
        DepthMap(method="orthogonal").check_all(zoo, [zoo.tokenize(["Ada mother"])])


def test_the_memory_is_stated(zoo: Model) -> None:
    shard = zoo.tokenize(["Ada mother"])
    one_target_at_a_time = 5 * (128**2 + 128 * 128)
    assert DepthMap().cost(zoo, shard).held >= 2 * one_target_at_a_time


# Untrained twins


def test_an_untrained_twin_has_the_shape_and_other_weights(zoo: Model) -> None:
    state = torch.get_rng_state()
    one, again, other = (untrained(zoo, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert one is not None
    assert again is not None
    assert other is not None
    assert (one.n_layers, one.d_model, one.d_vocab) == (zoo.n_layers, zoo.d_model, zoo.d_vocab)
    assert (one.dtype, one.tokenizer) == (zoo.dtype, zoo.tokenizer)
    assert one.fingerprint == again.fingerprint
    assert len({one.fingerprint, other.fingerprint, zoo.fingerprint}) == 3


def test_no_twin_is_made_where_the_configuration_makes_another_model() -> None:
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(deepcopy(narrow().module.config)).float()
    module.model.layers = module.model.layers[:1]  # a layer was cut out
    assert untrained(Model("cut", module), seed=0) is None


@pytest.mark.parametrize("method", [pytest.param("linear", marks=pytest.mark.slow), "cka"])
def test_only_a_trained_target_is_followed_beyond_untrained_models(method: str, zoo: Model) -> None:
    task = interp.load_task("two-hop", n=64)
    found = {
        target: DepthMap(target=target, method=method).run(zoo, task).findings()[0]
        for target in ("zoo/hops-8l", "zoo/hops-8l@step-0000")
    }
    trained, beginning = (finding.estimate for finding in found.values())
    assert trained is not None
    assert beginning is not None
    assert trained.low > 0
    assert beginning.low <= 0 <= beginning.high
    for finding in found.values():
        assert finding.control is not None
        assert abs(finding.control.estimate.value) < 0.01


@pytest.mark.parametrize("method", ["linear", "cka"])
def test_twins_of_a_model_with_itself_are_mapped_to_themselves(method: str) -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("one-hop", n=40)
    result = DepthMap(method=method).run(model, task)
    assert len(result.twins) == N_TWINS
    for ours, twin in zip(result.twins, twins_of(model, seed=0), strict=True):
        alone = DepthMap(method=method, control="none").run(twin, task)
        np.testing.assert_allclose(ours.whole, alone.errors, atol=1e-5)
        assert alone.twins == ()
    beyond = result.statistics.loc["diagonal"]
    assert beyond["beyond"] == pytest.approx(beyond["value"] - beyond["untrained"])


@torch.no_grad()
def test_parts_of_runs_without_a_control_still_open(zoo: Model) -> None:
    task = interp.load_task("one-hop", n=40)
    for method in ("linear", "cka"):
        analysis = DepthMap(method=method)
        batches = [zoo.tokenize(shard) for shard in zoo.shards(task)]
        prepared = analysis.prepare(zoo, task)
        parts = [analysis.measure(zoo.record(batch), batch, prepared) for batch in batches]
        new = analysis.combine(parts)
        old = analysis.combine(
            [{k: v for k, v in part.items() if "control" not in k} for part in parts]
        )
        np.testing.assert_array_equal(old.errors, new.errors)
        assert old.findings()[0].control is None
        assert old.findings()[0].claim.startswith("Without a control, sources that follow")
        assert new.findings()[1].rival is not None
        assert "untrained" in new.to_frame().columns


def test_passes_of_twins_are_counted(zoo: Model) -> None:
    shard = zoo.tokenize(["Ada mother"])
    cost = lambda **parameters: DepthMap(**parameters).cost(zoo, shard).forwards  # noqa: E731
    assert cost(control="none") == 0
    assert cost() == 3  # each twin, once
    assert cost(target="zoo/hops-8l", control="none") == 2  # eight layers for four
    assert cost(target="zoo/hops-8l") == 2 + 3 * (1 + 2)  # for each twin the source again
    assert cost(target="zoo/hops-8l", method="cka") == 2 + 3 * 2


def test_pooling_leaves_out_padding_and_position_0_if_asked() -> None:
    model = tiny("llama")
    short, long = tokens(batch=1, n_pos=7), tokens(batch=1, n_pos=10, seed=1)
    ids = torch.cat([torch.nn.functional.pad(short.tokens, (0, 3)), long.tokens])
    mask = torch.arange(10) < torch.tensor([[7], [10]])
    prompts, last = short.prompts + long.prompts, torch.tensor([6, 9])
    both = replace(short, prompts=prompts, tokens=ids, mask=mask, last=last, answer=None)
    with torch.no_grad():
        for begin in (0, 1):
            together = pooled(model.record(both), both, "residual", begin=begin)
            for row, batch in zip(together, (short, long), strict=True):
                alone = torch.stack(residuals(model, batch))[:, 0, begin:].mean(1)
                assert_close(row, alone, rtol=1e-5, atol=1e-5)
