"""An estimate prints itself, and is the mean with the bootstrap interval; words stay short."""

import math

import numpy as np
import pytest

from interp.figures.words import by_sign, counted, layers_named, listed
from interp.numerals import number
from interp.result import Compared, Finding, faults_of
from interp.stats.bootstrap import draws
from interp.stats.estimate import (
    Estimate,
    estimate,
    estimate_difference,
    estimate_of,
    estimates,
    ratio,
    ratios,
)
from interp.stats.groups import Grouping
from interp.stats.paired import paired_p
from interp.stats.picked import band, picked
from interp.stats.shares import share, share_difference, share_differences, shares


def test_it_prints_itself_in_any_format() -> None:
    assert f"{Estimate(0.43, 0.37, 0.5, 20):.0%}" == "43 % [37, 50]"
    assert f"{Estimate(-0.001, -0.5, 0.25, 20):.1f}" == "0.0 [−0.5, 0.2]"
    assert f"{Estimate(1.25, n=3):+.2f}" == "+1.25"
    assert str(Estimate(5.6, 4.9, 6.3, 8)) == "5.6 [4.9, 6.3]"
    assert str(Estimate(102_453.0, 96_141.0, 108_583.0, 8)) == "102,000 [96,100 to 109,000]"


def test_rounding_hides_no_number() -> None:
    assert f"{Estimate(0.0003, 0.0001, 0.0006, 8):.2f}" == "0.0003 [0.0001, 0.0006]"
    assert f"{Estimate(0.003, 0.001, 0.02, 8):.0%}" == "0.3 % [0.1, 2.0]"
    assert f"{Estimate(0.0003, -0.002, 0.004, 8):.2f}" == "0.000 [−0.002, 0.004]"
    assert f"{Estimate(0.003, -0.01, 0.02, 8):.0%}" == "0 % [−1, 2]"
    assert f"{Estimate(0.38, 0.002, 0.76, 8):.0%}" == "38 % [0.2, 76]"  # an end is not hidden
    assert f"{Estimate(0.05, 0.000999, 0.26, 8):.0%}" == "5 % [0.1, 26]"
    assert f"{-Estimate(0.38, 0.02, 0.76, 8):.0%}" == "−38 % [−76, −2]"
    assert f"{Estimate(3e-9, 1e-9, 4e-9, 8):.2f}" == "< 0.0001"
    assert f"{Estimate(0.0, 0.0, 0.0, 8):.2f}" == "0.00 [0.00, 0.00]"


@pytest.mark.parametrize(
    ("value", "spec", "text"),
    [
        (-0.31, ".2f", "−0.31"),
        (-0.0, ".2f", "0.00"),
        (0.0004, ".2f", "0.0004"),
        (-1e-9, ".2f", "> −0.0001"),
        (1e-6, ".0%", "< 0.01 %"),
        (102_453.0, ".3g", "102,000"),
        (-7.7e-10, ".2g", "−7.7 × 10⁻¹⁰"),
        (1.02e9, ".3g", "1.02 × 10⁹"),
        (math.nan, ".2f", "nan"),
    ],
)
def test_numbers_are_written_for_people(value: float, spec: str, text: str) -> None:
    assert number(value, spec) == text


def test_half_an_interval_is_none() -> None:
    half = Estimate(1.0, 0.5, math.inf, 3)
    assert not half.has_interval
    assert not half.excludes(0.0)
    assert half.to_json() == {
        "value": 1.0,
        "low": None,
        "high": None,
        "n": 3,
        "n_groups": None,
    }
    assert Estimate(1.0, 0.5, 2.0, 3).excludes(0.0)
    assert not Estimate(1.0, 0.5, 2.0, 3).excludes(0.5)


def test_an_estimate_is_the_mean_with_an_interval() -> None:
    values, weights = np.array([1.0, 2.0, 4.0, 9.0, 4.0]), np.array([1.0, 1.0, 1.0, 3.0, 2.0])
    one = estimate(values, weights=weights, seed=3)
    assert (one.value, one.n, one.n_groups) == ((1 + 2 + 4 + 27 + 8) / 8, 5, 5)
    assert one.low < one.value < one.high
    columns = estimates(np.stack([values, values], axis=1), weights=weights, seed=3)
    assert columns["mean"].tolist() == [one.value] * 2
    assert columns["low"].tolist() == [one.low] * 2
    assert columns["n_prompts"].tolist() == [5, 5]
    assert math.isnan(estimate([]).value)


def test_few_groups_have_student_intervals_and_fewer_than_five_none() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0, 4.0, 7.0, 3.0])
    error, t = values.std(ddof=1) / np.sqrt(7), 2.446912
    assert estimate(values).low == pytest.approx(values.mean() - t * error)
    assert estimate(values).high == pytest.approx(values.mean() + t * error)
    assert estimate(values).is_of_few
    assert not estimate(values[:4]).has_interval
    pairs = np.repeat(values, 3)
    grouped = estimate(pairs, groups=np.repeat(np.arange(7), 3))
    assert (grouped.low, grouped.n, grouped.n_groups) == (
        pytest.approx(values.mean() - t * error),
        21,
        7,
    )
    assert not estimate(pairs, groups=np.arange(21) % 4).has_interval


def test_the_bootstrap_is_studentised() -> None:
    """Recomputed resample by resample; the percentile interval would be too narrow above."""
    values, weights = np.random.default_rng(0).exponential(size=(2, 14))
    drawn = draws(14, seed=5)
    mean = np.average(values, weights=weights)

    def error(times: np.ndarray, around: float) -> float:
        rest = weights * (values - around)
        return float(np.sqrt((times * rest**2).sum() * 14 / 13) / (times * weights).sum())

    t = []
    for times in drawn:
        resampled = np.average(values, weights=times * weights)
        t.append((resampled - mean) / error(times, resampled))
    lowest, highest = np.quantile(t, [0.025, 0.975], method="nearest")
    whole = error(np.ones(14), mean)
    found = estimate(values, weights=weights, seed=5)
    assert found.low == pytest.approx(mean - highest * whole)
    assert found.high == pytest.approx(mean - lowest * whole)


def test_one_large_value_among_tiny_ones_does_not_make_an_endless_interval() -> None:
    values = np.array([-7.3, *(-1e-4 * np.arange(1, 12))])
    found, error = estimate(values), values.std(ddof=1) / np.sqrt(12)
    assert found.value - found.low == pytest.approx(5 * 2.200985 * error)
    assert found.value < found.high < found.value + 2.2 * error


def test_ratios_resample_both_sides() -> None:
    above, below = np.random.default_rng(1).exponential(size=(2, 40)) + 1
    groups = np.arange(40) // 2
    one = ratio(above, below, groups=groups, seed=2)
    assert one.value == pytest.approx(above.sum() / below.sum())
    same = ratio(2 * below, below, groups=groups)
    assert (same.value, same.low, same.high) == pytest.approx((2, 2, 2))
    columns = ratios(np.stack([above, below], 1), below, groups=groups, seed=2)
    assert columns["low"].tolist() == pytest.approx([one.low, 1])


def test_statistics_of_means_and_differences() -> None:
    values = np.random.default_rng(2).normal(size=(30, 4)) + np.arange(4)
    found = estimate_of(lambda mean: float(mean[3] - mean[0]), values, seed=1)
    assert found.value == pytest.approx(3, abs=1)
    assert found.low < found.value < found.high
    assert not estimate_of(lambda mean: float(mean.max()), values[:4]).has_interval
    # all resamples of an extreme lie on one side: such an interval would hold nothing
    picked_anew = estimate_of(lambda mean: -float(abs(mean[0] - values[:, 0].mean())), values)
    assert not picked_anew.has_interval
    difference = estimate_difference([3.0] * 5, [1.0] * 6)
    assert (difference.value, difference.low, difference.high) == (2.0, 2.0, 2.0)
    assert not estimate_difference([3.0] * 4, [1.0] * 6).has_interval


def test_shares_have_wilson_intervals() -> None:
    """By the formula of Wilson (1927): none of 32 is not certainly none."""
    none = share(np.zeros(32))
    assert (none.low, none.high) == pytest.approx((0, 0.10718), abs=1e-4)
    half = share(np.arange(32) < 16)
    assert (half.low, half.high) == pytest.approx((0.33635, 0.66365), abs=1e-4)
    assert not share(np.zeros(4)).has_interval
    # each of 16 groups twice is 16, not 32
    grouped = share(np.repeat(np.arange(16) < 8, 2), groups=np.repeat(np.arange(16), 2))
    assert grouped.high - grouped.low > 1.35 * (half.high - half.low)
    assert share(np.zeros(32), groups=np.repeat(np.arange(16), 2)).high > none.high


def test_a_rare_case_does_not_widen_the_band_of_the_others() -> None:
    """A resample without the rare case has no spread but that of rounding."""
    common = (np.arange(54) < 15).astype(float)
    low, _ = band(np.stack([common, np.arange(54) < 1, np.arange(54) < 2], axis=1))
    assert low[0] > 0.1


def test_many_shares_are_each_what_one_alone_is() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.random((20, 2, 3)) < p for p in (0.1, 0.6))
    for groups in (None, np.repeat(np.arange(10), 2), np.arange(20) % 3):
        many = shares(one, groups=groups)
        apart = share_differences(one, other, groups=groups)
        for at in np.ndindex(2, 3):
            alone = share(one[:, *at], groups=groups)
            difference = share_difference(one[:, *at], other[:, *at], groups=groups)
            for columns, estimate_of_one in ((many, alone), (apart, difference)):
                np.testing.assert_allclose(
                    [columns[name][at] for name in ("mean", "low", "high")],
                    [estimate_of_one.value, estimate_of_one.low, estimate_of_one.high],
                )


def test_differences_of_shares_have_intervals_even_where_none_differs() -> None:
    same = share_difference(np.ones(32), np.ones(32))
    assert same.value == 0
    assert same.low == pytest.approx(-same.high)
    assert 0.04 < same.high < 0.1
    all_repaired = share_difference(np.ones(20), np.zeros(20))
    assert all_repaired.value == 1
    assert 0.75 < all_repaired.low < 1 == all_repaired.high


def test_what_was_picked_is_measured_on_the_other_half() -> None:
    values = np.random.default_rng(4).normal(size=(64, 30))
    best = picked(values, seed=1)
    assert best.index == values.mean(0).argmax()
    half = Grouping.of(64, None).half(seed=1)
    assert half.sum() == 32
    first, second = values[half].mean(0).argmax(), values[~half].mean(0).argmax()
    assert best.halves == (first, second)
    expected = (values[~half, first].mean() + values[half, second].mean()) / 2
    assert best.estimate.value == pytest.approx(expected)
    assert abs(best.estimate.value) < values.mean(0).max()
    clear = values.copy()
    clear[:, 7] += 3
    assert picked(clear).is_stable
    assert picked(clear).estimate.value == pytest.approx(clear[:, 7].mean())


def test_no_group_is_in_both_halves() -> None:
    grouping = Grouping.of(60, np.arange(60) // 7)
    half = grouping.half(seed=3)
    for group in range(9):
        assert len({*half[grouping.codes == group].tolist()}) == 1
    assert 20 <= half.sum() <= 40


def test_a_band_holds_all_means_together() -> None:
    values = np.random.default_rng(5).normal(size=(64, 30))
    low, high = band(values)
    alone = estimates(values)
    assert (high - low > 1.3 * (alone["high"] - alone["low"])).all()
    assert np.isnan(band(values[:4])[0]).all()


def test_p_values_flip_whole_groups() -> None:
    better = np.repeat(np.ones(4), 10)
    assert paired_p(better) < 0.001
    assert paired_p(better, groups=np.arange(40) // 10) == pytest.approx(2 / 16, abs=0.02)
    assert paired_p(np.zeros((8, 3))).tolist() == [1, 1, 1]


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
    alike = Compared("another", Estimate(0.1, n=8))
    long = Finding("One.", Estimate(5.6, 4.9, 6.3, 8), "n" * 115, control=alike, kind="compares")
    assert len(faults_of([long])) == 1
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
        "n_groups": None,
    }
    assert "rival" not in written


@pytest.mark.parametrize(
    ("ends", "says"),
    [((0.1, 0.5), "more"), ((-0.5, -0.1), "less"), ((-0.1, 0.5), "?"), ((np.nan, np.nan), "?")],
)
def test_a_difference_has_a_sign_where_its_interval_excludes_0(
    ends: tuple[float, float], says: str
) -> None:
    difference = Estimate(float(np.sign(sum(ends))), *ends, n=9)
    assert by_sign(difference, above="more", below="less", unclear="?") == says
