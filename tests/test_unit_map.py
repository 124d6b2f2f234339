"""Permuted units are recovered, at no barrier; unrelated ones are alike by chance alone."""

import copy
import dataclasses
from functools import cache
from itertools import permutations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import interp
from interp.analyses.unit_map import UnitMap, UnitMapResult
from interp.analyses.unit_map.barrier import can_interpolate, in_order, mlp_weights
from interp.analyses.unit_map.likeness import likeness_by_layer
from interp.analyses.unit_map.matching import (
    correlations,
    likeness_of_heads,
    matched,
    standardised,
    transported,
)
from interp.analyses.unit_map.reading import Units, is_held, n_units, tokens_of, units_of
from interp.errors import AnalysisError, UnsuitedError
from interp.models import Model
from tests.families import one_layer, tiny, tokens

HOPS = "zoo/hops-4l"


@torch.no_grad()
def permuted(model: Model) -> tuple[Model, list[torch.Tensor]]:
    """Return the model with the neurons of each layer in another order, and those orders."""
    module, n = copy.deepcopy(model.module), n_units(model)
    other = Model("permuted", module, model.tokenizer)
    orders = []
    for layer, block in enumerate(other.blocks):
        orders.append(torch.randperm(n, generator=torch.Generator().manual_seed(layer)))
        weights = mlp_weights(block, n)
        assert weights is not None
        for name, weight in in_order(weights, orders[-1]).items():
            block.module.get_parameter(name).data = weight.clone()
    return other, orders


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_model_with_permuted_neurons_computes_the_same(family: str) -> None:
    model, batch = tiny(family), tokens()
    other, _ = permuted(model)
    assert can_interpolate(model, other, n_units(model))
    assert_close(other.logits(batch), model.logits(batch), rtol=1e-4, atol=1e-4)
    layer = 2
    one, two = (units_of(each, [batch], [layer])[0].neurons for each in (model, other))
    assert not torch.allclose(one, two)


def test_weights_whose_neurons_cannot_be_told_are_not_moved() -> None:
    fused = tiny("phi3")
    assert mlp_weights(fused.blocks[0], n_units(fused)) is None
    with pytest.raises(UnsuitedError, match="cannot be read one by one"):
        n_units(tiny("mixtral"))


@cache
def of_permuted() -> tuple[UnitMapResult, list[torch.Tensor]]:
    model = interp.load_model(HOPS)
    other, orders = permuted(model)
    model = dataclasses.replace(model, load_another=lambda _: other)
    task = interp.load_task("two-hop", n=100)
    return UnitMap(target="permuted", most_layers=2).run(model, task), orders


def test_permuted_units_are_recovered_without_a_barrier() -> None:
    result, _ = of_permuted()
    np.testing.assert_allclose(result.correlation(), 1, atol=1e-3)
    of_neurons = result.findings()[0].estimate
    assert of_neurons is not None
    assert 0.999 < of_neurons.low <= of_neurons.high < 1.001  # the same units on any prompts
    assert (result.arrays["stable"] > 0.98).all()  # neurons that never change have any partner
    barrier = result.barrier()
    assert barrier is not None
    np.testing.assert_allclose(barrier[:, :, 0], 0, atol=1e-4)
    assert float(np.abs(barrier[:, 2, 1]).max()) > 0.01
    assert (result.correlation("unrelated layer") < 0.9).all()
    assert (result.correlation("shuffled tokens") < 0.2).all()


def test_findings_are_computed_another_way_and_only_describe() -> None:
    result, _ = of_permuted()
    of_units, of_loss = result.findings()
    held = result.arrays["tokens"] > 0
    values = result.arrays["correlation"][held][:, :, 0].mean(1)
    mean = np.average(values, weights=result.arrays["tokens"][held])
    assert of_units.estimate.value == pytest.approx(mean)
    losses = result.arrays["loss"][held].mean((0, 1))
    naive = losses[2, 1] - (losses[0, 1] + losses[-1, 1]) / 2
    assert of_loss.control.estimate.value == pytest.approx(naive, rel=1e-4)
    assert {finding.kind for finding in result.findings()} == {"describes"}


def test_units_that_have_nothing_in_common_are_alike_on_the_fitted_half_only() -> None:
    batch = tokens(batch=6, n_pos=101)
    held = is_held(batch.prompts, seed=0)
    rng = torch.Generator().manual_seed(0)
    one, other = (
        Units(torch.randn(600, 40, generator=rng), torch.randn(600, 2, 8, generator=rng))
        for _ in range(2)
    )
    alike = likeness_by_layer([one], {"target": [other]}, [batch], held)
    chance = torch.stack([*alike.of_prompts.values()]).mean()
    assert sum(held.values()) == 3
    assert int(tokens_of([batch], held).sum()) == 300
    assert abs(float(chance)) < 0.02
    assert float(alike.fitted) > 0.08
    assert float(alike.stable) < 0.2


def test_the_match_is_the_best_of_all() -> None:
    alike = torch.rand(5, 5, generator=torch.Generator().manual_seed(1))
    best = max(sum(alike[i, j] for i, j in enumerate(order)) for order in permutations(range(5)))
    assert float((matched(alike) * alike).sum()) == pytest.approx(float(best))


def test_unequal_numbers_are_transported() -> None:
    rng = torch.Generator().manual_seed(0)
    units = standardised(torch.randn(400, 12, generator=rng))
    more = standardised(torch.cat([units[:, torch.randperm(12)], units[:, :6]], dim=1))
    plan = transported(correlations(units, more))
    assert_close(plan.sum(1), torch.ones(12), rtol=1e-4, atol=1e-4)
    assert_close(plan.sum(0), torch.full((18,), 12 / 18), rtol=0.05, atol=0.05)
    partners = correlations(units, more).gather(1, plan.argmax(1)[:, None])
    assert_close(partners, torch.ones(12, 1), rtol=1e-4, atol=1e-4)


def test_heads_are_alike_whatever_their_rotation() -> None:
    rng = torch.Generator().manual_seed(0)
    heads = torch.randn(300, 3, 8, generator=rng)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=rng)).Q
    alike = likeness_of_heads(heads, heads[:, [2, 0, 1]] @ turn)
    assert_close(alike[[2, 0, 1], [0, 1, 2]], torch.ones(3), rtol=1e-4, atol=1e-4)
    assert float(alike[0, 0]) < 0.2


def test_too_few_tokens_are_refused_before_any_work() -> None:
    model = interp.load_model(HOPS)
    batch = model.tokenize(interp.load_task("two-hop", n=8).prompts)
    with pytest.raises(AnalysisError, match=r"tokens; to match 336 units, at least as many"):
        UnitMap().check_all(model, [batch])
    with pytest.raises(AnalysisError, match="at least 3 are needed"):
        UnitMap().check(tiny("llama"), tokens(n_pos=2))
    with pytest.raises(UnsuitedError, match="the target has 1 layer"):
        UnitMap().check(one_layer("llama"), tokens())
