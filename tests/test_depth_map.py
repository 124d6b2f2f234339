"""Maps from streamed moments equal least squares on the whole; the diagonal's statistics equal
brute force.
"""

import itertools
import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

import interp
from interp.analyses.depth_map import DepthMap, tap_maps
from interp.analyses.depth_map.layer_alignment import (
    alignment_statistics,
    monotone_alignment,
    permuted,
    share_at_least,
)
from interp.analyses.depth_map.linear_maps import (
    RIDGES,
    Grams,
    Moments,
    choose_ridge,
    orthogonal_map,
    ridge_map,
)
from interp.analyses.depth_map.similarity import example_similarity
from interp.analyses.depth_map.split import roles_of
from interp.analyses.depth_map.tap_maps import TapMaps
from interp.analyses.depth_map.taps import n_taps, pooled
from interp.errors import AnalysisError
from interp.files.paths import shipped_models
from interp.models import Model
from interp.replay import first
from interp.runs import Study, execute, open_run
from interp.runs.registry import make_analysis
from interp.tasks import Prompt, Task
from tests.families import tiny, tokens

pytestmark = pytest.mark.filterwarnings("ignore")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def streamed(x: Tensor, y: Tensor, weights: Tensor | None = None) -> Moments:
    """Sum one source and one target over pieces of seven tokens."""
    weights = torch.ones(len(x)) if weights is None else weights
    moments = Moments.zeros((1, 1, 1), widths=(x.shape[1], y.shape[1]), device=torch.device("cpu"))
    for piece in torch.arange(len(x)).split(7):
        moments.add(x[None, piece], y[None, piece], weights[None, piece].double())
    return moments


def grams_of(fit: Moments, held: Moments) -> Grams:
    return Grams.of(fit.xx[0, 0], held.xx[0, 0])


def lstsq(x: Tensor, y: Tensor, weights: Tensor, ridge: float = 0.0) -> Tensor:
    """Return the predictor [1+d1 d2] by least squares over stacked rows: tokens, and one for every
    ridged direction.
    """
    root, mean = weights.sqrt()[:, None], (weights @ x) / weights.sum()
    rows = torch.cat([torch.ones(len(x), 1, dtype=x.dtype), x - mean], 1) * root
    size = ((x - mean).square() * weights[:, None]).sum() / x.shape[1]
    shrink = (ridge * size).sqrt() * torch.eye(x.shape[1] + 1, dtype=x.dtype)[1:]
    solved = np.linalg.lstsq(
        torch.cat([rows, shrink]).numpy(),
        torch.cat([y * root, 0 * noise(x.shape[1], y.shape[1])]).numpy(),
    )
    return torch.from_numpy(solved[0])


def predict(beta: Tensor, mean: Tensor, x: Tensor) -> Tensor:
    return beta[0] + (x - mean) @ beta[1:]


@pytest.mark.parametrize("ridge", [1e-10, 1e-3, 1.0])
@pytest.mark.parametrize("weighting", ["equal", "drawn"])
def test_a_ridge_map_equals_least_squares(ridge: float, weighting: str) -> None:
    x = noise(90, 8) @ noise(8, 8, seed=1) + 3
    y = x @ noise(8, 5, seed=2) + noise(90, 5, seed=3) - 7
    weights = torch.ones(90).double() if weighting == "equal" else noise(90, seed=4).exp()
    moments = streamed(x, y, weights)
    ours = ridge_map(
        grams_of(moments, moments).fit, moments.xx[0, 0], moments.xy[0, 0], ridge=ridge
    )
    mean = (weights @ x) / weights.sum()
    assert_close(ours(x), predict(lstsq(x, y, weights, ridge), mean, x), rtol=1e-9, atol=1e-7)


def test_the_ridge_is_the_one_with_the_least_validation_error() -> None:
    x, held_x = noise(30, 20), noise(40, 20, seed=1)
    truth = noise(20, 4, seed=2)
    y, held_y = x @ truth + 4 * noise(30, 4, seed=3), held_x @ truth + 4 * noise(40, 4, seed=4)
    fit, held = streamed(x, y), streamed(held_x, held_y)
    chosen = choose_ridge(grams_of(fit, held), fit.xy[0, 0], held.xy[0, 0], RIDGES)
    ones = torch.ones(30).double()
    errors = [
        (held_y - predict(lstsq(x, y, ones, ridge), x.mean(0), held_x)).square().sum()
        for ridge in RIDGES
    ]
    assert chosen == RIDGES[int(torch.stack(errors).argmin())]
    assert RIDGES[0] < chosen


def test_an_orthogonal_map_finds_a_rotation_and_its_scale() -> None:
    rotation = torch.linalg.qr(noise(9, 9))[0][:6]
    x = noise(50, 6, seed=1) * torch.arange(1, 7)
    moments = streamed(x, 2.5 * x @ rotation + 1)
    ours = orthogonal_map(grams_of(moments, moments).fit, moments.xx[0, 0], moments.xy[0, 0])
    assert_close(ours.weight, 2.5 * rotation)
    noisy = 2.5 * x @ rotation + noise(50, 9, seed=3)
    moments = streamed(x, noisy)
    ours = orthogonal_map(grams_of(moments, moments).fit, moments.xx[0, 0], moments.xy[0, 0])
    best = (noisy - ours(x)).square().sum()
    for seed in range(5):  # no nearby rotation is better
        turn = torch.linalg.qr(torch.eye(9) + 0.05 * noise(9, 9, seed=seed))[0]
        assert (noisy - ours.y_mean - (x - x.mean(0)) @ ours.weight @ turn).square().sum() > best


# Similarities


def naive_cka(x: Tensor, y: Tensor) -> float:
    def hsic(k: Tensor, m: Tensor) -> float:
        n, k, m = len(k), k - k.diag().diag(), m - m.diag().diag()
        ones = torch.ones(n, dtype=k.dtype)
        terms = (
            (k @ m).trace()
            + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (ones @ k @ m @ ones)
        )
        return float(terms / (n * (n - 3)))

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / (hsic(k, k) * hsic(m, m)) ** 0.5


def naive_rsa(x: Tensor, y: Tensor) -> float:
    upper = torch.triu_indices(len(x), len(x), 1).unbind()
    cosines = [
        torch.nn.functional.cosine_similarity(v[:, None], v[None], dim=-1)[upper] for v in (x, y)
    ]
    return float(torch.corrcoef(torch.stack(cosines))[0, 1])


@pytest.mark.parametrize("kind", ["cka", "rsa"])
def test_similarities_equal_the_textbook_on_every_subset(kind: str) -> None:
    x, y = noise(2, 20, 6) + 2, noise(3, 20, 4, seed=1)
    y[0] = x[0, :, :4] ** 2
    masks = (noise(4, 20, seed=2) > -0.5).double()
    ours = example_similarity(x, y, masks, kind=kind)
    naive = {"cka": naive_cka, "rsa": naive_rsa}[kind]
    for mask, grid in zip(masks.bool(), ours, strict=True):
        for s, t in itertools.product(range(2), range(3)):
            assert float(grid[s, t]) == pytest.approx(naive(x[s][mask], y[t][mask]), abs=1e-9)


def test_cka_does_not_see_rotations_shifts_and_scales_and_is_not_fooled_by_width() -> None:
    x, all_of_them = noise(1, 30, 6), torch.ones(1, 30)
    turned = 3 * x @ torch.linalg.qr(noise(6, 6, seed=1))[0] + 5
    assert_close(
        example_similarity(x, turned, all_of_them, kind="cka"), torch.ones(1, 1, 1).double()
    )
    rotated = x @ torch.linalg.qr(noise(6, 6, seed=1))[0]
    assert_close(
        example_similarity(x, rotated, all_of_them, kind="rsa"), torch.ones(1, 1, 1).double()
    )
    wide, unrelated = noise(40, 30, 300, seed=2), noise(40, 30, 300, seed=3)
    assert (
        example_similarity(wide, unrelated, all_of_them, kind="cka").mean().abs() < 0.01
    )  # the biased form: 0.9


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


# The grid's statistics


def statistics(errors: np.ndarray) -> dict[str, float]:
    return {name: float(value[0]) for name, value in alignment_statistics(errors[None]).items()}


def test_the_alignment_equals_brute_force() -> None:
    for seed in range(20):
        errors = np.random.default_rng(seed).random((3, 5))
        paths = [p for p in itertools.product(range(3), repeat=5) if list(p) == sorted(p)]
        best = min(paths, key=lambda path: sum(errors[s, t] for t, s in enumerate(path)))
        assert tuple(monotone_alignment(errors)) == best
        least = errors.min(0).mean()
        kept = 1 - (sum(errors[s, t] for t, s in enumerate(best)) / 5 - least) / (
            errors.mean() - least
        )
        assert statistics(errors)["order"] == pytest.approx(kept)


def test_statistics_by_hand() -> None:
    errors = np.array([[0.0, 0.5, 1.0], [0.5, 0.0, 0.5], [1.0, 0.5, 0.0]])
    names = ("diagonal", "spearman", "slope", "order")
    assert [statistics(errors)[name] for name in names] == pytest.approx([1, 1, 1, 1])
    both = alignment_statistics(np.stack([errors, errors[::-1]]))
    assert both["spearman"].tolist() == pytest.approx([1, -1])
    assert both["slope"].tolist() == pytest.approx([1, -1])
    assert both["diagonal"][1] < 0
    halved = np.array(
        [[0.0, 0.0, 0.9, 0.9], [0.9, 0.9, 0.0, 0.0]]
    )  # best sources 0 0 1 1: ranks 1.5 1.5 3.5 3.5
    assert statistics(halved)["spearman"] == pytest.approx(2 / 5**0.5)
    assert [statistics(np.ones((1, 3)))[name] for name in names] == [0, 0, 0, 1]
    assert share_at_least(np.array([0.1, 0.2, 0.3]), 0.3) == 0.5


def test_permuted_taps_know_no_diagonal() -> None:
    errors = np.abs(np.arange(8)[:, None] - np.arange(8)) / 8
    null = alignment_statistics(permuted(errors, n=500))
    assert abs(null["diagonal"].mean()) < 0.05
    assert null["diagonal"].max() < 0.999


# Models


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
    study = Study(
        ("zoo/hops-4l",), ("one-hop",), {"depth_map": {"target": twin, "method": method}}, n=48
    )
    done = execute(study, tmp_path / "run", store=tmp_path / "store")
    (cell,) = done["cells"].values()
    assert cell["status"] == "ok", cell
    found = open_run(tmp_path / "run")["zoo/hops-4l", "one-hop", "depth_map"]
    direct = DepthMap(target=twin, method=method).run(zoo, interp.load_task("one-hop", n=48))
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
        DepthMap(method="orthogonal").prepare(zoo, interp.load_task("one-hop", n=40))


def test_the_memory_is_stated(zoo: Model) -> None:
    shard = zoo.tokenize(["Ada mother"])
    one_target_at_a_time = 5 * (128**2 + 128 * 128)
    assert DepthMap().cost(zoo, shard).held >= 2 * one_target_at_a_time
