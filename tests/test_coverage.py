"""95 % intervals hold the truth as often as docs/intervals.md says."""

import pytest

from scripts.coverage import SKEWED, TRIALS, coverage, of_shares


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in TRIALS if kind not in SKEWED])
def test_intervals_hold_the_truth(kind: str) -> None:
    """93 to 97 %, and three binomial errors of 300 samples; the page has the numbers of 2,000."""
    sizes = (32, 128) if "groups" not in kind else (128,)
    for n in sizes:
        assert 0.93 - 0.04 < coverage(kind, n, n_samples=300) < 0.97 + 0.03, n


@pytest.mark.slow
@pytest.mark.parametrize("kind", SKEWED)
def test_skewed_samples_need_many_prompts(kind: str) -> None:
    few, many = (coverage(kind, n, n_samples=300) for n in (8, 128))
    assert few < 0.93 < many + 0.03


@pytest.mark.parametrize("n", [8, 32, 128])
def test_shares_cover_their_truth(n: int) -> None:
    mean, least = of_shares(n)
    assert 0.94 <= mean <= 0.97
    assert least >= 0.92
