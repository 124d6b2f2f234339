"""Layers with few bits: rounding by hand, curves equal to weights written into the module."""

import copy
import importlib.util
from functools import cache

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import interp
from interp.analyses.quantization_order import QuantizationOrder
from interp.analyses.quantization_order.orders import (
    half_means,
    names_of,
    orders_by,
    plain_orders,
    scores,
)
from interp.errors import AnalysisError, UnsuitedError
from interp.metrics import kl
from interp.models import Model
from interp.models.quantizer import Rounding, Scheme, matrices_of, n_weights
from interp.runs.registry import make_analysis
from interp.sweeps.large_weights import share_of_large_weights
from tests.families import tiny, tokens

pytestmark = pytest.mark.filterwarnings("ignore")
SCHEMES: tuple[Scheme, ...] = ("symmetric", "asymmetric", "min-anchored")


def test_a_group_by_hand() -> None:
    row = torch.tensor([[-1.0, 0.1, 0.9, 2.0]])
    # s = 3/3 = 1, z = 1: levels -1, 0, 1, 2
    asymmetric = Rounding(2, 4, "asymmetric").matrix(row)
    assert_close(asymmetric, torch.tensor([[-1.0, 0.0, 1.0, 2.0]]))
    # s = 2/1 = 2: levels -2, 0, 2
    symmetric = Rounding(2, 4, "symmetric").matrix(row)
    assert_close(symmetric, torch.tensor([[0.0, 0.0, 0.0, 2.0]]))
    # from the minimum, steps of (2 - 0.5)/3 = 0.5: 0.5, 1, 1.5, 2; with 0 among the levels, 0 … 2
    above = torch.tensor([[0.5, 0.9, 1.6, 2.0]])
    anchored = Rounding(2, 4, "min-anchored").matrix(above)
    assert_close(anchored, torch.tensor([[0.5, 1.0, 1.5, 2.0]]))
    whole = Rounding(2, 4, "asymmetric").matrix(above)
    assert_close(whole, torch.tensor([[2 / 3, 2 / 3, 4 / 3, 2.0]]))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_groups_are_apart_short_ones_too_and_equal_weights_stay(scheme: Scheme) -> None:
    weights = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    rounding = Rounding(3, 4, scheme)
    apart = [rounding.matrix(part.contiguous()) for part in weights.split(4, dim=1)]
    assert_close(rounding.matrix(weights), torch.cat(apart, dim=1))
    assert_close(rounding.matrix(torch.zeros(2, 4)), torch.zeros(2, 4))
    assert_close(rounding.matrix(torch.full((2, 5), 0.25)), torch.full((2, 5), 0.25))
    assert rounding.matrix(weights.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("scheme", SCHEMES)
def test_more_bits_and_smaller_groups_miss_less(scheme: Scheme) -> None:
    weights = torch.randn(16, 128, generator=torch.Generator().manual_seed(1))

    def error(bits: int, group: int) -> float:
        return float((Rounding(bits, group, scheme).matrix(weights) - weights).norm())

    by_bits = [error(bits, 32) for bits in (2, 3, 4, 8, 16)]
    by_group = [error(3, group) for group in (8, 32, 128)]
    assert by_bits == sorted(by_bits, reverse=True)
    assert by_group == sorted(by_group)
    assert by_bits[-1] < 1e-2


def test_bits_are_counted_with_scales_and_zeros() -> None:
    block = tiny("llama").blocks[0]
    n = n_weights(block)
    for scheme, each in (("symmetric", 16), ("asymmetric", 18), ("min-anchored", 32)):
        bits = Rounding(2, 16, scheme).bits_of(block) / n
        assert bits == pytest.approx(2 + each / 16)
    assert n == sum(p.numel() for p in block.module.parameters() if p.ndim > 1)


def test_gpt2s_rows_are_inputs() -> None:
    block = tiny("gpt2").blocks[0]
    rounding = Rounding(2, 8, "asymmetric")
    named = dict(tiny("gpt2").module.named_parameters())
    rounded = rounding.block(block)
    assert len(rounded) == 4
    for name, weights in rounded.items():
        assert_close(weights, rounding.matrix(named[name].detach().T.contiguous()).T)
    assert rounding.bits_of(block) / n_weights(block) == pytest.approx(2 + 18 / 8)


def written(model: Model, layers: frozenset[int], rounding: Rounding) -> Model:
    """Return a copy whose layers have rounded weights."""
    module = copy.deepcopy(model.module)
    named = dict(module.named_parameters())
    with torch.no_grad():
        for layer in layers:
            for name, weights in rounding.block(model.blocks[layer]).items():
                named[name].copy_(weights)
    return interp.load_model(module)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "gpt_neox"])
@torch.no_grad()
def test_curves_and_single_layers_equal_a_module_with_rounded_weights(kind: str) -> None:
    model, batch = tiny(kind), tokens()
    analysis = QuantizationOrder(bits=3, group=8, points=4, control="none", orders=("LIM", "ZD"))
    prepared = prepared_of(analysis, model, batch)
    state = model.weights.state()
    part = analysis.measure(model.record(batch), batch, prepared)
    assert model.weights.state() == state
    clean = model.logits(batch)[:, -1:]

    @cache
    def naive(layers: frozenset[int]) -> torch.Tensor:
        return -kl(written(model, layers, analysis.rounding).logits(batch)[:, -1:], clean)

    for layer in range(model.n_layers):
        assert_close(part["alone.kl"][:, layer], naive(frozenset({layer})), rtol=1e-3, atol=1e-5)
    for row, orders in enumerate(part["order"].tolist()):
        for i, order in enumerate(orders):
            for point, size in enumerate(analysis._sizes(model.n_layers)):
                right = naive(frozenset(order[:size]))[row]
                assert_close(part["curve.kl"][row, i, point], right, rtol=1e-3, atol=1e-5)


def prepared_of(analysis: QuantizationOrder, model: Model, batch) -> dict[str, torch.Tensor]:
    known = scores(model.record(batch), analysis.rounding, analysis.orders)
    half = torch.arange(len(batch.prompts)) % 2 == 0
    orders = [
        orders_by(half_means(known, each), model.blocks, analysis.orders, seed=0)
        for each in (half, ~half)
    ]
    groups, order = batch.groups.sort()
    return {
        "orders": torch.stack(orders),
        "groups": groups,
        "half": half.long()[order],
        "bits": torch.tensor([analysis.rounding.bits_of(b) for b in model.blocks]).double(),
        "weights": torch.tensor([n_weights(b) for b in model.blocks]).double(),
    }


@torch.no_grad()
def test_each_half_is_measured_in_the_order_that_the_other_chose() -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=16)
    analysis = QuantizationOrder(orders=("own loss", "LIM"), control="none")
    result = analysis.run(model, task)
    batches = [model.tokenize(shard) for shard in model.shards(task)]
    known = [scores(model.record(b), analysis.rounding, analysis.orders) for b in batches]
    groups = torch.cat([batch.groups for batch in batches])
    used = torch.from_numpy(result.arrays["order"])
    prepared = analysis.prepare(model, task)
    chosen_on = prepared["half"][torch.searchsorted(prepared["groups"], groups)]
    for half in (0, 1):
        others = chosen_on != half
        for i, name in enumerate(analysis.orders):
            mean = torch.cat([each[name] for each in known])[others].double().mean(0)
            assert (used[chosen_on == half, i] == mean.argsort(stable=True)).all()


def test_all_orders_end_alike_and_a_curves_first_point_is_a_layer_alone() -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=12)
    result = QuantizationOrder(points=3, control="none").run(model, task)
    assert result.sizes == [0, 1, 2, 3, 4]
    kl_, alone = result.arrays["curve.kl"], result.arrays["alone.kl"]
    assert_close(kl_[:, :, -1], np.repeat(kl_[:, :1, -1], kl_.shape[1], 1), rtol=0, atol=0)
    assert np.abs(kl_[:, :, 0]).max() < 1e-5
    first = result.arrays["order"][:, :, 0]
    assert_close(kl_[:, :, 1], np.take_along_axis(alone, first, 1), rtol=1e-4, atol=1e-6)


def test_sixteen_bits_lose_nothing() -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=12)
    how = {"orders": ("LIM",), "control": "none"}
    result = QuantizationOrder(bits=16, scheme="min-anchored", **how).run(model, task)
    assert np.abs(result.arrays["curve.kl"]).max() < 1e-5
    assert result.bits("LIM")[0, 0] == 16


def test_areas_and_breaks_by_hand() -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=12)
    result = QuantizationOrder(points=3, control="none").run(model, task)
    n = len(result.arrays["order"])
    result.arrays["bits"][:] = np.array([16.0, 12, 8, 6, 4])
    result.arrays["curve.kl"][:] = np.array([0, 0, 0.2, 0.4, 0.8])
    area = (4 * 0 + 4 * 0.1 + 2 * 0.3 + 2 * 0.6) / 12
    assert_close(result.area("LIM"), np.full(n, area), rtol=1e-6, atol=0)
    assert result.breaks_at("LIM") == pytest.approx(10.0)


def test_the_random_orders_are_permutations_that_follow_the_seed() -> None:
    first, second = (torch.stack(plain_orders(9, seed=seed)) for seed in (0, 1))
    assert (first.sort().values == torch.arange(9)).all()
    assert not torch.equal(first, second)
    assert len(names_of(("LIM",))) == 1 + len(first)


def test_zd_of_gaussian_weights() -> None:
    weights = [torch.randn(400, 400, generator=torch.Generator().manual_seed(2))]
    assert share_of_large_weights(weights) == pytest.approx(0.159, abs=0.002)
    assert share_of_large_weights(weights, both_tails=True) == pytest.approx(0.317, abs=0.003)


def test_what_cannot_be_asked_is_refused() -> None:
    for parameters, why in (
        ({"bits": 0}, "bits"),
        ({"group": 0}, "at least 1"),
        ({"orders": ()}, "one or more"),
        ({"orders": ("LIM", "LIM")}, "different"),
        ({"orders": ("LIN",)}, "LIN"),
        ({"bits": 1, "scheme": "symmetric"}, "at least 2"),
    ):
        with pytest.raises(AnalysisError, match=why):
            make_analysis("quantization_order", parameters)
    with pytest.raises(UnsuitedError, match="experts"):
        QuantizationOrder().check(tiny("mixtral"), tokens())


def test_untrained_models_claim_nothing() -> None:
    for seed in range(2):
        model = interp.load_model(f"zoo/hops-4l@untrained-{seed}")
        task = interp.load_task("two-hop", n=24, seed=seed)
        result = QuantizationOrder(orders=("LIM",), seed=seed).run(model, task)
        compared = [each for each in result.findings() if each.kind == "compares"]
        assert len(compared) == 2
        assert not any(each.estimate.excludes() for each in compared)


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_asymmetric_rounding_is_torchaos(bits: int) -> None:
    from torchao.quantization.quant_primitives import (
        MappingType,
        choose_qparams_affine,
        dequantize_affine,
        quantize_affine,
    )

    weights = torch.randn(8, 64, generator=torch.Generator().manual_seed(3))
    block, top = (1, 32), 2**bits - 1
    how = {"quant_min": 0, "quant_max": top}
    scale, zero = choose_qparams_affine(
        weights, MappingType.ASYMMETRIC, block, torch.uint8, eps=1e-12, **how
    )
    levels = quantize_affine(weights, block, scale, zero, torch.uint8, **how)
    theirs = dequantize_affine(levels, block, scale, zero, torch.uint8, **how)
    assert_close(Rounding(bits, 32, "asymmetric").matrix(weights), theirs)


@pytest.mark.real
def test_four_bits_lose_nothing_of_weights_that_have_no_more(smollm2: str) -> None:
    model = interp.load_model(smollm2)
    for layer in (0, 13, 29):
        for _, weights, _ in matrices_of(model.blocks[layer]):
            again = Rounding(4, 32, "min-anchored").matrix(weights)
            assert (again - weights).norm() < 2e-3 * weights.norm()
            coarse = Rounding(3, 32, "min-anchored").matrix(weights)
            assert (coarse - weights).norm() > 0.05 * weights.norm()
