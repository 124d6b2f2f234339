"""An estimate prints itself, and is the mean with the bootstrap interval; words stay short."""

import math

import numpy as np
import pytest

from interp.figures.words import counted, layers_named, listed
from interp.result import Compared, Finding, faults_of
from interp.stats.bootstrap import bootstrap_interval
from interp.stats.estimate import (
    Estimate,
    estimate,
    estimate_difference,
    estimate_of,
    estimates,
)


def test_it_prints_itself_in_any_format() -> None:
    assert f"{Estimate(0.43, 0.37, 0.5, 20):.0%}" == "43 % [37, 50]"
    assert f"{Estimate(-0.001, -0.5, 0.25, 20):.1f}" == "0.0 [-0.5, 0.2]"
    assert f"{Estimate(1.25, n=3):+.2f}" == "+1.25"
    assert str(Estimate(5.6, 4.9, 6.3, 8)) == "5.6 [4.9, 6.3]"


def test_half_an_interval_is_none() -> None:
    half = Estimate(1.0, 0.5, math.inf, 3)
    assert not half.has_interval
    assert not half.excludes(0.0)
    assert half.to_json() == {"value": 1.0, "low": None, "high": None, "n": 3}
    assert Estimate(1.0, 0.5, 2.0, 3).excludes(0.0)
    assert not Estimate(1.0, 0.5, 2.0, 3).excludes(0.5)


def test_an_estimate_is_the_mean_with_the_bootstrap_interval() -> None:
    values, weights = np.array([1.0, 2.0, 4.0, 9.0]), np.array([1.0, 1.0, 1.0, 3.0])
    (low,), (high,) = bootstrap_interval(values[:, None], weights=weights, seed=3)
    mean = (1 + 2 + 4 + 27) / 6
    assert estimate(values, weights=weights, seed=3) == Estimate(mean, low, high, 4)
    columns = estimates(np.stack([values, values], axis=1), weights=weights, seed=3)
    assert columns["mean"].tolist() == [mean, mean]
    assert columns["low"].tolist() == [low, low]
    assert columns["n_prompts"].tolist() == [4, 4]
    assert math.isnan(estimate([]).value)


def test_estimates_of_ratios_and_differences() -> None:
    assert estimate_of(0.5, [0.4, 0.5, 0.6], n=3) == Estimate(0.5, 0.4, 0.6, 3)
    difference = estimate_difference([3.0, 3.0], [1.0, 1.0, 1.0])
    assert difference == Estimate(2.0, 2.0, 2.0, 5)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([], "no layer"),
        ([3], "layer 3"),
        ([4, 1], "layers 1 and 4"),
        ([1, 4, 9], "layers 1, 4 and 9"),
        (range(12, 19), "layers 12–18"),
        ([0, *range(12, 19)], "layers 0 and 12–18"),
        ([1, 3, 5, 7, 9], "5 of 30 layers"),
    ],
)
def test_layers_in_words_are_at_most_three_names(layers: list[int], words: str) -> None:
    assert layers_named(layers, of=30) == words


def test_names_and_numbers_in_words() -> None:
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed(["a", "b", "c", "d"]) == "a, b and 2 more"
    assert counted(1, "prompt") == "1 prompt"
    assert counted(1200, "prompt") == "1,200 prompts"


def test_findings_that_break_the_rules_are_told() -> None:
    right = Finding("Skipping layer 3 costs 5.6 nats.", Estimate(5.6, 4.9, 6.3, 8), "nats")
    assert faults_of([right]) == []
    assert len(faults_of([right] * 4)) == 1
    wrong = Finding("x" * 161 + ". And more", Estimate(5.0, 6.0, 7.0, 8))
    assert len(faults_of([wrong])) == 4
    assert faults_of([]) == ["0 findings; 1 to 3"]


def test_a_finding_as_json_has_its_control_beside_it() -> None:
    control = Compared("a random layer", Estimate(0.4, 0.3, 0.5, 8))
    written = Finding("One.", Estimate(1.0, n=8), "nats", control=control).to_json()
    assert written["value"] == 1.0
    assert written["low"] is None
    assert written["control"] == {
        "name": "a random layer",
        "value": 0.4,
        "low": 0.3,
        "high": 0.5,
        "n": 8,
    }
    assert "rival" not in written
