"""The statistics of a grid of errors equal brute force, and their intervals hold."""

import itertools

import numpy as np
import pytest

from interp.analyses.depth_map.grids import ErrorGrids, two_halves
from interp.analyses.depth_map.layer_alignment import (
    alignment_statistics,
    monotone_alignment,
)
from interp.analyses.depth_map.sampled import Sampled, best_error, depth_gain, sampled
from interp.stats.groups import Grouping

pytestmark = pytest.mark.filterwarnings("ignore")


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


# What is drawn, and the intervals around it


def drawn_errors(n: int, *, seed: int, means: np.ndarray | None = None) -> ErrorGrids:
    """Return noisy errors of n prompts of 3 to 8 tokens around the means [source target]."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, 9, n).astype(float)
    means = np.full((4, 4), 0.5) if means is None else means
    return ErrorGrids(
        tokens[:, None, None] * (means + 0.1 * rng.normal(size=(n, 4, 4))),
        tokens,
        Grouping.of(n, None),
    )


def test_a_prompt_counts_as_often_as_it_is_drawn() -> None:
    grids = drawn_errors(3, seed=0)
    tripled = [grids.errors[i] for i in (0, 0, 2)]
    by_hand = sum(tripled) / (2 * grids.tokens[0] + grids.tokens[2])
    np.testing.assert_allclose(grids.of(np.array([[2.0, 0.0, 1.0]]))[0], by_hand)
    assert sorted(two_halves(Grouping.of(7, None), seed=0).sum(1)) == [3, 4]
    assert (two_halves(Grouping.of(1, None), seed=0) == 1).all()
    assert (two_halves(Grouping.of(7, None), seed=0).sum(0) == 1).all()


def test_the_gain_is_chosen_on_one_half_and_measured_on_the_other() -> None:
    grids = drawn_errors(12, seed=1, means=0.4 + 0.1 * np.abs(np.subtract.outer(*2 * [range(4)])))
    gains = []
    halves = two_halves(Grouping.of(12, None), seed=5).astype(bool)
    for chosen, judged in (halves, halves[::-1]):
        mean = {
            half: grids.errors[rows].sum(0)[1:, 1:] / grids.tokens[rows].sum()
            for half, rows in (("chosen", chosen), ("judged", judged))
        }
        paths = [p for p in itertools.product(range(3), repeat=3) if list(p) == sorted(p)]
        total = lambda path, grid: sum(grid[s, t] for t, s in enumerate(path))  # noqa: E731
        path, one = (
            min(among, key=lambda path: total(path, mean["chosen"]))
            for among in (paths, [p for p in paths if len(set(p)) == 1])
        )
        gains.append((total(one, mean["judged"]) - total(path, mean["judged"])) / 3)
    assert float(depth_gain(grids, first=1, seed=5).value) == pytest.approx(np.mean(gains))


def test_what_was_picked_by_chance_gains_nothing() -> None:
    """Over 60 grids of noise alone; re-picked and measured on the same prompts it always gains."""
    crossfitted, picked, reached = [], [], []
    for seed in range(60):
        grids = drawn_errors(20, seed=seed)
        gain = depth_gain(grids, first=0, seed=seed).estimate()
        crossfitted.append(gain.value)
        reached.append(best_error(grids, first=0, seed=seed).estimate())
        picked.append(grids.whole.min(0).mean())
    error = np.std(crossfitted) / 60**0.5
    assert abs(np.mean(crossfitted)) < 3 * error
    assert np.mean(picked) < 0.5 - 0.015
    assert abs(np.mean([each.value for each in reached]) - 0.5) < 0.005
    assert np.mean([each.low <= 0.5 <= each.high for each in reached]) >= 0.88


def test_an_interval_stands_around_its_value_and_fewer_than_five_prompts_have_none() -> None:
    means = 0.4 + 0.1 * np.abs(np.subtract.outer(*2 * [range(4)]))
    diagonal = lambda errors: alignment_statistics(errors)["diagonal"]  # noqa: E731
    for n in (5, 8, 40):
        value = sampled(drawn_errors(n, seed=n, means=means), diagonal).estimate()
        assert value.low < value.value < value.high
        assert value.value - value.low == pytest.approx(value.high - value.value)
    assert not sampled(drawn_errors(4, seed=0), diagonal).estimate().has_interval


def test_one_more_twin_is_told_apart_from_twins_as_rarely_as_stated() -> None:
    """Twins differ from each other, by as much as prompts say or by far more."""
    for spread in (0.02, 1.0):
        told_apart = 0
        for seed in range(400):
            rng = np.random.default_rng(seed)
            offsets, shared = spread * rng.normal(size=4), rng.normal(size=(30, 4))
            drawn = rng.multinomial(30, np.full(30, 1 / 30), size=200) / 30
            model, *twins = (
                Sampled(np.array(offsets[i] + shared[:, i].mean()), drawn @ shared[:, i], 30, 30)
                for i in range(4)
            )
            told_apart += model.beyond(twins).excludes(0.0)
        assert told_apart <= 400 * 0.05 + 3 * (400 * 0.05 * 0.95) ** 0.5
